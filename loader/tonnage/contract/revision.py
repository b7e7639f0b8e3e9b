"""Identifies a revision: the digest over its list of objects, and the names derived from it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from tonnage.contract.plan import ComputedBuffers, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage.contract.plan import ObjectPin

HUB_PLACE = "hf+"
"""The beginning of the places of hubs, which distinguishes them from those of buckets."""
ENTRY_NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""Valid names of cache entries, which are also directory names and label values."""


def revision_digest(objects: Iterable[tuple[str, ObjectPin]]) -> str:
    """Returns ``sha256:<hex>`` over the objects of a revision.

    Args:
        objects: Pairs of place (see ``source_place``; empty for HTTP, whose keys are URLs) and pinned object, in any
            order. Credentials are not included, because they don't change the contents.
    """
    rows = sorted([place, pin.key, pin.size, pin.etag, pin.version_id] for place, pin in objects)
    return "sha256:" + hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def source_place(endpoint: str, bucket: str) -> str:
    """Returns the place of an S3 source: the bucket, with the endpoint before it unless the endpoint is AWS.

    The endpoint is included because another server can have the same names, sizes and ETags for other data.

    Args:
        endpoint: URL of a custom endpoint; empty for AWS, where bucket names are unique.
        bucket: The bucket's name.
    """
    scheme, _, rest = endpoint.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}/{bucket}" if endpoint else bucket


def hub_place(endpoint: str, repo: str) -> str:
    """Returns the place of a repository on a hub: ``hf+``, the hub's URL and the repository."""
    return f"{HUB_PLACE}{source_place(endpoint, repo)}"


def is_hub_place(place: str, endpoint: str, repo: str) -> bool:
    """Returns whether a place is that of a repository. An empty endpoint is that of the loader's environment."""
    if endpoint:
        return place == hub_place(endpoint, repo)
    return re.fullmatch(rf"{re.escape(HUB_PLACE)}https?://[^/]+(/[^?#]*)?/{re.escape(repo)}", place) is not None


def revision_id(digest: str) -> str:
    """Returns the name of a revision: ``r-`` and the first 32 hex digits of its digest.

    128 bits, so that no other revision with the same name can be computed, whose entry would be in the way.
    """
    return "r-" + digest.removeprefix("sha256:")[:32]


def entry_name(revision: str, layout: Layout, computed_buffers: ComputedBuffers = ComputedBuffers.SEPARATE) -> str:
    """Returns the name of the cache entry: the revision's name, followed by what differs from the default layout.

    Args:
        revision: The revision's name.
        layout: The layout of the files.
        computed_buffers: Where the Safetensors layout has computed buffers; no effect in the Tensorizer layout.
    """
    if layout is not Layout.SAFETENSORS:
        return f"{revision}-{layout.value}"
    return revision if computed_buffers is ComputedBuffers.SEPARATE else f"{revision}-{computed_buffers.value}"
