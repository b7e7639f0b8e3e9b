"""Reads a chunk into a buffer: with ``read``, from a mapping, or with direct I/O if a file on disk is not cached."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from tonnage.attach.copy.mmap_reader import ThreadMappings
from tonnage.attach.copy.read_ways import WayChooser
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.attach.copy.chunks import Chunk, Extent
    from tonnage.attach.files.source_file import SourceFile

Direct = Literal["auto", "never", "always"]

DIRECT_IO_ALIGNMENT = 4096
"""Bytes. Offsets, lengths and addresses of direct reads are multiples of it; no disk has larger blocks."""
MIN_DIRECT_IO_BYTES = 1 << 20
"""Minimum bytes of a direct read. For smaller ones the page cache is faster than a direct read's latency."""
_MAX_GAP_BYTES = 16 << 10
"""Maximum bytes between two extents of a file that one system call reads together, discarding the bytes between."""
_MAX_IOVECS = 512
_MAX_MAPPED_EXTENTS = 64
"""Chunks with more extents are read by system calls, each of which reads many extents."""


class BufferCopy(NamedTuple):
    """A copy to the device: ``length`` bytes at ``offset`` of the buffer to ``target`` in the group."""

    offset: int
    target: int
    length: int


class ChunkReader:
    """Reads chunks of files. All worker threads use it; each passes its own buffer and scratch memory.

    Attributes:
        files: The files that extents refer to by number.
    """

    def __init__(self, files: Sequence[SourceFile], *, direct: Direct = "auto") -> None:
        """Checks which files are on disk, and which are in memory.

        Args:
            files: The files that extents refer to by number.
            direct: Whether to use direct I/O: for ranges that are not in the page cache, never, or always.
        """
        self.files = files
        self._direct = direct
        memory_backed = find_memory_backed(files)
        self._buffered_only = [
            direct == "never" or (direct == "auto" and is_memory_backed) for is_memory_backed in memory_backed
        ]
        self._mappings = ThreadMappings(files)
        self._way_chooser = WayChooser() if direct != "always" and all(memory_backed) else None
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def may_read_direct(self) -> bool:
        """Whether direct I/O may be used for a file, so that buffers need extra space for alignment."""
        return not all(self._buffered_only)

    def read_chunk(self, chunk: Chunk, buffer: memoryview, scratch: memoryview, *, address: int) -> list[BufferCopy]:
        """Reads a chunk.

        Args:
            chunk: The chunk to read.
            buffer: Target of the read, at least as long as the chunk.
            address: Address of the buffer.
            scratch: At least 16 KiB for bytes to be discarded.

        Returns:
            The copies to start from the buffer: one, or one per extent after a direct read.

        Raises:
            CacheDamaged: A file can't be read, or became shorter.
        """
        extents = chunk.extents
        first = extents[0]
        if not self._buffered_only[first.file] and chunk.length >= MIN_DIRECT_IO_BYTES:
            copies = self._try_direct(extents, buffer)
            if copies is not None:
                return copies
        if self._way_chooser is None or len(extents) > _MAX_MAPPED_EXTENTS:
            self._read_buffered(chunk, buffer, scratch)
        else:
            began = time.perf_counter()
            mapped = self._way_chooser.next_is_mapped() and self._try_mapped(chunk, address)
            if not mapped:
                self._read_buffered(chunk, buffer, scratch)
            self._way_chooser.record(mapped=mapped, size=chunk.data_bytes, seconds=time.perf_counter() - began)
        return [BufferCopy(0, chunk.target, chunk.length)]

    def close(self) -> None:
        """Closes the descriptors of direct reads. No thread may be reading."""
        with self._lock:
            for descriptor in self._descriptors.values():
                if descriptor >= 0:
                    os.close(descriptor)
            self._descriptors.clear()

    def release_page_tables(self) -> None:
        """Frees page tables that are no longer needed. Thread-safe."""
        self._mappings.release_page_tables()

    def _try_mapped(self, chunk: Chunk, address: int) -> bool:
        """Copies a chunk from mappings; False if a file can't be mapped."""
        return all(
            self._mappings.read(extent.file, extent.source, extent.length, address + extent.target - chunk.target)
            for extent in chunk.extents
        )

    def _read_buffered(self, chunk: Chunk, buffer: memoryview, scratch: memoryview) -> None:
        first = chunk.extents[0]
        if len(chunk.extents) == 1:
            self._read(first.file, first.source, [buffer[: first.length]], first.length)
        else:
            self._read_vectored(chunk, buffer, scratch)

    def _read_vectored(self, chunk: Chunk, buffer: memoryview, scratch: memoryview) -> None:
        """Reads neighboring extents in one call, each to its aligned offset, and discards the bytes between them."""
        views: list[memoryview] = []
        file = start = end = -1
        for extent in chunk.extents:
            gap = extent.source - end
            if extent.file != file or not 0 <= gap <= _MAX_GAP_BYTES or len(views) >= _MAX_IOVECS:
                if views:
                    self._read(file, start, views, end - start)
                views, file, start = [], extent.file, extent.source
            elif gap:
                views.append(scratch[:gap])
            place = extent.target - chunk.target
            views.append(buffer[place : place + extent.length])
            end = extent.source + extent.length
        if views:
            self._read(file, start, views, end - start)

    def _read(self, number: int, offset: int, views: list[memoryview], length: int) -> None:
        file = self.files[number]
        try:
            done = os.preadv(file.descriptor, views, offset)
            while done < length:
                left = _unfilled_views(views, done)
                count = os.preadv(file.descriptor, left, offset + done)
                if count == 0:
                    raise CacheDamaged(
                        f"{file.path} ended at byte {offset + done:,}; it had {file.size:,} bytes when it was opened."
                    )
                done += count
        except OSError as error:
            raise CacheDamaged(f"Reading {file.path} at byte {offset:,} failed: {error.strerror}.") from error

    def _try_direct(self, extents: Sequence[Extent], buffer: memoryview) -> list[BufferCopy] | None:
        """Reads extents of a file on disk with direct I/O; None if the page cache should be used."""
        number, start = extents[0].file, extents[0].source
        end = extents[-1].source + extents[-1].length
        data_bytes = sum(piece.length for piece in extents)
        if extents[-1].file != number or not data_bytes <= end - start <= min(2 * data_bytes, len(buffer)):
            return None
        if self._direct == "auto" and self._mappings.is_resident(number, start, end - start):
            return None
        begin = start // DIRECT_IO_ALIGNMENT * DIRECT_IO_ALIGNMENT
        size = -(-(end - begin) // DIRECT_IO_ALIGNMENT) * DIRECT_IO_ALIGNMENT
        if size > len(buffer) or self._buffered_only[number]:
            return None
        if not self._read_direct(number, begin, end - begin, buffer[:size]):
            return None
        return [BufferCopy(extent.source - begin, extent.target, extent.length) for extent in extents]

    def _read_direct(self, number: int, offset: int, length: int, buffer: memoryview) -> bool:
        """Reads with direct I/O; False if that is not possible."""
        descriptor = self._direct_descriptor(number)
        done = 0
        try:
            while descriptor >= 0 and done < length:
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
                done += count
                if count == 0 or (done < length and done % DIRECT_IO_ALIGNMENT):
                    return False
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            path = self.files[number].path
            raise CacheDamaged(f"Reading {path} at byte {offset + done:,} failed: {error.strerror}.") from error
        return descriptor >= 0

    def _direct_descriptor(self, number: int) -> int:
        """Returns a descriptor for direct reads; -1 if the file system doesn't support them."""
        with self._lock:
            if number not in self._descriptors:
                path = f"/proc/self/fd/{self.files[number].descriptor}"
                try:
                    self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError:
                    self._descriptors[number] = -1
                    self._buffered_only[number] = True
            return self._descriptors[number]


def find_memory_backed(files: Sequence[SourceFile]) -> list[bool]:
    """Returns which of the files are in memory. Looks at one file of each device."""
    devices = {file.device: file for file in files}
    memory_backed = {device: _is_memory_backed(file) for device, file in devices.items()}
    return [memory_backed[file.device] for file in files]


def _is_memory_backed(file: SourceFile) -> bool:
    """Whether the file is in memory, as in tmpfs: such file systems don't support ``RWF_NOWAIT``, those on disk do."""
    try:
        os.preadv(file.descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno != errno.EAGAIN
    return False


def _unfilled_views(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """Returns the views that a vectored read of ``done`` bytes left unfilled."""
    left = []
    for view in views:
        if done >= len(view):
            done -= len(view)
        else:
            left.append(view[done:])
            done = 0
    return left
