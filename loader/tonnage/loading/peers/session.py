"""The peers of one load, from its beginning to its report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import msgspec

from tonnage.cache.peer_ranges import FileRanges, PeerRanges, remove_ranges
from tonnage.contract import ObjectPin, S3Source, revision_digest
from tonnage.errors import TonnageError
from tonnage.loading.peers.finder import PeerFinder
from tonnage.loading.peers.headers_file import build_headers, decode_headers, entry_source
from tonnage.loading.peers.proofs import make_proofs
from tonnage.source.resolve import resolve

PEERS_SECONDS = 10.0
"""For how long peers are asked in place of a store that can't be reached."""

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.cache.entry import Entry
    from tonnage.cache.partial import PartialDirectory
    from tonnage.contract import Plan
    from tonnage.contract.plan import PeerAccess, Reporting
    from tonnage.loading.peers.headers_file import KnownHeaders
    from tonnage.planning.blueprint import Blueprint, SourceObject
    from tonnage.planning.segments import Segment
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision
    from tonnage.transfer.source_headers import HeaderCollector
    from tonnage.transfer.transfer_spec import TransferResult


class LoadPeers:
    """The peers of one load. Use it as a context manager.

    Args:
        finder: Finds them.
        entry: The entry.
        resolved: The revision.
    """

    def __init__(self, finder: PeerFinder, entry: Entry, resolved: ResolvedRevision) -> None:
        self.finder = finder
        self._entry = entry
        self._resolved = resolved

    def __enter__(self) -> Self:
        self.finder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finder.close()

    def known_headers(self, items: Sequence[ResolvedObject]) -> KnownHeaders | None:
        """Returns what a peer's headers file has of the objects, if its digest is the expected one; else None.

        If there is none yet, the transfer may get it later.
        """
        headers = self.finder.headers
        headers.expect(items, self._entry)
        data = self.finder.fetch_headers()
        return None if data is None else headers.take_over(data, self.finder.expected_headers)

    def show(
        self,
        partial: PartialDirectory,
        blueprint: Blueprint,
        items: Sequence[ResolvedObject],
        objects: Sequence[SourceObject],
        *,
        is_whole: bool,
    ) -> None:
        """Begins to show peers what this load has finished, and the headers file when it can be made.

        Args:
            partial: The directory of the unfinished files.
            blueprint: The files, and which bytes go where.
            items: The objects that are loaded.
            objects: The same, with their indexes.
            is_whole: Whether these are all objects of the entry.
        """

        def build(collected: HeaderCollector) -> bytes | None:
            return build_headers(self._resolved, items, objects, blueprint.segments, collected)

        self.finder.show(
            PeerRanges(
                digest=self._resolved.digest,
                partial=partial.path.name,
                sources=[entry_source(item) for item in self._resolved.objects],
                files=[FileRanges(path=file.path, size=file.size, ranges=[]) for file in blueprint.files],
                headers=self.finder.headers.digest,
            ),
            build if is_whole else None,
        )

    def keep_headers(
        self,
        items: Sequence[ResolvedObject],
        objects: Sequence[SourceObject],
        segments: Sequence[Segment],
        collected: HeaderCollector,
    ) -> str:
        """Writes the headers file of a load that is complete, and returns its digest; empty if there is none."""
        remove_ranges(self._entry)
        data = build_headers(self._resolved, items, objects, segments, collected)
        return "" if data is None else self.finder.headers.show(self._entry, data)

    def notes(self, outcome: TransferResult) -> list[str]:
        """Returns what the report mentions of the peers."""
        notes = []
        if outcome.peer_bytes:
            source_bytes = outcome.downloaded - outcome.peer_bytes
            notes.append(f"{outcome.peer_bytes:,} bytes came from peers, {source_bytes:,} from the source.")
        elif self.finder.problem:
            notes.append(self.finder.problem)
        notes += [f"Peer {each.node} was dropped ({each.reason}): {each.why}" for each in outcome.dropped_peers]
        return notes


def find_peers(
    plan: Plan,
    access: PeerAccess,
    reporting: Reporting,
    entry: Entry,
    resolved: ResolvedRevision,
    environment: Mapping[str, str],
) -> LoadPeers:
    """Returns the peers of a load.

    Args:
        plan: The plan.
        access: Its peers.
        reporting: Its report endpoint.
        entry: The entry.
        resolved: The revision.
        environment: Has this node's name.
    """

    def proofs() -> tuple[str, ...]:
        try:
            credentials = [provider.current() for provider in resolved.providers]
        except TonnageError:
            return ()
        return make_proofs(resolved.objects, credentials, now=time.time())

    node = environment.get("TONNAGE_NODE", "")
    finder = PeerFinder(plan, access, reporting, entry, digest=resolved.digest, node=node, make_proofs=proofs)
    return LoadPeers(finder, entry, resolved)


def resolve_with_peers(
    plan: Plan,
    access: PeerAccess,
    reporting: Reporting,
    entry: Entry,
    environment: Mapping[str, str],
    error: TonnageError,
    *,
    canceled: Callable[[], bool],
) -> ResolvedRevision:
    """Resolves a plan whose store can't be reached, by the pins in the headers file of a peer.

    They are believed by the plan's digest. Access is proven by what peers remember of this caller.

    Args:
        plan: The plan; it has one source and the digest of its revision.
        access: Its peers.
        reporting: Its report endpoint.
        entry: The entry.
        environment: Environment variables.
        error: Why the store can't be asked; raised again, with what the peers answered, if they can't help.
        canceled: Polled; True ends the wait.
    """
    node = environment.get("TONNAGE_NODE", "")
    finder = PeerFinder(plan, access, reporting, entry, digest=plan.expected_digest, node=node, make_proofs=lambda: ())
    finder.start()
    try:
        file = None
        until = time.monotonic() + PEERS_SECONDS
        while file is None and time.monotonic() < until and not canceled():
            data = finder.fetch_headers()
            file = None if data is None else decode_headers(data)
            time.sleep(0.0 if file else 0.2)
    finally:
        finder.close()
    (source,) = plan.sources
    if file is None or not isinstance(source, S3Source):
        why = finder.problem or "None has the entry whose digest the operator knows."
        raise type(error)(f"{error.message} Peers could not take its place: {why}", remedy=error.remedy) from error
    pins = tuple(ObjectPin(key=pin.key, size=pin.size, etag=pin.etag, version_id=pin.version_id) for pin in file.pins)
    if revision_digest((pin.place, own) for pin, own in zip(file.pins, pins, strict=True)) != plan.expected_digest:
        raise error
    pinned = msgspec.structs.replace(plan, sources=(msgspec.structs.replace(source, objects=pins),))
    return resolve(pinned, environment=environment, asks=False)
