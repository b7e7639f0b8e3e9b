"""The journal: records which parts of an entry are on disk, so that the next load resumes.

The file is a sequence of frames ``length, CRC-32, payload``. Both numbers are unsigned, 32 bits, little-endian; the CRC
covers length and payload. The first payload is the header. A SIGKILL or a full disk can leave an incomplete frame at
the end: reading stops there, and it is truncated before more is appended. Only the holder of the entry's ``load.lock``
writes.

Records are in the page cache and survive the death of the process. They survive a crash of the *machine* only if
``sync`` was called after the data itself was synced; ``JournalHeader.boot_id`` shows whether the machine rebooted.
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
    """Identifies the load. Records are valid only for a load whose header is equal except for ``boot_id``.

    ``files`` are the output files with their sizes in bytes. ``identity`` is a digest of anything else that must match.
    """

    revision: str
    layout: Layout
    segment_size: int
    part_size: int
    files: tuple[tuple[str, int], ...]
    boot_id: str
    identity: str = ""

    def is_compatible_with(self, other: JournalHeader) -> bool:
        """Returns whether records of one header are valid for the other."""
        return msgspec.structs.replace(self, boot_id="") == msgspec.structs.replace(other, boot_id="")


class Journal:
    """An open journal. Use ``create`` or ``open``; as a context manager it closes itself."""

    def __init__(self, path: Path, descriptor: int, header: JournalHeader, records: list[bytes], end: int) -> None:
        self.path = path
        self.header = header
        self._descriptor = descriptor
        self._records = records
        self._end = end

    @classmethod
    def create(cls, path: Path, header: JournalHeader, records: Iterable[bytes] = ()) -> Journal:
        """Creates a journal at ``path``, replacing an existing one.

        Args:
            path: Its file.
            header: The header.
            records: The first records: the valid ones of the replaced journal. The old journal remains until all are
                written, so that a SIGKILL can't lose them.

        Raises:
            CacheNotWritable: The file can't be created.
            InsufficientSpace: The medium is full.
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
        """Opens the journal of an earlier load and truncates an incomplete last frame.

        Returns:
            None if it doesn't exist or its header can't be read.

        Raises:
            CacheNotWritable: It exists but can't be opened or written.
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
        """Returns the payloads that existed when the journal was opened, oldest first."""
        return list(self._records)

    def append(self, payload: bytes) -> None:
        """Appends a record. On return it is in the page cache and survives SIGKILL.

        Raises:
            InsufficientSpace: The medium is full. The journal remains readable, and more can be appended later.
            CacheNotWritable: The write failed for another reason.
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
        """Flushes the records to the disk.

        Raises:
            CacheNotWritable: The flush failed.
        """
        with _translate_errors(self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Closes the file. May be called more than once."""
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
    """Returns ``payload`` as a frame."""
    length = _LENGTH.pack(len(payload))
    return _FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


def read_frames(data: bytes) -> tuple[list[bytes], int]:
    """Returns the payloads before the first incomplete or corrupt frame, and the offset of that frame."""
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
