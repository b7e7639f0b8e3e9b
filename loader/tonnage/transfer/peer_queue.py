"""Chooses what a load fetches next, and from which peer or from the source. Pure: no clock, no socket.

A unit that peers have is taken from one of them: the rarest among what a random one of up to four free peers has, so
that rare units spread first. The source is asked for what no peer has or is fetching; each node begins at a place that
depends on its name, so that nodes fetch different units and complement each other. A unit that has failed at peers
``MAX_TRIES`` times comes from the source, and so does what all peers are too busy for.

Sets of units are integers with one bit for each unit: with a few thousand units, all decisions are a few operations.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.transfer.part_queue import Delayed, Part
from tonnage.transfer.peer_units import SMALL_BYTES, SOURCE_ONLY, Unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import ByteRange
    from tonnage.transfer.peer_ledger import PeerLedger
    from tonnage.transfer.peer_view import PeerView

MAX_TRIES = 4
"""Failures of a unit at peers, after which it comes from the source."""
RANDOM_PEERS = 4
IDLE_SECONDS = 1.0
"""For how long a connection to the source stays unused, because peers have or fetch all that is left."""
IDLE_STEP_SECONDS = 0.2
"""The same again, once that time has passed."""


@dataclass(slots=True)
class _Known:
    """A peer and the units that it has, and that it is fetching from the source.

    ``cursor`` is where this node goes on at this peer: units in a row complete a tensor, which then can be shown.
    """

    view: PeerView
    have: int = 0
    pending: int = 0
    cursor: int = 0


class PeerQueue:
    """What is not yet assigned to a worker. Used in place of ``PartQueue``.

    Args:
        units: All units.
        files: Path and size of each output file.
        node: This node's name; empty: a random one.
        ledger: How the peers answered.

    Attributes:
        remaining: Number of bytes that are not assigned.
        max_part_size: Not used; units have their size.
        max_open: Not used; nodes that fetch units in the same order would not complement each other.
    """

    def __init__(
        self, units: Sequence[Unit], files: Sequence[tuple[str, int]], *, node: str, ledger: PeerLedger
    ) -> None:
        self._units = list(units)
        self._files = files
        seed = hashlib.sha256(node.encode()).digest() if node else None
        self._random = random.Random(seed)  # noqa: S311  # a choice among peers, no secret
        self._ledger = ledger
        self._known: dict[str, _Known] = {}
        self._at_least: list[int] = []
        self._any_have = self._any_pending = 0
        self._wanted = (1 << len(self._units)) - 1
        self._small = sum(
            1 << at for at, unit in enumerate(self._units) if unit.file == SOURCE_ONLY and unit.size < SMALL_BYTES
        )
        self._for_peers = sum(1 << at for at, unit in enumerate(self._units) if unit.file != SOURCE_ONLY)
        self._tries: dict[int, int] = {}
        self._cursor = self._random.randrange(len(self._units)) if self._units else 0
        self._delayed: list[Delayed] = []
        self._order = 0
        self._source_in_flight = 0
        self._idle_since: float | None = None
        self._pending: dict[tuple[int, int], Unit] = {}
        self.max_part_size = 0
        self.max_open: int | None = None
        self.remaining = sum(unit.size for unit in self._units)

    @property
    def has_peers(self) -> bool:
        """Whether there is any peer that is not dropped."""
        return bool(self._known)

    @property
    def pending(self) -> list[Unit]:
        """The units that are being fetched from the source, and that peers could serve."""
        return [unit for unit in self._pending.values() if unit.file != SOURCE_ONLY]

    def update(self, views: Sequence[PeerView]) -> None:
        """Takes over what peers have now. Peers that are not among ``views`` are forgotten."""
        known: dict[str, _Known] = {}
        for view in views:
            if self._ledger.is_dropped(view.node):
                continue
            before = self._known.get(view.node)
            if before is not None and before.view is view:
                known[view.node] = before
                continue
            cursor = self._random.randrange(max(1, len(self._units))) if before is None else before.cursor
            known[view.node] = _Known(view, self._covered(view.files), self._covered(view.pending), cursor)
        self._known = known
        self._count()

    def view(self, node: str) -> PeerView | None:
        """Returns a peer as it was last seen."""
        known = self._known.get(node)
        return None if known is None else known.view

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
            self._source_in_flight += 1
            return delayed
        part = self._take_from_peer(now)
        if part is None and self._source_in_flight < slots:
            return self._take_from_source(now)
        return part

    def requeue(self, part: Part, *, not_before: float) -> None:
        """Adds a part that ``take`` returns at ``not_before`` or later, to be fetched from the source."""
        self._order += 1
        self.remaining += part.end - part.start
        heapq.heappush(self._delayed, Delayed(not_before, self._order, part))

    def next_due(self) -> float | None:
        """Returns the time at which the next requeued part is due; None if there is none."""
        return self._delayed[0].when if self._delayed else None

    def finished(self, part: Part) -> None:
        """A part has ended, whether it was fetched or not."""
        if not part.peer:
            self._source_in_flight -= 1
            self._pending.pop((part.segment, part.start), None)

    def return_to_peers(self, part: Part, start: int) -> None:
        """Adds what a peer did not send of a part: from ``start`` on. Another peer or the source is asked for it."""
        unit = self._units[part.unit]
        tries = self._tries.pop(part.unit, 0) + 1
        rest = unit._replace(start=start, offset=unit.offset + start - unit.start, end=part.end)
        number = len(self._units)
        self._units.append(rest)
        self._tries[number] = tries
        bit = 1 << number
        self._wanted |= bit
        self.remaining += rest.size
        if tries < MAX_TRIES:
            self._for_peers |= bit
        for known in self._known.values():
            known.have |= bit if self._is_covered(rest, known.view.files) else 0
            known.pending |= bit if self._is_covered(rest, known.view.pending) else 0
        self._count()

    # -- choice

    def _take_from_peer(self, now: float) -> Part | None:
        useful = self._wanted & self._for_peers & self._any_have
        if not useful:
            return None
        free = [
            known for node, known in self._known.items() if known.have & useful and self._ledger.may_ask(node, now=now)
        ]
        if not free:
            return None
        best: tuple[int, int, int, _Known] | None = None
        for known in self._random.sample(free, min(RANDOM_PEERS, len(free))):
            found = self._rarest(known.have & useful, known.cursor)
            key = (found[0], self._ledger.in_flight(known.view.node))
            if best is None or key < best[:2]:
                best = (*key, found[1], known)
        assert best is not None  # noqa: S101  # there is a free peer, and it has a useful unit
        number, node = best[2], best[3].view.node
        best[3].cursor = number + 1
        unit = self._claim(number)
        self._ledger.sent(node)
        return Part(
            unit.segment, unit.start, unit.end, peer=node, unit=number, file=unit.file, shift=unit.offset - unit.start
        )

    def _rarest(self, candidates: int, start: int) -> tuple[int, int]:
        """Returns how many peers have the rarest of the candidates, and the first of these from a place on."""
        for count, more in enumerate((*self._at_least[1:], 0), start=1):
            rare = candidates & ~more
            if rare:
                return count, self._first_from(rare, start)
        return 0, self._first_from(candidates, 0)

    def _take_from_source(self, now: float) -> Part | None:
        have, pending = self._elsewhere(now)
        allowed = self._wanted & ~((have | pending) & self._for_peers)
        if allowed:
            self._idle_since = None
        elif self._wanted:
            if self._idle_since is None:
                self._idle_since = now
            if now - self._idle_since < IDLE_SECONDS and self._known:
                return None
            self._idle_since = now - IDLE_SECONDS + IDLE_STEP_SECONDS
            allowed = self._wanted & ~have or self._wanted
        if not allowed:
            return None
        # Without its header, what peers send of a tensor can't be verified, and not be shown to others.
        first = allowed & self._small if self._known else 0
        number = self._first_from(first or allowed, self._cursor)
        if not first:
            self._cursor = number + 1
        unit = self._claim(number)
        end = unit.end
        numbers = [number]
        # A header alone is a whole request, so what follows it comes with it.
        while not first and unit.size < SMALL_BYTES and len(numbers) == 1 and allowed >> (number + 1) & 1:
            following = self._units[number + 1]
            if (following.segment, following.start) != (unit.segment, end):
                break
            self._claim(number + 1)
            numbers.append(number + 1)
            end = following.end
        self._source_in_flight += 1
        self._pending[unit.segment, unit.start] = self._units[numbers[-1]]
        return Part(unit.segment, unit.start, end)

    def _elsewhere(self, now: float) -> tuple[int, int]:
        """Returns the units that peers have, and those that they are fetching, of peers that are asked now."""
        if not any(self._ledger.is_resting(node, now=now) for node in self._known):
            return self._any_have, self._any_pending
        have = pending = 0
        for node, known in self._known.items():
            if not self._ledger.is_resting(node, now=now):
                have |= known.have
                pending |= known.pending
        return have, pending

    def _claim(self, number: int) -> Unit:
        unit = self._units[number]
        self._wanted &= ~(1 << number)
        self.remaining -= unit.size
        return unit

    def _first_from(self, candidates: int, start: int) -> int:
        """Returns the first candidate from a place on, and from the beginning after the end."""
        later = candidates >> start
        if later:
            return start + (later & -later).bit_length() - 1
        return (candidates & -candidates).bit_length() - 1

    # -- what peers have

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

    def _covered(self, files: Mapping[str, tuple[int, Sequence[ByteRange]]]) -> int:
        covered = bytearray(-(-len(self._units) // 8))
        for number, unit in enumerate(self._units):
            if unit.file != SOURCE_ONLY and self._is_covered(unit, files):
                covered[number >> 3] |= 1 << (number & 7)
        return int.from_bytes(covered, "little")

    def _is_covered(self, unit: Unit, files: Mapping[str, tuple[int, Sequence[ByteRange]]]) -> bool:
        path, size = self._files[unit.file]
        found = files.get(path)
        if found is None or found[0] != size:
            return False
        ranges = found[1]
        at = bisect_right(ranges, (unit.offset, 1 << 62)) - 1
        return at >= 0 and unit.offset + unit.size <= ranges[at][1]
