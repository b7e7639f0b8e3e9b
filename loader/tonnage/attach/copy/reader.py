"""Reads the pieces of a chunk into a buffer: from memory, or past it where a file on a disk is cold."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from typing import TYPE_CHECKING, Literal, NamedTuple

from tonnage.attach.copy.mmap_reader import ThreadMappings
from tonnage.attach.copy.page_lru import has_unread_pages
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tonnage.attach.copy.chunks import Chunk, Extent
    from tonnage.attach.files.source_file import SourceFile

Direct = Literal["auto", "never", "always"]

DIRECT_IO_ALIGNMENT = 4096
"""Offsets, lengths and addresses of direct reads are multiples of this; no disk has larger blocks."""
MIN_DIRECT_IO_BYTES = 1 << 20
"""Bytes. Below it a direct read's latency costs more than the page cache."""
_MAX_GAP_BYTES = 16 << 10
"""Bytes between two pieces of a file up to which one system call reads both, and throws what is between away."""
_MAX_IOVECS = 512
_MAX_MAPPED_EXTENTS = 64
"""Chunks of more pieces are read by system calls, which take many at a time."""
_READ_EVERY_NTH = 4
"""Of chunks that nobody has read yet, one of so many is read, the others are copied from a mapping. The lock that makes
first reads slow isn't waited for then, and with each process that loads the same files fewer are left unread.
"""


class BufferCopy(NamedTuple):
    """What is to be copied on: ``length`` bytes at ``offset`` of the buffer to ``target`` in the group."""

    offset: int
    target: int
    length: int


class ChunkReader:
    """Reads chunks of some files. Used by all worker threads; each passes its own buffer and scratch memory.

    Attributes:
        files: What pieces refer to by number.
    """

    def __init__(self, files: Sequence[SourceFile], *, direct: Direct = "auto", has_unread: bool | None = None) -> None:
        """Looks where the files lie.

        Args:
            files: What pieces refer to by number.
            direct: Whether to go past the page cache: where a file isn't in it, never, or always.
            has_unread: Whether files in memory were never read before, which mostly a mapping is better for; None: to
                be found out.
        """
        self.files = files
        self._direct = direct
        memory_backed = [not _supports_nowait(file) for file in files]
        self._buffered_only = [
            direct == "never" or (direct == "auto" and is_memory_backed) for is_memory_backed in memory_backed
        ]
        self._mappings = ThreadMappings(files)
        self._chunk_counter: Iterator[int] | None = None
        if direct != "always" and all(memory_backed):
            if has_unread is None:
                has_unread = has_unread_pages(sum(file.size for file in files))
            if has_unread:  # at another chunk in each process, so that in time all are read
                self._chunk_counter = itertools.count(os.urandom(1)[0])
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def may_read_direct(self) -> bool:
        """Whether some file may be read past the page cache, so that buffers need room for alignment."""
        return not all(self._buffered_only)

    def read_chunk(self, chunk: Chunk, buffer: memoryview, scratch: memoryview, *, address: int) -> list[BufferCopy]:
        """Reads a chunk.

        Args:
            chunk: What to read.
            buffer: Where to, at least the chunk's length.
            address: Of the buffer.
            scratch: At least 16 KiB that nobody looks at.

        Returns:
            The copies to make from the buffer: one, unless a direct read left the pieces as they are in the file.

        Raises:
            CacheDamaged: A file can't be read, or has become shorter.
        """
        extents = chunk.extents
        first = extents[0]
        if not self._buffered_only[first.file] and chunk.length >= MIN_DIRECT_IO_BYTES:
            copies = self._try_direct(extents, buffer)
            if copies is not None:
                return copies
        if not self._try_mapped(chunk, address):
            self._read_buffered(chunk, buffer, scratch)
        return [BufferCopy(0, chunk.target, chunk.length)]

    def close(self) -> None:
        """Closes what direct reads opened. No thread may be reading."""
        with self._lock:
            for descriptor in self._descriptors.values():
                if descriptor >= 0:
                    os.close(descriptor)
            self._descriptors.clear()

    def release_page_tables(self) -> None:
        """Gives back what reading took and nobody needs any more; each thread may help with it."""
        self._mappings.release_page_tables()

    def _try_mapped(self, chunk: Chunk, address: int) -> bool:
        """Copies a chunk from mappings; False where it's better read, or can't be mapped."""
        if (
            self._chunk_counter is None
            or len(chunk.extents) > _MAX_MAPPED_EXTENTS
            or next(self._chunk_counter) % _READ_EVERY_NTH == 0
        ):
            return False
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
        """Reads neighboring pieces in one call each, at their aligned places, and headers between them to nowhere."""
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
                        f"{file.path} ended at byte {offset + done:,} while it was read; it had {file.size:,} bytes."
                    )
                done += count
        except OSError as error:
            raise CacheDamaged(f"Reading {file.path} at byte {offset:,} failed: {error.strerror}.") from error

    def _try_direct(self, extents: Sequence[Extent], buffer: memoryview) -> list[BufferCopy] | None:
        """Reads one stretch of a disk's file that isn't in memory; None where the ordinary way is the right one."""
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
        """Reads past the page cache, and says whether that was possible."""
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
        """A descriptor for direct reads; -1 where the file system has none."""
        with self._lock:
            if number not in self._descriptors:
                path = f"/proc/self/fd/{self.files[number].descriptor}"
                try:
                    self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError:
                    self._descriptors[number] = -1
                    self._buffered_only[number] = True
            return self._descriptors[number]


def _supports_nowait(file: SourceFile) -> bool:
    """Whether the file system says what is in memory. Those that hold files in memory alone don't, and needn't."""
    try:
        os.preadv(file.descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def _unfilled_views(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """The views that a vectored read left unfilled, after ``done`` bytes."""
    left = []
    for view in views:
        if done >= len(view):
            done -= len(view)
        else:
            left.append(view[done:])
            done = 0
    return left
