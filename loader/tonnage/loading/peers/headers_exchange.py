"""The headers file of a load that is running: taken from a peer when one has it, and shown to others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tonnage.cache.filesystem import write_atomically
from tonnage.cache.peer_ranges import HEADERS_NAME
from tonnage.errors import CacheDamaged, CacheNotWritable, InsufficientSpace
from tonnage.loading.peers.headers_file import decode_headers, headers_digest, known_headers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.cache.entry import Entry
    from tonnage.loading.peers.client import PeerResponse
    from tonnage.loading.peers.headers_file import KnownHeaders
    from tonnage.source.resolve import ResolvedObject
    from tonnage.transfer.peer_view import PeerView

AGAIN_SECONDS = 2.0
"""A peer that did not send the headers file is asked for it again after this time."""


class HeadersOfPeers:
    """What one load has of the headers file. One thread asks peers; another one takes what has come.

    Attributes:
        digest: SHA-256 of the file that this load shows to peers; empty: none yet.
    """

    def __init__(self) -> None:
        self.digest = ""
        self._awaited: tuple[Sequence[ResolvedObject], Entry] | None = None
        self._asks = False
        self._not_before: dict[str, float] = {}
        self._lock = threading.Lock()
        self._found: Mapping[int, Sequence[tuple[int, bytes]]] | None = None

    def expect(self, items: Sequence[ResolvedObject], entry: Entry) -> None:
        """Begins to look for the file, for these objects of an entry."""
        self._awaited = items, entry

    def next_peer(self, expected: str, views: Collection[PeerView], now: float) -> PeerView | None:
        """Returns the peer that is to be asked for the file now; None: none.

        Args:
            expected: The file's SHA-256, from the controller; empty: not known.
            views: The peers, as they were last seen.
            now: Monotonic, in seconds.
        """
        if self._asks or self.digest or not expected or self._awaited is None:
            return None
        for view in views:
            if may_have_headers(view, expected) and self._not_before.get(view.node, 0.0) <= now:
                self._not_before[view.node] = now + AGAIN_SECONDS
                self._asks = True
                return view
        return None

    def received(self, response: PeerResponse, expected: str) -> None:
        """Takes over a peer's answer, if it is the expected file."""
        self._asks = False
        found = self.take_over(response.body, expected) if response.status == 200 else None
        if found is not None:
            with self._lock:
                self._found = found.ranges

    def take_over(self, data: bytes, expected: str) -> KnownHeaders | None:
        """Shows the file to peers, and returns what it has; None if it is not the expected one, or can't be read."""
        awaited = self._awaited
        if self.digest or awaited is None or headers_digest(data) != expected:
            return None
        items, entry = awaited
        try:
            found = known_headers(decode_headers(data), items)
        except CacheDamaged:
            return None
        with self._lock:
            if self._awaited is None:
                return None  # the other thread has taken it over meanwhile
            self._awaited = None
        self.show(entry, data)
        return found

    def show(self, entry: Entry, data: bytes) -> str:
        """Shows a headers file to peers. Returns its SHA-256; empty if it can't be written, and is not shown."""
        try:
            write_atomically(entry.private_dir / HEADERS_NAME, data, sync=False)
        except (CacheNotWritable, InsufficientSpace):
            return ""
        self.digest = headers_digest(data)
        return self.digest

    def take(self) -> Mapping[int, Sequence[tuple[int, bytes]]] | None:
        """Returns once what has come: start and bytes of each range, by the object's index; None: nothing new."""
        with self._lock:
            found, self._found = self._found, None
        return found


def may_have_headers(view: PeerView, expected: str) -> bool:
    """Returns whether a peer may have the headers file: it shows its digest, or its entry is complete."""
    return not view.partial or view.headers == expected
