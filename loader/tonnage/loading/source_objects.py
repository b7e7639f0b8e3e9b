"""Reads what a load must know of its objects before it can plan: their indexes, and how they are verified.

A module of its own with few imports, because the first requests of a load are sent from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache.stream import forget_failure, reset_stream
from tonnage.loading.indexes import HeadCheck, read_indexes
from tonnage.loading.object_checks import find_object_checks
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.cache.entry import Entry, Published
    from tonnage.contract import Verify
    from tonnage.loading.peers.headers_file import KnownHeaders
    from tonnage.loading.peers.session import LoadPeers
    from tonnage.planning.blueprint import SourceObject
    from tonnage.planning.object_checks import ObjectCheck
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision


class SourceObjects(Record, frozen=True):
    """The objects that an entry lacks.

    Attributes:
        items: The objects.
        sources: The same, with what was read of them.
        checks: How those are verified that have a checksum at their source, by index.
        known: What a peer has of them; None: nothing.
        head_check: Asks whether an object still begins as it was read.
    """

    items: Sequence[ResolvedObject]
    sources: Sequence[SourceObject]
    checks: Mapping[int, ObjectCheck]
    known: KnownHeaders | None
    head_check: HeadCheck


def read_missing_objects(
    entry: Entry,
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    existing: Published | None,
    peers: LoadPeers | None,
    *,
    level: Verify,
    may_replan: bool,
    deadline: float | None,
    canceled: Callable[[], bool],
    on_retry: Callable[[], None],
) -> SourceObjects:
    """Reads the indexes of the objects that the entry lacks, and clears what readers see of an earlier load.

    Args:
        entry: The entry.
        resolved: The revision.
        items: Its objects that the entry lacks.
        existing: Manifest and tensors of the files already published; None if there are none.
        peers: Those that may have indexes; None: only the source is asked.
        level: The requested level.
        may_replan: Whether the load may be planned again if an index turns out to be damaged.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        canceled: Polled; return True to cancel.
        on_retry: Called for each retry of a request.

    Raises:
        TonnageError: A request failed after all retries, or an index is damaged.
    """
    forget_failure(entry)
    reset_stream(entry, None if existing is None else existing.manifest)
    known = None if peers is None else peers.known_headers(items)
    sources = read_indexes(resolved, items, known=known, deadline=deadline, canceled=canceled, on_retry=on_retry)
    checks = find_object_checks(
        resolved,
        items,
        sources,
        level=level,
        known=known,
        deadline=deadline,
        canceled=canceled,
        on_retry=on_retry,
    )
    head_check = HeadCheck(resolved, items, sources, enabled=may_replan, deadline=deadline, canceled=canceled)
    return SourceObjects(items, sources, checks, known, head_check)
