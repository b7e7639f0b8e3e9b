"""Whether what an entry holds is what a load wants. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.cache.manifest import Manifest, SourceRecord
    from tonnage.contract import Verify
    from tonnage.source.resolve import Resolved, ResolvedObject


class Shortfall(enum.Enum):
    """What an entry lacks."""

    NOTHING = "nothing"
    VERIFICATION = "verification"
    """All bytes are there, but were checked less far than is wanted and possible."""
    OBJECTS = "objects"
    """Objects are missing, as when other ranks were loaded before."""


def shortfall(manifest: Manifest, resolved: Resolved, wanted: Verify) -> Shortfall:
    """Says what the entry lacks for the objects of ``resolved``, checked as far as ``wanted``."""
    records = [held(manifest, item) for item in resolved.objects]
    if any(record is None for record in records):
        return Shortfall.OBJECTS
    if any(_unchecked(record, wanted) for record in records if record is not None):
        return Shortfall.VERIFICATION
    return Shortfall.NOTHING


def missing(manifest: Manifest | None, resolved: Resolved) -> Sequence[ResolvedObject]:
    """Returns the objects that the entry does not hold."""
    return [item for item in resolved.objects if manifest is None or held(manifest, item) is None]


def held(manifest: Manifest, item: ResolvedObject) -> SourceRecord | None:
    """Returns the record of this very object, or None."""
    pin = item.pin
    wanted = (item.place, pin.key, pin.size, pin.etag, pin.version_id)
    for record in manifest.sources:
        if (record.place, record.key, record.size, record.etag, record.version_id) == wanted:
            return record
    return None


def count_segments(manifest: Manifest) -> int:
    """Returns how many files of the entry hold tensors."""
    return sum(file.kind in {"shard", "object"} for file in manifest.files)


def _unchecked(record: SourceRecord, wanted: Verify) -> bool:
    reachable = min(wanted, record.strongest, key=lambda level: level.strength)
    return record.kind == "tensors" and record.verified.strength < reachable.strength
