"""The journal: records which parts of an entry are on disk, so that the next load resumes.

The file is a sequence of frames ``length, CRC-32, payload``. Both numbers are unsigned, 32 bits, little-endian; the CRC
covers length and payload. The first payload is the header. A SIGKILL or a full disk can leave an incomplete frame at
the end: reading stops there. A load that resumes another one writes a new file, so that two never append to the same.

Records are in the page cache and survive the death of the process. That a part is listed does not prove that its bytes
are on the disk: after a crash of the machine they may be missing, so they are read and verified before they are used.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from tonnage.cache.filesystem import TEMPORARY_SUFFIX, open_for_reading, translate_os_errors
from tonnage.contract import Layout
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import CacheNotWritable, InsufficientSpace, InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies the load. Records are valid only for a load whose header is equal.

    ``files`` are the output files with their sizes in bytes. ``identity`` is a digest of anything else that must match.
    """

    revision: str
    layout: Layout
    segment_size: int
    files: tuple[tuple[str, int], ...]
    identity: str = ""


class Journal:
    """A journal that is being written. Use ``create``; as a context manager it closes itself."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._end = 0

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
        journal = cls(path, descriptor)
        try:
            for payload in (msgspec.json.encode(header), *records):
                journal.append(payload)
            with _translate_errors(path):
                temporary.rename(path)
        except (CacheNotWritable, InsufficientSpace):
            journal.close()
            raise
        return journal

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


class JournalContents(NamedTuple):
    """What an earlier load recorded, the oldest first."""

    header: JournalHeader
    records: list[bytes]


def read_journal(path: Path) -> JournalContents | None:
    """Returns the contents of a journal up to the first frame that is incomplete or corrupt.

    Returns:
        None if it doesn't exist or its header can't be read.

    Raises:
        CacheNotWritable: It exists but can't be read.
    """
    with translate_os_errors(f"The journal {path} can't be read"):
        try:
            descriptor = open_for_reading(path)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            payloads, _ = read_frames(file.read())
    header = _header(payloads)
    return None if header is None else JournalContents(header, payloads[1:])


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
    except DECODE_ERRORS:
        return None


def _translate_errors(path: Path) -> AbstractContextManager[None]:
    return translate_os_errors(f"The journal {path} can't be written")
