"""Chooses what a load fetches next, and from which peer or from the source. Pure: no clock, no socket.

A unit that peers have is taken from one of them: the rarest among what a random one of up to four free peers has, so
that rare units spread first. The source is asked for what no peer has or is fetching, in the order of
``UnitIndex.source_order``, by which nodes fetch different extents. What peers have or fetch comes from the source, too,
if their answers stop, or if it is much faster than all of them. A unit that has failed at peers ``MAX_TRIES`` times
comes from the source, and so does what all peers are too busy for.

Headers are many short ranges, and a source answers only so many requests a second. One or two nodes of a fleet read
all of them before everything else, and the others wait some time for what peers then have of them: see
``PeersAnswer.headers``.

Sets of units are integers with one bit for each unit.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tonnage.contract.peers import AWAIT_HEADERS, READ_HEADERS
from tonnage.transfer.part_queue import Delayed, Part
from tonnage.transfer.peer_index import bits_of, first_from, follows, with_short_around
from tonnage.transfer.peer_ledger import slots_per_peer
from tonnage.transfer.peer_units import SMALL_BYTES
from tonnage.transfer.source_turns import SourceTurns

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.transfer.peer_index import Extent, UnitIndex
    from tonnage.transfer.peer_ledger import PeerLedger
    from tonnage.transfer.peer_units import Unit
    from tonnage.transfer.source_share import SourceShare

MAX_TRIES = 4
"""Failures of a unit at peers, after which it comes from the source."""
RANDOM_PEERS = 4
SMALL_SLOTS = 4
"""Requests at a time for short ranges that only the source has, such as headers, beside those for extents."""
READING_SLOTS = 32
"""The same of a node that reads all headers for others."""
AWAIT_SECONDS = 5.0
SOURCE_REQUESTS = 5500
"""A node waits for headers for so long, or for as long as a source that answers so many requests a second would need
for all nodes of the fleet, if that is longer. Amazon S3 answers so many for a prefix."""
MIN_SOURCE_SLOTS = 2
"""Connections to the source that a load has, however many peers share it."""
BEGIN_SECONDS = 1.5
BEGIN_SHARING = 8
"""At first it is not known who else loads: for so long, a load takes as few connections as if so many others did."""
NAMED_SECONDS = 5.0
"""For how long a peer that was named counts as one that shares the source, before it has shown anything."""
IDLE_SECONDS = 1.0
"""For how long peers may not answer, or a connection to the source stays unused, while they have or fetch all that is
left."""
IDLE_STEP_SECONDS = 0.2
"""The same again, once that time has passed."""
MUCH_FASTER = 2.0
"""The source is used for what peers have, too, if it sends so many times as much as all peers together."""
ANSWER_SECONDS = 3.0
"""A node that shares the source with unknown nodes waits for its peers if none of them answers for so long."""
RATE_KNOWN_SECONDS = 5.0
"""After this time without a part from the source, it is not known how fast that is."""


class Holding(NamedTuple):
    """The units that a peer has, and those that it is fetching from the source or will fetch next."""

    have: int = 0
    pending: int = 0


@dataclass(slots=True)
class _Known:
    """A peer. ``cursor`` is where this node goes on at it: units in a row complete a tensor, which others then get."""

    node: str
    have: int
    pending: int
    cursor: int


class PeerQueue:
    """What is not yet assigned to a worker. Used in place of ``PartQueue``.

    Args:
        units: All units.
        index: Finds them.
        node: This node's name; empty: a random one.
        ledger: How the peers answered.
        first: The units, beside short ones that only the source has, without which the headers are not complete.

    Attributes:
        remaining: Number of bytes that are not assigned.
        max_part_size: Not used; units have their size.
        max_open: Not used; nodes that fetch units in the same order would not complement each other.
    """

    def __init__(
        self, units: Sequence[Unit], index: UnitIndex, *, node: str, ledger: PeerLedger, first: int = 0
    ) -> None:
        self._units = list(units)
        self._index = index
        seed = hashlib.sha256(node.encode()).digest() if node else None
        self._random = random.Random(seed)  # noqa: S311  # a choice among peers, no secret
        self._node = node or f"{self._random.getrandbits(64):x}"
        self._ledger = ledger
        self._known: dict[str, _Known] = {}
        self._named: frozenset[str] = frozenset()
        self._named_until = 0.0
        self._began: float | None = None
        self._order: list[Extent] | None = None
        self._extent = 0
        self._at_least: list[int] = []
        self._any_have = self._any_pending = self._headers = 0
        self._wanted = (1 << len(self._units)) - 1
        self._for_peers = index.for_peers
        self._first = first | index.small
        self._task = ""
        self._far: Collection[str] = ()
        self._awaits_since: float | None = None
        self._tries: dict[int, int] = {}
        self._cursor = self._random.randrange(len(self._units)) if self._units else 0
        self._delayed: list[Delayed] = []
        self._number = 0
        self._in_flight: dict[tuple[int, int], tuple[int, float]] = {}
        self._small_in_flight: set[tuple[int, int]] = set()
        self._idle_since: float | None = None
        self._answered = 0.0
        self._source_seconds_per_byte = 0.0
        self._source_answered = float("-inf")
        self.max_part_size = 0
        self.max_open: int | None = None
        self.remaining = sum(unit.size for unit in self._units)
        self._turns = SourceTurns(index, self._node, self.remaining)

    @property
    def has_peers(self) -> bool:
        """Whether there is any peer that is not dropped."""
        return bool(self._known)

    @property
    def _source_in_flight(self) -> int:
        return len(self._in_flight) - len(self._small_in_flight)

    @property
    def pending(self) -> list[Unit]:
        """The units that peers could serve, and that are being fetched from the source or will be next."""
        found = self._extent & self._wanted
        for number, _ in self._in_flight.values():
            found |= 1 << number if number >= 0 else 0
        return [self._units[number] for number in bits_of(found & self._index.for_peers)]

    def update(
        self,
        holdings: Mapping[str, Holding],
        named: Collection[str],
        *,
        now: float,
        share: SourceShare | None = None,
        headers: str = "",
        far: Collection[str] = (),
    ) -> None:
        """Takes over what peers have now. Peers that are not among ``holdings`` are forgotten.

        Args:
            holdings: What each peer has that has shown anything.
            named: All peers' names.
            now: Current time.
            share: This node's part of the nodes that load; None: not known.
            headers: What it does about headers; see ``PeersAnswer.headers``.
            far: Peers of other zones: they are asked only for what no other peer has.
        """
        self._far = far
        self._task = headers
        if headers == AWAIT_HEADERS and self._awaits_since is None:
            self._awaits_since = now
        names = frozenset(node for node in named if not self._ledger.is_dropped(node))
        if names - self._named:
            self._named_until = now + NAMED_SECONDS
        if names != self._named:
            self._named = names
            self._order = None
        if holdings and not self._known:
            self._answered = now
        known: dict[str, _Known] = {}
        for node, (have, pending) in holdings.items():
            if self._ledger.is_dropped(node):
                continue
            found = self._known.get(node) or _Known(node, 0, 0, self._random.randrange(max(1, len(self._units))))
            found.have, found.pending = have, pending
            known[node] = found
        self._known = known
        self._ledger.slots = slots_per_peer(len(known))
        self._count()
        self._turns.set_share(share)

    @property
    def small_slots(self) -> int:
        """Connections to the source for short ranges, beside those for the rest."""
        return READING_SLOTS if self._task == READ_HEADERS else SMALL_SLOTS

    @property
    def has_read_headers(self) -> bool:
        """Whether this node was to read all headers, and has asked for all of them."""
        return self._task == READ_HEADERS and not self._wanted & self._first and not self._small_in_flight

    @property
    def short_units(self) -> list[tuple[int, Unit]]:
        """The short units that only the source has and that no one was asked for yet, with their numbers."""
        return [(number, self._units[number]) for number in bits_of(self._wanted & self._index.small)]

    def drop(self, numbers: Collection[int]) -> None:
        """Takes units out that need not be fetched, because the headers have come from a peer."""
        for number in numbers:
            self._claim(number)

    def forget(self, node: str) -> None:
        """Removes a peer."""
        if self._known.pop(node, None) is not None:
            self._count()

    def take(self, worker: int, *, slots: int, now: float, max_size: int = 1 << 62) -> Part | None:  # noqa: ARG002
        """Returns the next part, or None if there is none now.

        Args:
            worker: Not used: any worker may fetch any unit.
            slots: Connections to the source.
            now: Current time.
            max_size: Not used.
        """
        if self._delayed and self._delayed[0].when <= now:
            delayed = heapq.heappop(self._delayed).part
            self.remaining -= delayed.end - delayed.start
            self._in_flight[delayed.segment, delayed.start] = -1, now
            return delayed
        return self._take_small(now) or self._take_from_peer(now) or self._take_from_source(slots, now)

    def requeue(self, part: Part, *, not_before: float) -> None:
        """Adds a part that ``take`` returns at ``not_before`` or later, to be fetched from the source."""
        self._number += 1
        self.remaining += part.end - part.start
        heapq.heappush(self._delayed, Delayed(not_before, self._number, part))

    def next_due(self) -> float | None:
        """Returns the time at which the next requeued part is due; None if there is none."""
        return self._delayed[0].when if self._delayed else None

    def finished(self, part: Part, *, end: int, now: float) -> None:
        """A part has ended, whether it was fetched or not: ``end`` is the end of what has arrived."""
        size = end - part.start
        if part.peer:
            self._answered = now if size > 0 else self._answered
            return
        key = part.segment, part.start
        _, since = self._in_flight.pop(key, (-1, now))
        self._small_in_flight.discard(key)
        if size >= SMALL_BYTES:
            self._source_seconds_per_byte, self._source_answered = (now - since) / size, now

    def return_to_peers(self, part: Part, start: int) -> None:
        """Adds what a peer did not send of a part: from ``start`` on. Another peer or the source is asked for it.

        Nothing is left if a request has failed that had sent all, such as one that sends more than was asked for.
        """
        unit = self._units[part.unit]
        if start >= unit.end:
            return
        rest = unit._replace(start=start, offset=unit.offset + start - unit.start)
        self._units[part.unit] = rest
        self._wanted |= 1 << part.unit
        self.remaining += rest.size
        tries = self._tries[part.unit] = self._tries.get(part.unit, 0) + 1
        if tries >= MAX_TRIES:
            self._for_peers &= ~(1 << part.unit)

    def give_back(self, part: Part, start: int, *, now: float) -> bool:
        """Takes back what the source did not send of a part, if peers have all of it: they are asked then.

        Args:
            part: The part.
            start: First byte that has not arrived.
            now: Current time.

        Returns:
            Whether it was taken back; if not, it is for the source alone.
        """
        peers_have = self._elsewhere(now)[0] & self._for_peers
        found: dict[int, Unit] = {}
        number = bisect_right(self._units, (part.segment, start), key=lambda unit: (unit.segment, unit.end))
        while start < part.end:
            unit = self._units[number]
            if not peers_have >> number & 1 or unit.segment != part.segment:
                return False
            found[number] = unit._replace(start=start, offset=unit.offset + start - unit.start)
            start = unit.end
            number += 1
        for number, unit in found.items():
            self._units[number] = unit
            self._wanted |= 1 << number
            self.remaining += unit.size
        return True

    # -- choice

    def _take_small(self, now: float) -> Part | None:
        """Returns a short range that only the source has: without its header, a tensor of peers can't be verified.

        Those of tensors come first whose bytes are on their way from peers, so that they can soon be passed on.
        """
        reads = self._task == READ_HEADERS
        found = self._wanted & (self._first if reads else self._index.small)
        if not found or len(self._small_in_flight) >= self.small_slots:
            return None
        if not reads and (self._awaits_headers(now) or not (self._named or self._known)):
            return None
        part = self._source_part(first_from(found & self._headers or found, self._cursor), now)
        self._small_in_flight.add((part.segment, part.start))
        return part

    def _awaits_headers(self, now: float) -> bool:
        if self._task != AWAIT_HEADERS or self._awaits_since is None:
            return False
        requests = self._index.small.bit_count() * self._turns.nodes
        return now - self._awaits_since < max(AWAIT_SECONDS, requests / SOURCE_REQUESTS)

    def _skipped(self, now: float) -> int:
        """Returns the short units that come with the headers next to them, as long as these come from the source."""
        headers = 0 if self._awaits_headers(now) else self._wanted & self._index.small
        return self._index.between & (headers << 1 | headers >> 1)

    def _take_from_peer(self, now: float) -> Part | None:
        useful = self._wanted & self._for_peers & self._any_have & ~self._skipped(now)
        if not useful:
            return None
        of_far = useful & ~self._near_have(now) if self._far else useful
        free = [
            (known, units)
            for node, known in self._known.items()
            if (units := known.have & (of_far if node in self._far else useful)) and self._ledger.may_ask(node, now=now)
        ]
        if not free:
            return None
        best: tuple[int, int, int, _Known] | None = None
        for known, units in self._random.sample(free, min(RANDOM_PEERS, len(free))):
            found = self._rarest(units, known.cursor)
            key = (found[0], self._ledger.in_flight(known.node))
            if best is None or key < best[:2]:
                best = (*key, found[1], known)
        assert best is not None  # noqa: S101  # there is a free peer, and it has a useful unit
        number, node = best[2], best[3].node
        best[3].cursor = number + 1
        unit = self._claim(number)
        header = self._index.headers[number]
        self._headers |= 1 << header if header >= 0 else 0
        self._ledger.sent(node)
        return Part(
            unit.segment, unit.start, unit.end, peer=node, unit=number, file=unit.file, shift=unit.offset - unit.start
        )

    def _near_have(self, now: float) -> int:
        """Returns what the peers of this zone have that are asked now."""
        found = 0
        for node, known in self._known.items():
            if node not in self._far and not self._ledger.is_resting(node, now=now):
                found |= known.have
        return found

    def _rarest(self, candidates: int, start: int) -> tuple[int, int]:
        """Returns how many peers have the rarest of the candidates, and the first of these from a place on."""
        for count, more in enumerate((*self._at_least[1:], 0), start=1):
            rare = candidates & ~more
            if rare:
                return count, first_from(rare, start)
        return 0, first_from(candidates, 0)

    def _take_from_source(self, slots: int, now: float) -> Part | None:
        have, pending, sharing = self._elsewhere(now)
        self._began = now if self._began is None else self._began
        if self._shares_with_unknown(now):
            return self._take_share(have, pending, slots, self._began, now)
        if now < self._began + BEGIN_SECONDS:
            sharing = max(sharing, BEGIN_SHARING)
        limit = max(MIN_SOURCE_SLOTS, slots // (1 + sharing))
        if self._source_in_flight >= limit:
            return None
        short = self._index.small | self._skipped(now)
        wanted = self._wanted & ~short if self._named or self._known else self._wanted
        allowed = wanted & ~((have | pending) & self._for_peers)
        if allowed:
            self._idle_since = None
            return self._source_part(self._next_of_source(allowed), now)
        if not wanted or not self._may_overlap(limit, now):
            return None
        allowed = wanted & ~have or wanted
        return self._source_part(first_from(allowed, self._random.randrange(len(self._units))), now)

    def _shares_with_unknown(self, now: float) -> bool:
        """Returns whether more nodes load than this one knows. A node that finds no peer at all is alone."""
        return self._turns.nodes > 1 + len(self._named) and (bool(self._known) or now < self._named_until)

    def _take_share(self, have: int, pending: int, slots: int, began: float, now: float) -> Part | None:
        """Returns what this node is to fetch for its fleet, or, after a wait, what others should have fetched."""
        self._turns.measure(self._wanted, began=began, now=now)
        limit = slots // (1 + BEGIN_SHARING) if now < began + BEGIN_SECONDS else slots
        if self._source_in_flight >= max(1, min(self._turns.connections, limit)):
            return None
        wanted = self._wanted & ~(self._index.small | self._skipped(now))
        allowed = self._turns.allowed(wanted, have=have, pending=pending, for_peers=self._for_peers)
        if allowed:
            if not self._extent & allowed:
                self._extent = self._turns.next_extent(allowed)
            return self._source_part(first_from(self._extent & allowed, 0), now)
        self._extent = 0
        receives = self._ledger.asks and now < self._answered + ANSWER_SECONDS
        waits = not receives and not self._source_in_flight and bool(wanted & self._turns.late)
        if self._turns.look(now, waits=waits, receives=receives) and waits:
            return self._take_share(have, pending, slots, began, now)
        return None

    def _next_of_source(self, allowed: int) -> int:
        if not self._named and not self._known:
            number = first_from(allowed, self._cursor)
            short = self._index.small | self._index.between
            while short >> number & 1 and allowed >> (number + 1) & 1 and follows(*self._units[number : number + 2]):
                number += 1  # a header comes with what follows it
            self._cursor = number + 1
            return number
        if not self._extent & allowed:
            if self._order is None:
                self._order = self._index.source_order(self._node, self._named | self._known.keys())
            self._order = [extent for extent in self._order if extent.units & self._wanted]
            self._extent = next((extent.units for extent in self._order if extent.units & allowed), 0)
        return first_from(self._extent & allowed or allowed, 0)

    def _may_overlap(self, slots: int, now: float) -> bool:
        """Returns whether the source is asked for what peers have or fetch. It has so many connections."""
        if not self._known:
            return True
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < IDLE_SECONDS:
            return False
        if now - self._source_answered < RATE_KNOWN_SECONDS:
            is_faster = slots / max(self._source_seconds_per_byte, 1e-12) > MUCH_FASTER * self._ledger.bytes_per_second
        else:
            is_faster = not self._source_in_flight  # one part shows how fast it is
        if now - self._answered < IDLE_SECONDS and not is_faster:
            return False
        self._idle_since = now - IDLE_SECONDS + IDLE_STEP_SECONDS
        return True

    def _source_part(self, number: int, now: float) -> Part:
        """Returns a unit as a part for the source, with the short ones around it: a header alone is a whole request."""
        short = self._index.small | self._index.between
        first, last = with_short_around(self._units, number, short=short, wanted=self._wanted)
        units = [self._claim(each) for each in range(first, last + 1)]
        self._in_flight[units[0].segment, units[0].start] = number, now
        return Part(units[0].segment, units[0].start, units[-1].end)

    def _elsewhere(self, now: float) -> tuple[int, int, int]:
        """Returns the units that peers have, those that they are fetching, and how many peers share the source.

        Peers that are not asked now don't count.
        """
        resting = [node for node in self._known if self._ledger.is_resting(node, now=now)]
        sharing = max(len(self._known) - len(resting), len(self._named) if now < self._named_until else 0)
        if not resting:
            return self._any_have, self._any_pending, sharing
        have = pending = 0
        for node, known in self._known.items():
            if node not in resting:
                have |= known.have
                pending |= known.pending
        return have, pending, sharing

    def _claim(self, number: int) -> Unit:
        unit = self._units[number]
        self._wanted &= ~(1 << number)
        self.remaining -= unit.size
        return unit

    def _count(self) -> None:
        """Computes which units at least one, two, … peers have."""
        at_least: list[int] = []
        self._any_pending = 0
        for known in self._known.values():
            carry = known.have
            for level, mask in enumerate(at_least):
                at_least[level], carry = mask | carry, mask & carry
            at_least.append(carry)
            self._any_pending |= known.pending
        self._at_least = at_least
        self._any_have = at_least[0] if at_least else 0
