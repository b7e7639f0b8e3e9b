"""What identifies a version of a model: the list of its objects, as the store names them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from tonnage.contract.plan import Layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage.contract.plan import ObjectPin

ENTRY_NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""What a cache entry's name may be: it becomes a directory's name and a label's value."""


def revision_digest(objects: Iterable[tuple[str, ObjectPin]]) -> str:
    """Returns ``sha256:<hex>`` over the objects of a revision.

    Args:
        objects: Pairs of the place (see `place_of`; empty for HTTP, whose keys are URLs) and the pinned object, in
            any order. Credentials don't take part: who may read it doesn't change what it is.
    """
    rows = sorted([place, pin.key, pin.size, pin.etag, pin.version_id] for place, pin in objects)
    return "sha256:" + hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def source_place(endpoint: str, bucket: str) -> str:
    """Returns where an S3 source's objects are: the bucket, after the endpoint unless that is AWS's own.

    The endpoint belongs to it, since another server can say the same names, sizes and ETags of other bytes.

    Args:
        endpoint: URL of a custom endpoint; empty: AWS, whose buckets' names are unique.
        bucket: The bucket's name.
    """
    scheme, _, rest = endpoint.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}/{bucket}" if endpoint else bucket


def revision_id(digest: str) -> str:
    """Returns the short name of a revision: ``r-`` and the first 12 hex digits of its digest."""
    return "r-" + digest.removeprefix("sha256:")[:12]


def entry_name(revision: str, layout: Layout) -> str:
    """Returns the cache entry's name: the revision's id, and its layout where that is not the default one."""
    return revision if layout is Layout.SAFETENSORS else f"{revision}-{layout.value}"
