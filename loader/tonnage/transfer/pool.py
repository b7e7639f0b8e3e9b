"""The worker processes of a transfer, who does what, and their wake-ups."""

from __future__ import annotations

import selectors
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage.transfer.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tonnage.transfer.protocol import Setup, ToWorker
    from tonnage.transfer.verification import HashWanted
    from tonnage.transfer.work import Part


@dataclass(slots=True)
class Member:
    """A worker and the parts and tensors it has been given, by request ID."""

    number: int
    process: WorkerProcess
    parts: dict[int, Part] = field(default_factory=dict)
    hashes: dict[int, HashWanted] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Death:
    """A worker ended although nobody asked it to; ``code`` is negative for a signal."""

    member: Member
    code: int


class Pool:
    """Workers that are told the same setup.

    Args:
        count: How many processes.
        keep: Descriptors they inherit.
        environment: Of which they get the harmless part.
    """

    def __init__(self, *, count: int, setup: Setup, keep: Sequence[int], environment: Mapping[str, str]) -> None:
        self._setup = setup
        self._keep = keep
        self._environment = environment
        self._selector = selectors.DefaultSelector()
        self.members: dict[int, Member] = {}
        for number in range(count):
            self.start(number)

    def start(self, number: int) -> Member:
        """Starts a worker under a number, anew if there was one before."""
        process = WorkerProcess(keep=self._keep, environment=self._environment)
        member = Member(number, process)
        self.members[number] = member
        self._selector.register(process.socket, selectors.EVENT_READ, member)
        process.send(self._setup)
        return member

    def renew(self, setup: Setup) -> None:
        """Sets what workers that start later are told."""
        self._setup = setup

    def broadcast(self, message: ToWorker) -> None:
        """Sends a message to all workers."""
        for member in self.members.values():
            member.process.send(message)

    def events(self, timeout: float) -> Iterator[tuple[Member, object]]:
        """Waits up to ``timeout`` seconds; yields (worker, message), where a message may be a ``Death``."""
        for key, _ in self._selector.select(timeout):
            member: Member = key.data
            try:
                for message in member.process.receive():
                    yield member, message
            except EOFError:
                self._selector.unregister(member.process.socket)
                yield member, Death(member, member.process.close())

    def close(self) -> None:
        """Ends all workers."""
        self._selector.close()
        members = list(self.members.values())
        for member in members:
            member.process.hang_up()
        for member in members:
            member.process.close()
