"""What one worker does with a chunk: read it into a buffer and copy that on, or copy from the file's own pages."""

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

    It is given back when the last view of it goes: the traceback of an error may hold one longer than anybody planned.

    Attributes:
        address: Of its first byte.
        view: Its bytes, writable.
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
        """Has the kernel provide the pages of a range, without holding the interpreter's lock."""
        ctypes.memset(self.address + start, 0, length)


class StagingStrategy(Protocol):
    """One worker's way from files to the device. Used by that worker alone.

    Attributes:
        pinned: Whether the memory that copies read from could be pinned so far.
    """

    pinned: bool

    def prepare(self, slot: int) -> None:
        """Does ahead of time what the slot's first use would need."""

    def wait(self, slot: int) -> None:
        """Returns when the slot's last chunk has arrived."""

    def copy_chunk(self, slot: int, base_address: int, chunk: Chunk, reader: ChunkReader) -> None:
        """Starts bringing a chunk to its group at device address ``base_address``. The slot is free."""

    def drain(self) -> None:
        """Returns when all chunks have arrived."""

    def close(self) -> None:
        """Gives buffers and queue back. Nothing may be under way."""


class BounceBufferStrategy:
    """Reads into buffers of its own, which stay pinned as long as the lane."""

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
        """Touches and pins the slot's buffer."""
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
        """Waits for the copies out of the slot's buffer."""
        self._queue.wait(slot)

    def copy_chunk(self, slot: int, base_address: int, chunk: Chunk, reader: ChunkReader) -> None:
        """Reads the chunk; pins the buffer after its first use, for reading is what others can do meanwhile."""
        address = self._memory.address + slot * self._slot_bytes
        copies = reader.read_chunk(chunk, self._views[slot], self._scratch, address=address)
        if not self._prepared[slot]:
            self._pin(slot)
        for offset, target, length in copies:
            self._queue.copy(base_address + target, address + offset, length)
        self._queue.record_event(slot)

    def drain(self) -> None:
        """Waits for all copies."""
        self._queue.drain()

    def close(self) -> None:
        """Unpins the buffers, which go with the lane."""
        for address in self._addresses:
            self._queue.unpin(address)
        self._addresses.clear()
        self._queue.close()


class HostRegisterStrategy:
    """Pins the file's own pages for as long as their copy takes. Pays where pages are huge."""

    def __init__(self, queue: CopyQueue, *, slots: int) -> None:
        self.pinned = True
        self._queue = queue
        self._registered: list[list[tuple[int, int]]] = [[] for _ in range(slots)]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def prepare(self, slot: int) -> None:
        """Nothing can be done ahead."""

    def wait(self, slot: int) -> None:
        """Waits for the slot's copies and lets go of the pages they read."""
        self._queue.wait(slot)
        for address, length in self._registered[slot]:
            self._queue.unpin(address)
            self._libc.munmap(address, length)
        self._registered[slot].clear()

    def copy_chunk(self, slot: int, base_address: int, chunk: Chunk, reader: ChunkReader) -> None:
        """Maps and pins the pages under each piece, and copies from there.

        Raises:
            DeviceFailed: Pages can't be mapped, or the device can't read pages that this process may not write.
        """
        for extent in chunk.extents:
            begin = extent.source // HUGE_PAGE * HUGE_PAGE
            length = extent.source + extent.length - begin
            address = self._map(reader.files[extent.file], begin, length)
            if not self._queue.pin(address, length, read_only=True):
                self._libc.munmap(address, length)
                self.pinned = False
                raise DeviceFailed("The GPU's driver can't pin pages that are mapped for reading only.")
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
        """Waits for all copies and lets go of all pages."""
        self._queue.drain()
        for slot in range(len(self._registered)):
            self.wait(slot)

    def close(self) -> None:
        """Lets go of the queue."""
        self._queue.close()
