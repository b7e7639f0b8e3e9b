"""Decides how the objects of a load are verified that hold no hashes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract import ChecksumAlgorithm, ObjectChecksum, Verify, parse_checksum
from tonnage.format.checksums import crc_function
from tonnage.planning.object_checks import CheckedRange, ObjectCheck
from tonnage.source.client import Client
from tonnage.source.object_parts import PartsRequest, find_parts
from tonnage.source.resolve import no_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.loading.peers.headers_file import KnownHeaders
    from tonnage.planning.blueprint import SourceObject
    from tonnage.source.object_parts import FoundParts
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision


def find_object_checks(
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    objects: Sequence[SourceObject],
    *,
    level: Verify,
    known: KnownHeaders | None = None,
    deadline: float | None,
    canceled: Callable[[], bool],
    on_retry: Callable[[], None],
) -> dict[int, ObjectCheck]:
    """Returns the checks of those objects that have a checksum at their source, by index.

    Where it is a checksum of the parts of an upload, the store is asked where these end.

    Args:
        resolved: The revision.
        items: The objects to load.
        objects: The same, with what was read of them.
        level: The requested level.
        known: The headers file, if its digest is known: it has a CRC-32 of each object that holds no hashes.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        canceled: Polled; return True to cancel.
        on_retry: Called for each retry of a request.

    Raises:
        NoChecksum: A ``.tensors`` file without hashes can't be verified at the level.
        TonnageError: The deadline passed, or the load was canceled.
    """
    if level.strength < Verify.CRC32.strength:
        return {}
    wanted = {
        at: checksum
        for at, (item, source) in enumerate(zip(items, objects, strict=True))
        if not source.has_hashes
        and (checksum := parse_checksum(item.pin.checksum)) is not None
        and (not checksum.algorithm.is_crc or crc_function(checksum.algorithm) is not None)
    }
    checks = {
        at: ObjectCheck(checksum, (CheckedRange(0, items[at].pin.size),))
        for at, checksum in wanted.items()
        if not checksum.parts
    }
    for at, crc32 in ({} if known is None else known.crc32s).items():
        if at not in wanted and not objects[at].has_hashes:
            checksum = ObjectChecksum(ChecksumAlgorithm.CRC32, crc32.to_bytes(4, "big"))
            checks[at] = ObjectCheck(checksum, (CheckedRange(0, items[at].pin.size),), is_stated=False)
    in_parts = {at: checksum for at, checksum in wanted.items() if checksum.parts}
    if in_parts:
        requests = [
            PartsRequest(items[at].target, resolved.providers[items[at].source], checksum)
            for at, checksum in in_parts.items()
        ]
        with Client(deadline=deadline, canceled=canceled, on_retry=on_retry) as client:
            for (at, checksum), found in zip(in_parts.items(), find_parts(client, requests), strict=True):
                checks[at] = _check_of_parts(checksum, found)
    _require_checks(level, objects, checks)
    return checks


def _check_of_parts(checksum: ObjectChecksum, found: FoundParts) -> ObjectCheck:
    ranges, start = [], 0
    for part in found.parts:
        expected = part.checksum if len(part.checksum) == checksum.algorithm.size else b""
        ranges.append(CheckedRange(start, start + part.size, expected))
        start += part.size
    return ObjectCheck(checksum, tuple(ranges), certain=found.certain)


def _require_checks(level: Verify, objects: Sequence[SourceObject], checks: Mapping[int, ObjectCheck]) -> None:
    """Checks before the transfer that ``.tensors`` files without hashes can be verified at the level.

    Raises:
        NoChecksum: The source of one states no checksum that reaches it.
    """
    for index, source in enumerate(objects):
        check = checks.get(index)
        reached = Verify.SIZE if check is None else check.level
        if level is not Verify.BEST and source.unhashed and reached.strength < level.strength:
            raise no_checksum(source.label, None if check is None else check.checksum, level)
