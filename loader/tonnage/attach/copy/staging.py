"""How one worker copies a chunk to the device: through a pinned buffer, or from the file's own pages."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Protocol

from tonnage.attach.errors import DeviceFailed

if TYPE_CHECKING:
    from tonnage.attach.copy.chunks import Chunk
    from tonnage.attach.copy.reader import ChunkReader
    from tonnage.attach.device.engine import CopyQueue
    from tonnage.attach.files.source_file import SourceFile

HUGE_PAGE = 2 << 20
_SCRATCH_BYTES = 64 << 10


class StagingBuffer:
    """Anonymous memory that begins at a huge page, so that pinning it touches few pages.

    The memory is freed with its last view. The traceback of an error may keep a view longer than expected.

    Attributes:
        address: Address of the first byte.
        view: The memory, writable.
    """

    def __init__(self, size: int) -> None:
        self._mapping = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self._anchor = ctypes.c_char.from_buffer(self._mapping)
        start = ctypes.addressof(self._anchor)
        skip = -start % HUGE_PAGE
        self.address = start + skip
        self.view = memoryview(self._mapping)[skip : skip + size]

    def prefault(self, start: int, length: int) -> None:
        """Allocates the pages of a range, without holding the GIL."""
        ctypes.memset(self.address + start, 0, length)


class StagingStrategy(Protocol):
    """How one worker copies from files to the device. Not thread-safe: each worker has its own.

    Attributes:
        pinned: Whether all memory that copies read from could be pinned so far.
    """

    pinned: bool

    def prepare(self, slot: int) -> None:
        """Prepares a slot before its first use."""

    def wait(self, slot: int) -> None:
        """Waits until the slot's last chunk is on the device."""

    def copy_chunk(self, slot: int, base_address: int, chunk: Chunk, reader: ChunkReader) -> None:
        """Starts copying a chunk to its group at device address ``base_address``. The slot must be free."""

    def drain(self) -> None:
        """Waits until all chunks are on the device."""

    def close(self) -> None:
        """Releases buffers and queue. No copy may be in progress."""


class BounceBufferStrategy:
    """Reads into buffers of its own, which stay pinned until ``close``."""

    def __init__(self, queue: CopyQueue, *, slots: int, slot_bytes: int) -> None:
        self.pinned = True
        self._queue = queue
        self._slot_bytes = slot_bytes
        self._memory = StagingBuffer(slots * slot_bytes)
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._views = [self._memory.view[slot * slot_bytes : (slot + 1) * slot_bytes] for slot in range(slots)]
        self._prepared = [False] * slots
        self._addresses: list[int] = []

    def prepare(self, slot: int) -> None:
        """Allocates and pins the slot's buffer."""
        if not self._prepared[slot]:
            self._memory.prefault(slot * self._slot_bytes, self._slot_bytes)
            self._pin(slot)

    def _pin(self, slot: int) -> None:
        self._prepared[slot] = True
        address = self._memory.address + slot * self._slot_bytes
        if self._queue.pin(address, self._slot_bytes, read_only=False):
            self._addresses.append(address)
        else:
            self.pinned = False

    def wait(self, slot: int) -> None:
        self._queue.wait(slot)

    def copy_chunk(self, slot: int, base_address: int, chunk: Chunk, reader: ChunkReader) -> None:
        """Reads the chunk into the slot's buffer, pins the buffer if it is not pinned yet, and starts the copies."""
        address = self._memory.address + slot * self._slot_bytes
        copies = reader.read_chunk(chunk, self._views[slot], self._scratch, address=address)
        if not self._prepared[slot]:  # after reading, which runs in parallel with the other workers; pinning does not
            self._pin(slot)
        for offset, target, length in copies:
            self._queue.copy(base_address + target, address + offset, length)
        self._queue.record_event(slot)

    def drain(self) -> None:
        self._queue.drain()

    def close(self) -> None:
        """Unpins the buffers, and closes the queue."""
        for address in self._addresses:
            self._queue.unpin(address)
        self._addresses.clear()
        self._queue.close()


class HostRegisterStrategy:
    """Pins the file's own pages during their copy. May be faster if they are huge pages."""

    def __init__(self, queue: CopyQueue, *, slots: int) -> None:
        self.pinned = True
        self._queue = queue
        self._registered: list[list[tuple[int, int]]] = [[] for _ in range(slots)]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def prepare(self, slot: int) -> None:
        """Does nothing: pages are pinned with the chunk."""

    def wait(self, slot: int) -> None:
        """Waits for the slot's copies, then unpins and unmaps their pages."""
        self._queue.wait(slot)
        for address, length in self._registered[slot]:
            self._queue.unpin(address)
            self._libc.munmap(address, length)
        self._registered[slot].clear()

    def copy_chunk(self, slot: int, base_address: int, chunk: Chunk, reader: ChunkReader) -> None:
        """Maps and pins the pages of each extent, and starts the copies from them.

        Raises:
            DeviceFailed: Pages can't be mapped, or the driver can't pin pages that are mapped read-only.
        """
        for extent in chunk.extents:
            begin = extent.source // HUGE_PAGE * HUGE_PAGE
            length = extent.source + extent.length - begin
            address = self._map(reader.files[extent.file], begin, length)
            if not self._queue.pin(address, length, read_only=True):
                self._libc.munmap(address, length)
                self.pinned = False
                raise DeviceFailed("The GPU's driver can't pin pages that are mapped read-only.")
            self._registered[slot].append((address, length))
            self._queue.copy(base_address + extent.target, address + extent.source - begin, extent.length)
        self._queue.record_event(slot)

    def _map(self, file: SourceFile, begin: int, length: int) -> int:
        prot_read, map_shared, map_populate = 1, 1, 0x8000
        file.require_size(begin + length)
        address = self._libc.mmap(None, length, prot_read, map_shared | map_populate, file.descriptor, begin)
        if address is None or address == ctypes.c_void_p(-1).value:
            raise DeviceFailed(f"{file.path} can't be mapped at byte {begin:,} (error {ctypes.get_errno()}).")
        return int(address)

    def drain(self) -> None:
        """Waits for all copies, then unpins and unmaps all pages."""
        self._queue.drain()
        for slot in range(len(self._registered)):
            self.wait(slot)

    def close(self) -> None:
        self._queue.close()
