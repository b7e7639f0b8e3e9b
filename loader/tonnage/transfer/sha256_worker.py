"""SHA-256 of tensors on disk, in a thread of a worker. Imported only when needed, which is in few loads."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from typing import TYPE_CHECKING

from tonnage.transfer.protocol import Hashed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.transfer.protocol import Hash

CHUNK = 4 << 20


class Sha256Worker:
    """A thread that computes hashes. hashlib releases the GIL, so that the transfer continues.

    Args:
        descriptor: Returns the file descriptor of an output file.

    Attributes:
        wakeup_fd: A file descriptor that is readable when there are results.
    """

    def __init__(self, descriptor: Callable[[int], int]) -> None:
        self._descriptor = descriptor
        self._requests: queue.SimpleQueue[tuple[Hash, int]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Hashed] = queue.SimpleQueue()
        self.wakeup_fd, self._wakeup_write_fd = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._work, name="sha256", daemon=True).start()

    def submit(self, request: Hash) -> None:
        self._requests.put((request, self._descriptor(request.file)))

    def finished(self) -> list[Hashed]:
        """Returns the results so far."""
        os.read(self.wakeup_fd, 4096)
        results = []
        while not self._results.empty():
            results.append(self._results.get())
        return results

    def _work(self) -> None:
        buffer = memoryview(bytearray(CHUNK))
        while True:
            request, descriptor = self._requests.get()
            digest = hashlib.sha256(request.prefix)
            at, end = request.offset, request.offset + request.length
            while at < end:
                count = os.preadv(descriptor, [buffer[: min(CHUNK, end - at)]], at)
                if not count:
                    break
                digest.update(buffer[:count])
                at += count
            self._results.put(Hashed(request.id, digest.digest() if at == end else b""))
            os.write(self._wakeup_write_fd, b"1")
