"""The worker processes of a transfer, the work assigned to each, and their messages."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

import msgspec

from tonnage.record import MutableRecord, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage.transfer.part_queue import Part
    from tonnage.transfer.protocol import Setup, ToWorker
    from tonnage.transfer.verification import HashTask
    from tonnage.transfer.worker_process import WorkerHost, WorkerProcess


class PoolWorker(MutableRecord):
    """A worker and the parts and hashes assigned to it, by request ID."""

    number: int
    process: WorkerProcess
    parts: dict[int, Part] = msgspec.field(default_factory=dict)
    hashes: dict[int, HashTask] = msgspec.field(default_factory=dict)


class WorkerExit(Record, frozen=True):
    """A worker exited unexpectedly; ``exit_code`` is negative for a signal."""

    worker: PoolWorker
    exit_code: int


class WorkerPool:
    """Workers with the same setup, none at first.

    Args:
        host: Starts the workers.
        setup: First message to each worker.
        wakeup_fd: A file descriptor that ends a ``poll`` when it becomes readable.
    """

    def __init__(self, host: WorkerHost, *, setup: Setup, wakeup_fd: int) -> None:
        self._host = host
        self._setup = setup
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup_fd, selectors.EVENT_READ)
        self.workers: dict[int, PoolWorker] = {}

    def start(self, number: int) -> None:
        """Starts the worker with this number, or its replacement."""
        process = self._host.start_worker()
        worker = PoolWorker(number, process)
        self.workers[number] = worker
        self._selector.register(process.socket, selectors.EVENT_READ, worker)
        process.send(self._setup)

    def set_setup(self, setup: Setup) -> None:
        """Sets the setup message for workers started later."""
        self._setup = setup

    def broadcast(self, message: ToWorker) -> None:
        for worker in self.workers.values():
            worker.process.send(message)

    def poll(self, timeout: float) -> Iterator[tuple[PoolWorker, object]]:
        """Waits up to ``timeout`` seconds; yields (worker, message), where a message may be a ``WorkerExit``."""
        for key, _ in self._selector.select(timeout):
            worker: PoolWorker | None = key.data
            if worker is None:
                continue
            try:
                for message in worker.process.receive():
                    yield worker, message
            except EOFError:
                self._selector.unregister(worker.process.socket)
                yield worker, WorkerExit(worker, worker.process.close())

    def close(self) -> None:
        self._selector.close()
        workers = list(self.workers.values())
        for worker in workers:
            worker.process.disconnect()
        for worker in workers:
            worker.process.close()
