"""Which peers a load asks, and which it no longer does, from how they answered. Pure: the caller has the clock."""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_SLOTS_PER_PEER = 4
MIN_SLOTS_PER_PEER = 2
"""Requests at one peer at a time."""
ENOUGH_SLOTS = 12
"""Requests to all peers at a time from which on more of them only make each one slower."""
MAX_STRIKES = 2
"""Stalls or errors in a row after which a peer is left alone."""
STRIKE_SECONDS = 0.5
"""Failures within so many seconds count once: when a peer goes away, all requests at it fail together."""
REST_SECONDS = 30.0
"""For how long it is; then it is tried again, as its pod may have been replaced."""
MAX_RESTS = 3
"""After so many rests it is dropped for the rest of the load."""
BUSY_SECONDS = 0.5
MAX_BUSY_SECONDS = 8.0
"""A peer that has no connection left is asked again after a delay that doubles up to this."""
FIRST_REQUEST_SECONDS = 10.0
MIN_REQUEST_SECONDS = 3.0
MAX_REQUEST_SECONDS = 30.0
SLOWER = 8.0
"""A request may take so many times as long as the average one before it counts as a stall."""


def slots_per_peer(peers: int) -> int:
    """Returns how many requests are at one peer at a time, with so many peers."""
    return max(MIN_SLOTS_PER_PEER, min(MAX_SLOTS_PER_PEER, ENOUGH_SLOTS // max(peers, 1)))


class PeerFault(enum.StrEnum):
    """What was wrong with an answer."""

    STALL = "Stalled"
    """It was too slow, or nothing arrived."""
    ERROR = "Unreachable"
    """No connection, a broken one, or an error of the server."""
    BUSY = "Busy"
    """It serves as many loaders as it may. No fault of its own."""
    DENIED = "Denied"
    """It did not accept the pass."""
    MOVED = "Moved"
    """The file is not there: the entry was published or evicted since it was looked at."""
    OTHER_ENTRY = "OtherEntry"
    """It serves something else than this entry."""
    WRONG_BYTES = "WrongBytes"
    """Bytes of it did not match a hash of the source."""


@dataclass(slots=True)
class _Record:
    in_flight: int = 0
    strikes: int = 0
    struck_at: float = -1e9
    rests: int = 0
    busy: int = 0
    not_before: float = 0.0
    seconds: float = 0.0
    dropped: PeerFault | None = None


class PeerLedger:
    """How each peer has answered so far, by the name of its node.

    Attributes:
        slots: Requests at one peer at a time.
    """

    def __init__(self) -> None:
        self.slots = MAX_SLOTS_PER_PEER
        self._records: dict[str, _Record] = {}
        self._seconds_per_byte = 0.0

    @property
    def bytes_per_second(self) -> float:
        """What all requests that are at peers now bring together, if they are as fast as those before."""
        in_flight = sum(record.in_flight for record in self._records.values())
        return in_flight / self._seconds_per_byte if self._seconds_per_byte else 0.0

    @property
    def asks(self) -> bool:
        """Whether there is a request at any peer."""
        return any(record.in_flight for record in self._records.values())

    def may_ask(self, node: str, *, now: float) -> bool:
        """Returns whether a request may be sent to a peer now."""
        record = self._records.get(node)
        if record is None:
            return True
        slots = self.slots if not record.strikes and not record.rests else 1
        return record.dropped is None and record.in_flight < slots and record.not_before <= now

    def is_resting(self, node: str, *, now: float) -> bool:
        """Returns whether a peer is not asked for some time, so that what it has must come from elsewhere."""
        record = self._records.get(node)
        return record is not None and (record.dropped is not None or record.not_before > now + MAX_BUSY_SECONDS)

    def is_dropped(self, node: str) -> bool:
        """Returns whether a peer is not asked again in this load."""
        record = self._records.get(node)
        return record is not None and record.dropped is not None

    def in_flight(self, node: str) -> int:
        """Returns the number of requests at a peer."""
        record = self._records.get(node)
        return 0 if record is None else record.in_flight

    def sent(self, node: str) -> None:
        """A request was sent."""
        self._records.setdefault(node, _Record()).in_flight += 1

    def succeeded(self, node: str, *, size: int, seconds: float) -> None:
        """A request was answered in full."""
        record = self._records.setdefault(node, _Record())
        record.in_flight = max(0, record.in_flight - 1)
        record.strikes = record.busy = 0
        each = seconds / max(size, 1)
        self._seconds_per_byte = each if not self._seconds_per_byte else 0.8 * self._seconds_per_byte + 0.2 * each

    def failed(self, node: str, fault: PeerFault, *, now: float) -> bool:
        """A request was not answered in full. Returns whether the peer is dropped for it.

        Args:
            node: The peer.
            fault: What was wrong.
            now: Time in seconds, on the clock of ``may_ask``.
        """
        record = self._records.setdefault(node, _Record())
        record.in_flight = max(0, record.in_flight - 1)
        if fault is PeerFault.BUSY:
            record.not_before = now + min(MAX_BUSY_SECONDS, BUSY_SECONDS * 2**record.busy)
            record.busy = min(record.busy + 1, 10)
            return False
        if fault is PeerFault.MOVED:
            record.not_before = now + BUSY_SECONDS
            return False
        if fault is PeerFault.DENIED:
            record.not_before = now + 1.0
        if fault in {PeerFault.STALL, PeerFault.ERROR, PeerFault.DENIED}:
            if now - record.struck_at < STRIKE_SECONDS:
                return False
            record.struck_at = now
            record.strikes += 1
            if record.strikes < MAX_STRIKES:
                return False
            record.strikes = 0
            record.rests += 1
            record.not_before = now + REST_SECONDS
            if record.rests < MAX_RESTS:
                return False
        return self.drop(node, fault)

    def drop(self, node: str, fault: PeerFault) -> bool:
        """Drops a peer for the rest of the load. Returns whether it was not dropped before."""
        record = self._records.setdefault(node, _Record())
        is_new = record.dropped is None
        record.dropped = record.dropped or fault
        return is_new

    def suspend(self, node: str, *, until: float) -> None:
        """Leaves a peer alone until a time, because one of its answers is in doubt."""
        record = self._records.setdefault(node, _Record())
        record.not_before = max(record.not_before, until)

    def resume(self, node: str, *, now: float) -> None:
        """Asks a peer again, because its answer was right."""
        record = self._records.setdefault(node, _Record())
        record.not_before = min(record.not_before, now)

    def request_seconds(self, size: int) -> float:
        """Returns for how long a request of ``size`` bytes may take."""
        if not self._seconds_per_byte:
            return FIRST_REQUEST_SECONDS
        return max(MIN_REQUEST_SECONDS, min(MAX_REQUEST_SECONDS, SLOWER * self._seconds_per_byte * size))
