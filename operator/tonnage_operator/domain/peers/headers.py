"""Which loads of a fleet read an entry's headers for all others, and the digest that they reported. Pure.

Headers are many short ranges of the source, which answers only so many requests a second. So the first loads read them
all, before everything else, and report the digest of the headers file; the others take it from peers by that digest. It
is believed as that of a load that has ended is: only Jobs of the object itself count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage.contract.peers import AWAIT_HEADERS, READ_HEADERS

if TYPE_CHECKING:
    from collections.abc import Collection

READERS: Final = 2
"""Loads that read all headers at a time: one may end or be slow."""
MAX_READERS: Final = 6
"""Loads that are to read, one after the other: those of releases that can't never report a digest."""
READING_SECONDS: Final = 120.0
"""For how long others are to wait for one of them. Each also has a limit of its own, by the number of headers."""


class HeaderReaders:
    """The loads that read the headers of one entry, for one object.

    Attributes:
        digest: SHA-256 of the headers file, as the first of them has reported it; empty: none has.
    """

    def __init__(self) -> None:
        self.digest = ""
        self._since: dict[str, float] = {}

    def task(self, node: str, now: float, *, may_read: bool, loading: Collection[str]) -> str:
        """Returns what a load does about headers; see ``PeersAnswer.headers``.

        Args:
            node: The load's node.
            now: Monotonic, in seconds.
            may_read: Whether the digest that it reports would be believed, and its node has a ready peer.
            loading: The nodes whose loaders have lately asked.
        """
        reading = [each for each, since in self._since.items() if each in loading and now - since < READING_SECONDS]
        if node in reading:
            return READ_HEADERS
        if self.digest:
            return AWAIT_HEADERS
        if may_read and node not in self._since and len(reading) < READERS and len(self._since) < MAX_READERS:
            self._since[node] = now
            return READ_HEADERS
        return AWAIT_HEADERS if reading else ""

    def note(self, node: str, digest: str) -> None:
        """Notes the digest that a load has reported; the first one counts, and only of one that was to read."""
        if digest and node in self._since and not self.digest:
            self.digest = digest
