"""Reads the pieces of a chunk into a buffer: from memory, or past it where a file on a disk is cold."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from typing import TYPE_CHECKING, Literal, NamedTuple

from tonnage.attach.mapped import Mappings
from tonnage.attach.unread import await_first_read
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tonnage.attach.chunks import Chunk, Run
    from tonnage.attach.files import SourceFile

Direct = Literal["auto", "never", "always"]

DISK_BLOCK = 4096
"""Offsets, lengths and addresses of direct reads are multiples of this; no disk has larger blocks."""
SMALLEST_DIRECT = 1 << 20
"""Bytes. Below it a direct read's latency costs more than the page cache."""
_LARGEST_GAP = 16 << 10
"""Bytes between two pieces of a file up to which one system call reads both, and throws what is between away."""
_LARGEST_VECTOR = 512
_MOST_MAPPED_PIECES = 64
"""Chunks of more pieces are read by system calls, which take many at a time."""
_READ_EVERY = 4
"""Of chunks that nobody has read yet, one of so many is read, the others are copied from a mapping. The lock that makes
first reads slow isn't waited for then, and with each process that loads the same files fewer are left unread.
"""


class Copy(NamedTuple):
    """What is to be copied on: ``length`` bytes at ``offset`` of the buffer to ``target`` in the group."""

    offset: int
    target: int
    length: int


class Reader:
    """Reads chunks of some files. Used by all worker threads; each passes its own buffer and scratch memory.

    Attributes:
        files: What pieces refer to by number.
    """

    def __init__(
        self, files: Sequence[SourceFile], *, direct: Direct = "auto", first_reads: bool | None = None
    ) -> None:
        """Looks where the files lie.

        Args:
            files: What pieces refer to by number.
            direct: Whether to go past the page cache: where a file isn't in it, never, or always.
            first_reads: Whether files in memory were never read before, which mostly a mapping is better for; None: to
                be found out.
        """
        self.files = files
        self._direct = direct
        in_memory = [not _can_tell(file) for file in files]
        self._cached_only = [direct == "never" or (direct == "auto" and here) for here in in_memory]
        self._mappings = Mappings(files)
        self._turns: Iterator[int] | None = None
        if direct != "always" and all(in_memory):
            if first_reads is None:
                first_reads = await_first_read(sum(file.size for file in files))
            if first_reads:  # at another chunk in each process, so that in time all are read
                self._turns = itertools.count(os.urandom(1)[0])
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def may_read_direct(self) -> bool:
        """Whether some file may be read past the page cache, so that buffers need room for alignment."""
        return not all(self._cached_only)

    def fill(self, chunk: Chunk, buffer: memoryview, scratch: memoryview, *, address: int) -> list[Copy]:
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
        pieces = chunk.pieces
        first = pieces[0]
        if not self._cached_only[first.file] and chunk.length >= SMALLEST_DIRECT:
            copies = self._past_the_cache(pieces, buffer)
            if copies is not None:
                return copies
        if not self._by_mapping(chunk, address):
            self._by_calls(chunk, buffer, scratch)
        return [Copy(0, chunk.target, chunk.length)]

    def close(self) -> None:
        """Closes what direct reads opened. No thread may be reading."""
        with self._lock:
            for descriptor in self._descriptors.values():
                if descriptor >= 0:
                    os.close(descriptor)
            self._descriptors.clear()

    def give_back(self) -> None:
        """Gives back what reading took and nobody needs any more; each thread may help with it."""
        self._mappings.give_back()

    def _by_mapping(self, chunk: Chunk, address: int) -> bool:
        """Copies a chunk from mappings; False where it's better read, or can't be mapped."""
        if self._turns is None or len(chunk.pieces) > _MOST_MAPPED_PIECES or next(self._turns) % _READ_EVERY == 0:
            return False
        return all(
            self._mappings.read(piece.file, piece.source, piece.length, address + piece.target - chunk.target)
            for piece in chunk.pieces
        )

    def _by_calls(self, chunk: Chunk, buffer: memoryview, scratch: memoryview) -> None:
        first = chunk.pieces[0]
        if len(chunk.pieces) == 1:
            self._read(first.file, first.source, [buffer[: first.length]], first.length)
        else:
            self._gather(chunk, buffer, scratch)

    def _gather(self, chunk: Chunk, buffer: memoryview, scratch: memoryview) -> None:
        """Reads neighboring pieces in one call each, at their aligned places, and headers between them to nowhere."""
        views: list[memoryview] = []
        file = start = end = -1
        for piece in chunk.pieces:
            gap = piece.source - end
            if piece.file != file or not 0 <= gap <= _LARGEST_GAP or len(views) >= _LARGEST_VECTOR:
                if views:
                    self._read(file, start, views, end - start)
                views, file, start = [], piece.file, piece.source
            elif gap:
                views.append(scratch[:gap])
            place = piece.target - chunk.target
            views.append(buffer[place : place + piece.length])
            end = piece.source + piece.length
        if views:
            self._read(file, start, views, end - start)

    def _read(self, number: int, offset: int, views: list[memoryview], length: int) -> None:
        file = self.files[number]
        try:
            done = os.preadv(file.descriptor, views, offset)
            while done < length:
                left = _without(views, done)
                count = os.preadv(file.descriptor, left, offset + done)
                if count == 0:
                    raise CacheDamaged(
                        f"{file.path} ended at byte {offset + done:,} while it was read; it had {file.size:,} bytes."
                    )
                done += count
        except OSError as error:
            raise CacheDamaged(f"Reading {file.path} at byte {offset:,} failed: {error.strerror}.") from error

    def _past_the_cache(self, pieces: Sequence[Run], buffer: memoryview) -> list[Copy] | None:
        """Reads one stretch of a disk's file that isn't in memory; None where the ordinary way is the right one."""
        number, start = pieces[0].file, pieces[0].source
        end = pieces[-1].source + pieces[-1].length
        wanted = sum(piece.length for piece in pieces)
        if pieces[-1].file != number or not wanted <= end - start <= min(2 * wanted, len(buffer)):
            return None
        if self._direct == "auto" and self._mappings.in_memory(number, start, end - start):
            return None
        begin = start // DISK_BLOCK * DISK_BLOCK
        size = -(-(end - begin) // DISK_BLOCK) * DISK_BLOCK
        if size > len(buffer) or self._cached_only[number]:
            return None
        if not self._read_direct(number, begin, end - begin, buffer[:size]):
            return None
        return [Copy(piece.source - begin, piece.target, piece.length) for piece in pieces]

    def _read_direct(self, number: int, offset: int, length: int, buffer: memoryview) -> bool:
        """Reads past the page cache, and says whether that was possible."""
        descriptor = self._descriptor(number)
        done = 0
        try:
            while descriptor >= 0 and done < length:
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
                done += count
                if count == 0 or (done < length and done % DISK_BLOCK):
                    return False
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            path = self.files[number].path
            raise CacheDamaged(f"Reading {path} at byte {offset + done:,} failed: {error.strerror}.") from error
        return descriptor >= 0

    def _descriptor(self, number: int) -> int:
        """A descriptor for direct reads; -1 where the file system has none."""
        with self._lock:
            if number not in self._descriptors:
                path = f"/proc/self/fd/{self.files[number].descriptor}"
                try:
                    self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError:
                    self._descriptors[number] = -1
                    self._cached_only[number] = True
            return self._descriptors[number]


def _can_tell(file: SourceFile) -> bool:
    """Whether the file system says what is in memory. Those that hold files in memory alone don't, and needn't."""
    try:
        os.preadv(file.descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def _without(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """The views that a vectored read left unfilled, after ``done`` bytes."""
    left = []
    for view in views:
        if done >= len(view):
            done -= len(view)
        else:
            left.append(view[done:])
            done = 0
    return left
