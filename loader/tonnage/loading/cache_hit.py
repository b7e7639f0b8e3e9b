"""Compares an entry with a resolved revision to decide whether a load is a hit. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.cache.manifest import Manifest, SourceRecord
    from tonnage.contract import Verify
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision


class Shortfall(enum.Enum):
    """What an entry lacks for a load."""

    NOTHING = "nothing"
    VERIFICATION = "verification"
    """All objects are present, but verified at a lower level than requested and possible."""
    OBJECTS = "objects"
    """Objects are missing, for example because other ranks were loaded before."""


def find_shortfall(manifest: Manifest, resolved: ResolvedRevision, requested_level: Verify) -> Shortfall:
    """Returns what the entry lacks for the objects of ``resolved``, verified at ``requested_level``."""
    records = [find_source_record(manifest, item) for item in resolved.objects]
    if any(record is None for record in records):
        return Shortfall.OBJECTS
    if any(_needs_verification(record, requested_level) for record in records if record is not None):
        return Shortfall.VERIFICATION
    return Shortfall.NOTHING


def missing_objects(manifest: Manifest | None, resolved: ResolvedRevision) -> Sequence[ResolvedObject]:
    """Returns the objects that are not in the entry."""
    return [item for item in resolved.objects if manifest is None or find_source_record(manifest, item) is None]


def find_source_record(manifest: Manifest, item: ResolvedObject) -> SourceRecord | None:
    """Returns the record of exactly this version of the object, or None."""
    pin = item.pin
    wanted = (item.place, pin.key, pin.size, pin.etag, pin.version_id)
    for record in manifest.sources:
        if (record.place, record.key, record.size, record.etag, record.version_id) == wanted:
            return record
    return None


def _needs_verification(record: SourceRecord, requested_level: Verify) -> bool:
    reachable = min(requested_level, record.strongest, key=lambda level: level.strength)
    return record.kind == "tensors" and record.verified.strength < reachable.strength
