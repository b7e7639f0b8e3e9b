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

ENTRY_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""What a cache entry's name may be: it becomes a directory's name and a label's value."""


def revision_digest(objects: Iterable[tuple[str, ObjectPin]]) -> str:
    """Returns ``sha256:<hex>`` over the objects of a revision.

    Args:
        objects: Pairs of the place (bucket; empty for HTTP, whose keys are whole URLs) and the pinned object, in any
            order. Endpoint and credentials don't take part: the same bucket reached otherwise is the same revision.
    """
    rows = sorted([place, pin.key, pin.size, pin.etag, pin.version_id] for place, pin in objects)
    return "sha256:" + hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def revision_id(digest: str) -> str:
    """Returns the short name of a revision: ``r-`` and the first 12 hex digits of its digest."""
    return "r-" + digest.removeprefix("sha256:")[:12]


def entry_name(revision: str, layout: Layout) -> str:
    """Returns the cache entry's name: the revision's id, and its layout where that is not the default one."""
    return revision if layout is Layout.SAFETENSORS else f"{revision}-{layout.value}"
