"""The record of what a load has on disk, so that the next one keeps it.

A file of frames, each ``length, CRC-32, payload`` (both numbers unsigned, 32 bits, little-endian; the CRC is over
length and payload), the first being the header. A torn or garbage tail, as kill -9 or a full disk leaves it,
ends the reading and is cut off before more is appended. One process writes at a time: whoever has the entry's
``load.lock``.

Records survive the death of the process, for the kernel has them. They survive a crash of the *machine* only as far as
``sync`` was called after the data that they speak of was synced; ``JournalHeader.boot_id`` tells the two apart.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Self

import msgspec

from tonnage.cache.filesystem import TEMPORARY_SUFFIX, translate_os_errors
from tonnage.contract import Layout
from tonnage.errors import CacheNotWritable, InsufficientSpace, InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Which plan the records belong to: they are worth something only to a load that agrees in all of it but the boot.

    ``files`` are the output files with their sizes. ``identity`` is free for whatever else must agree.
    """

    revision: str
    layout: Layout
    segment_size: int
    part_size: int
    files: tuple[tuple[str, int], ...]
    boot_id: str
    identity: str = ""

    def is_compatible_with(self, other: JournalHeader) -> bool:
        """Says whether records under this header mean the same bytes under the other one."""
        return msgspec.structs.replace(self, boot_id="") == msgspec.structs.replace(other, boot_id="")


class Journal:
    """An open journal. Made by ``create`` or ``open``; as a context manager it closes at the end."""

    def __init__(self, path: Path, descriptor: int, header: JournalHeader, records: list[bytes], end: int) -> None:
        self.path = path
        self.header = header
        self._descriptor = descriptor
        self._records = records
        self._end = end

    @classmethod
    def create(cls, path: Path, header: JournalHeader, records: Iterable[bytes] = ()) -> Journal:
        """Starts a journal at ``path``, in place of whatever is there.

        Args:
            path: Its file.
            header: Which plan the records belong to.
            records: The first records: those of the journal that is replaced which still hold. Until they are all
                written, the old journal stays, so that kill -9 can't lose them.

        Raises:
            CacheNotWritable: The file can't be made.
            InsufficientSpace: There is no room for it.
        """
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with _translate_errors(path):
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        journal = cls(path, descriptor, header, [], 0)
        try:
            for payload in (msgspec.json.encode(header), *records):
                journal.append(payload)
            with _translate_errors(path):
                temporary.rename(path)
        except (CacheNotWritable, InsufficientSpace):
            journal.close()
            raise
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal | None:
        """Opens a journal that an earlier load left, cuts off a torn tail, and is ready for more.

        Returns:
            None where there is none, or where not even its header can be read.

        Raises:
            CacheNotWritable: It is there but can't be opened or written.
        """
        with _translate_errors(path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            try:
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    data = file.read()
                payloads, end = read_frames(data)
                header = _header(payloads)
                if header is None:
                    os.close(descriptor)
                    return None
                if end != len(data):
                    os.ftruncate(descriptor, end)
            except OSError:
                os.close(descriptor)
                raise
        return cls(path, descriptor, header, payloads[1:], end)

    def read_payloads(self) -> list[bytes]:
        """Returns the payloads that were there when it was opened, in the order of their writing."""
        return list(self._records)

    def append(self, payload: bytes) -> None:
        """Writes one record; it is with the kernel when this returns, so kill -9 can't take it.

        Raises:
            InsufficientSpace: The medium is full. The journal stays readable and can be appended to later.
            CacheNotWritable: The write failed otherwise.
            InternalError: The journal is closed.
        """
        if self._descriptor < 0:
            raise InternalError(f"The journal {self.path} is closed.")
        frame = make_frame(payload)
        done = 0
        with _translate_errors(self.path):
            try:
                while done < len(frame):
                    done += os.pwrite(self._descriptor, frame[done:], self._end + done)
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(frame)

    def sync(self) -> None:
        """Puts the records on the disk. Only worth its time where the medium isn't memory.

        Raises:
            CacheNotWritable: The disk refused.
        """
        with _translate_errors(self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Closes the file; twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_frame(payload: bytes) -> bytes:
    """Returns the bytes that ``payload`` is in a journal."""
    length = _LENGTH.pack(len(payload))
    return _FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


def read_frames(data: bytes) -> tuple[list[bytes], int]:
    """Returns the payloads up to the first frame that isn't whole, and where that one begins."""
    payloads = list(_frames(data))
    return payloads, sum(_FRAME.size + len(payload) for payload in payloads)


def _frames(data: bytes) -> Iterator[bytes]:
    position = 0
    while len(data) - position >= _FRAME.size:
        length, crc = _FRAME.unpack_from(data, position)
        start = position + _FRAME.size
        payload = data[start : start + length]
        if len(payload) != length or zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length))) != crc:
            return
        yield payload
        position = start + length


def _header(payloads: list[bytes]) -> JournalHeader | None:
    if not payloads:
        return None
    try:
        return msgspec.json.decode(payloads[0], type=JournalHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _translate_errors(path: Path) -> AbstractContextManager[None]:
    return translate_os_errors(f"The journal {path} can't be written")
