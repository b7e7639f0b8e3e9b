"""By what the objects of an entry were verified, in words. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tonnage.contract import Verify, parse_checksum
from tonnage.contract.report import VERIFIED_BY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.cache.manifest import SourceRecord

NO_CHECKSUM = "NoChecksum:"
"""What the remark on objects begins with of which only the size was compared."""


def verified_by(sources: Sequence[SourceRecord]) -> str:
    """Returns by what objects were verified, and how many by each: ``CRC64NVME: 30 objects, size only: 1 object``."""
    counts = Counter(means_of(source) for source in sources)
    parts = (
        f"{means}: {count} {'object' if count == 1 else 'objects'}"
        for means, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    )
    return ", ".join(parts)[:VERIFIED_BY_LIMIT]


def no_checksum_note(sources: Sequence[SourceRecord]) -> str:
    """Returns a remark on objects of which only the size was compared; empty if there are none."""
    lacking = [source.key for source in sources if source.verified is Verify.SIZE]
    if not lacking:
        return ""
    others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return (
        f"{NO_CHECKSUM} {lacking[0]}{others}: verified by size and revision only, as the source has no checksum to "
        "compare with. From now on, `tonnage verify` compares the bytes with the CRC-32 of what was received."
    )


def means_of(source: SourceRecord) -> str:
    """Returns by what an object was verified."""
    checksum = parse_checksum(source.checksum)
    if checksum is not None:
        return checksum.algorithm.words + (" of parts" if checksum.parts else "")
    if source.verified.strength >= Verify.CRC32.strength:
        return f"{source.verified.name} of tensors"
    return "size only" if source.verified is Verify.SIZE else "nothing"
