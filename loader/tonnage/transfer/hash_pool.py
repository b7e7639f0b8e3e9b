"""Checksums of ranges on disk, in threads of the coordinator: hashes that can't be combined, behind the transfer."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, NamedTuple

from tonnage.format.checksums import crc_function, new_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.contract import ChecksumAlgorithm
    from tonnage.planning.object_checks import Extent

CHUNK = 1 << 20
"""Bytes of one read: small enough to stay in the CPU cache until the hash is computed."""


class RunningChecksum:
    """A checksum that is computed piece by piece. hashlib releases the interpreter's lock, the CRCs are quick.

    Args:
        algorithm: Its algorithm.
        size: Bytes of the object, which a Git object ID is of, too.
    """

    def __init__(self, algorithm: ChecksumAlgorithm, size: int) -> None:
        self._crc = crc_function(algorithm)
        self._size = algorithm.size
        self._value = 0
        self._hash = None if self._crc is not None else new_hash(algorithm, size)

    def update(self, data: memoryview | bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)
        elif self._crc is not None:
            self._value = self._crc(bytes(data), self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big") if self._hash is None else self._hash.digest()


class HashJob(NamedTuple):
    """Bytes to add to a checksum, given or in files. ``key`` is the caller's."""

    key: tuple[int, int, int]
    running: RunningChecksum
    extents: Sequence[Extent | bytes]


class HashPool:
    """Threads that work on jobs.

    Args:
        paths: The output files.
        threads: Their number.
    """

    def __init__(self, paths: Sequence[str], *, threads: int) -> None:
        self._paths = paths
        self._jobs: queue.SimpleQueue[HashJob | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[HashJob, bool]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self.wakeup_fd, self._wakeup_write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.outstanding = 0
        """Number of jobs that ``finished`` has not returned yet."""

    def submit(self, job: HashJob) -> None:
        self.outstanding += 1
        self._jobs.put(job)
        if len(self._threads) < min(self._limit, self.outstanding):
            thread = threading.Thread(target=self._work, name="object-hash", daemon=True)
            self._threads.append(thread)
            thread.start()

    def finished(self) -> list[tuple[HashJob, bool]]:
        """Returns the jobs that have ended since the last call, each with whether its bytes were all there."""
        found = []
        while not self._done.empty():
            found.append(self._done.get())
        self.outstanding -= len(found)
        return found

    def drain_wakeups(self) -> None:
        """Reads what made ``wakeup_fd`` readable. To be followed by ``finished``."""
        try:
            os.read(self.wakeup_fd, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Ends the threads, those with a job after its current read."""
        self._stopped.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self.wakeup_fd)
        os.close(self._wakeup_write_fd)

    def _work(self) -> None:
        buffer = memoryview(bytearray(CHUNK))
        while (job := self._jobs.get()) is not None and not self._stopped.is_set():
            try:
                complete = self._run(job, buffer)
            except OSError:  # the caller reports a file that can't be read like one that is too short
                complete = False
            self._done.put((job, complete))
            try:
                os.write(self._wakeup_write_fd, b"1")
            except BlockingIOError:
                continue

    def _run(self, job: HashJob, buffer: memoryview) -> bool:
        for extent in job.extents:
            if isinstance(extent, bytes):
                job.running.update(extent)
                continue
            descriptor = os.open(self._paths[extent.file], os.O_RDONLY | os.O_CLOEXEC)
            try:
                at, end = extent.offset, extent.offset + extent.length
                while at < end and not self._stopped.is_set():
                    count = os.preadv(descriptor, [buffer[: min(CHUNK, end - at)]], at)
                    if not count:
                        return False
                    job.running.update(buffer[:count])
                    at += count
            finally:
                os.close(descriptor)
        return True
