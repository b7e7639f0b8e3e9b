"""The preamble and the index of a ``.tensors`` file: what it holds and where each byte of it lies.

Both come first in the file, so that the plan for everything else is known after one request. No hash covers them;
what protects them is that they must agree with the object's size, with themselves, and with each tensor's own header
(``tensor_header``), which is hashed. Nothing here allocates by a length that the object's size has not confirmed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import FormatDamaged, FormatUnsupported, NotATensorizerFile
from tonnage.format.dtypes import parse_dtype
from tonnage.format.tensor_names import KIND_STATE_DICT, flat_name, parse_name, short_repr

if TYPE_CHECKING:
    from tonnage.format.dtypes import Dtype
    from tonnage.format.tensor_names import TensorPath

MAGIC = b"|TZR|"
PREAMBLE_BYTES = 73
TYPICAL_HEAD_BYTES = 262_217
"""Preamble and index of every file that a released tensorizer writes: one request of this many bytes gets both."""
TERMINATOR = bytes(8)
"""What follows the last tensor: the size of a header that isn't there."""

_PREAMBLE = struct.Struct("<5sI32sQQQQ")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_LOCATION = struct.Struct("<QQQ")

_OLDEST_VERSION, _NEWEST_VERSION = 1, 5
_ENCRYPTION_VERSION, _FLAGS_VERSION, _TAGS_VERSION = 3, 4, 5
_FLAG_ENCRYPTED, _FLAG_TAGGED = 1, 2
_TAG_SHORT, _TAG_LONG = 1, 5

_MIN_ENTRY_BYTES = 33
_MIN_HEADER_BYTES = 30
_MAX_HASH_BLOCK_BYTES = 65_535
MIN_CRYPT_BLOCK_BYTES = 10
"""Bytes of the block that encrypted files have in a header without encrypted data: its length and a count of 0."""
# Per piece of at least 1 KiB a 16-byte authenticator, and beside them a key derivation with a salt of at most 64 KiB.
_DATA_BYTES_PER_CRYPT_BYTE = 64
_CRYPT_OVERHEAD_BYTES = 1 << 17
_MAX_TENSOR_BYTES = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Preamble:
    """The first 73 bytes.

    Attributes:
        version: 1 to 5, the smallest that suffices for what the file holds.
        flags: The feature flags; zero below version 4.
        encrypted: Every tensor header has a crypt block, and tensor data is ciphertext.
        tagged: Every index entry begins with a tag that says how wide its dimensions are.
        data_bytes: The sum of all tensors' data lengths.
        tensor_count: At least 1.
        index_length: Bytes of the index, its zero fill included.
    """

    version: int
    flags: int
    encrypted: bool
    tagged: bool
    data_bytes: int
    tensor_count: int
    index_length: int

    @property
    def body_offset(self) -> int:
        """Where the index ends and the first tensor's header begins."""
        return PREAMBLE_BYTES + self.index_length


class TensorEntry(NamedTuple):
    """One tensor, as the index states it. Offsets count from the start of the file; ends are exclusive.

    Attributes:
        raw_name: The name's bytes as stored; unique in a file.
        path: The name as a path; unique in a file.
        name: The flat name, which two paths may share.
        kind: 0 parameter, 1 buffer, 2 entry of a state dict.
        dtype: The element type.
        shape: The dimensions; empty for a scalar.
        header_offset: Where the tensor's own header begins.
        data_offset: Where that header ends and the data begins.
        length: Bytes of data in the file; 0 for empty tensors and for meta tensors.
        wide_dimensions: The dimensions are stored in 8 bytes each, here and in the tensor's header, instead of 4.
    """

    raw_name: bytes
    path: TensorPath
    name: str
    kind: int
    dtype: Dtype
    shape: tuple[int, ...]
    header_offset: int
    data_offset: int
    length: int
    wide_dimensions: bool = False

    @property
    def data_end(self) -> int:
        """Where the data ends, and the next header or the terminator begins."""
        return self.data_offset + self.length

    @property
    def is_meta(self) -> bool:
        """The file has the shape but no data: tensorizer's readers, and Tonnage, make zeros of it."""
        return self.length == 0 and 0 not in self.shape

    @property
    def nbytes(self) -> int:
        """What the tensor takes in memory. Differs from ``length`` for meta tensors only.

        A few bytes of a file can claim any size here, so compare with free space before making such zeros.
        """
        return math.prod(self.shape) * self.dtype.item_size


@dataclass(frozen=True, slots=True)
class TensorsIndex:
    """A whole index, checked.

    Attributes:
        preamble: What stands before it.
        tensors: In file order, back to back: each header begins where the data before it ends.
        body_end: Where the terminator ends. The object may be longer; what follows means nothing.
    """

    preamble: Preamble
    tensors: tuple[TensorEntry, ...]
    body_end: int


def parse_preamble(data: bytes | bytearray | memoryview, *, object_size: int, label: str) -> Preamble:
    """Reads the first 73 bytes of an object and holds them against its size.

    Args:
        data: The first bytes of the object, 73 or more.
        object_size: Bytes of the whole object.
        label: What error texts call the object.

    Raises:
        NotATensorizerFile: It does not begin as such files do.
        FormatUnsupported: A version or feature flag that no released tensorizer writes.
        FormatDamaged: It is cut off, holds no tensor, or states lengths that the object has no room for.
    """
    head = bytes(data[:PREAMBLE_BYTES])
    if not head or head[: len(MAGIC)] != MAGIC[: len(head)]:
        begins = f"begins with {head[:16]!r}" if head else "is empty"
        raise NotATensorizerFile(f"{label} {begins}; tensorizer's files begin with {MAGIC.decode()}.")
    if len(head) < PREAMBLE_BYTES:
        raise FormatDamaged(f"{label} is cut off inside its first {PREAMBLE_BYTES} bytes, at byte {len(head)}.")
    _, version, raw_flags, data_bytes, reserved, count, index_length = _PREAMBLE.unpack(head)
    flags = int.from_bytes(raw_flags, "little")
    encrypted, tagged = _features(version, flags, label=label)
    if reserved:
        raise FormatDamaged(f"{label}: the reserved field at byte 49 is {reserved} instead of 0.")
    _check_sizes(data_bytes, count, index_length, object_size=object_size, label=label)
    return Preamble(version, flags, encrypted, tagged, data_bytes, count, index_length)


def _features(version: int, flags: int, *, label: str) -> tuple[bool, bool]:
    if not _OLDEST_VERSION <= version <= _NEWEST_VERSION:
        raise FormatUnsupported(
            f"{label} has format version {version}; this release of Tonnage reads "
            f"{_OLDEST_VERSION} to {_NEWEST_VERSION}."
        )
    known = (_FLAG_ENCRYPTED if version >= _FLAGS_VERSION else 0) | (_FLAG_TAGGED if version >= _TAGS_VERSION else 0)
    if flags & ~known:
        raise FormatUnsupported(f"{label} has feature flags {flags:#x}, which format version {version} does not know.")
    if version >= _TAGS_VERSION and not flags & _FLAG_TAGGED:
        raise FormatUnsupported(
            f"{label} has format version {version} without tagged index entries: an unreleased branch of tensorizer "
            "wrote such files, in another layout."
        )
    return version == _ENCRYPTION_VERSION or bool(flags & _FLAG_ENCRYPTED), bool(flags & _FLAG_TAGGED)


def _check_sizes(data_bytes: int, count: int, index_length: int, *, object_size: int, label: str) -> None:
    room = object_size - PREAMBLE_BYTES - len(TERMINATOR)
    if index_length > room:
        raise FormatDamaged(f"{label} states an index of {index_length} bytes but is itself {object_size} bytes long.")
    if count == 0:
        raise FormatDamaged(f"{label} holds no tensors: tensorizer leaves such a file when serializing fails midway.")
    if count > index_length // _MIN_ENTRY_BYTES:
        raise FormatDamaged(f"{label} states {count} tensors, for which its index of {index_length} bytes has no room.")
    if index_length + count * _MIN_HEADER_BYTES + data_bytes > room:
        raise FormatDamaged(
            f"{label} states {data_bytes} bytes of tensor data behind an index of {index_length} bytes, but is itself "
            f"{object_size} bytes long: it is cut off or damaged."
        )


def parse_index(
    preamble: Preamble, index: bytes | bytearray | memoryview, *, object_size: int, label: str
) -> TensorsIndex:
    """Reads the index and checks all that can be known before the first tensor's bytes arrive.

    Args:
        preamble: Of the same object.
        index: The ``preamble.index_length`` bytes from byte 73 on; anything after them is ignored.
        object_size: Bytes of the whole object.
        label: What error texts call the object.

    Raises:
        FormatUnsupported: A dtype that no released tensorizer writes.
        FormatDamaged: The index is cut off, contradicts itself, has a name twice, does not cover the body without
            gaps and overlaps, or reaches beyond the object's end.
    """
    if len(index) < preamble.index_length:
        raise FormatDamaged(f"{label}: the index is cut off after {len(index)} of {preamble.index_length} bytes.")
    reader = _IndexReader(bytes(index[: preamble.index_length]), tagged=preamble.tagged, label=label)
    tensors: list[TensorEntry] = []
    header_offset = preamble.body_offset
    for number in range(preamble.tensor_count):
        try:
            entry = reader.read_entry()
        except (struct.error, IndexError) as error:
            raise FormatDamaged(
                f"{label}: the index ends inside entry {number + 1} of {preamble.tensor_count}."
            ) from error
        _check_offsets(entry, header_offset, encrypted=preamble.encrypted, label=label)
        header_offset = entry.data_offset + entry.length
        tensors.append(entry)
    _check_unique(tensors, label=label)
    total = sum(entry.length for entry in tensors)
    if total != preamble.data_bytes:
        raise FormatDamaged(
            f"{label}: its tensors are {total} bytes together, but its first bytes state {preamble.data_bytes}."
        )
    body_end = header_offset + len(TERMINATOR)
    if body_end > object_size:
        raise FormatDamaged(f"{label} is cut off: it should have {body_end} bytes and has {object_size}.")
    return TensorsIndex(preamble, tuple(tensors), body_end)


class _IndexReader:
    """Reads one entry after the other. Reading beyond the end raises struct.error or IndexError."""

    __slots__ = ("_dtypes", "_index", "_label", "_position", "_tagged")

    def __init__(self, index: bytes, *, tagged: bool, label: str) -> None:
        self._index = index
        self._tagged = tagged
        self._label = label
        self._position = 0
        self._dtypes: dict[bytes, Dtype] = {}

    def read_entry(self) -> TensorEntry:
        """Reads the next entry, whose fields are checked only as far as each alone can be."""
        index = self._index
        start = position = self._position
        wide_dimensions = False
        if self._tagged:
            (tag,) = _U32.unpack_from(index, position)
            if tag not in {_TAG_SHORT, _TAG_LONG}:
                raise FormatDamaged(f"{self._where(start)}: the entry's tag is {tag}, neither 1 nor 5.")
            wide_dimensions = tag == _TAG_LONG
            position += 4
        (size,) = _U16.unpack_from(index, position)
        position += 2
        raw = index[position : position + size]
        position += size
        kind = index[position]
        size = index[position + 1]
        position += 2
        stored = index[position : position + size]
        position += size
        rank = index[position]
        shape = struct.unpack_from(f"<{rank}{'Q' if wide_dimensions else 'I'}", index, position + 1)
        position += 1 + rank * (8 if wide_dimensions else 4)
        header_offset, data_offset, length = _LOCATION.unpack_from(index, position)
        self._position = position + _LOCATION.size
        if kind > KIND_STATE_DICT:
            raise FormatDamaged(f"{self._where(start)}: the tensor {short_repr(raw)} is of the unknown kind {kind}.")
        path = parse_name(raw, kind, where=self._where(start))
        dtype = self._dtypes.get(stored)
        if dtype is None:
            dtype = parse_dtype(stored, where=f"{self._label}, tensor {short_repr(raw)}")
            self._dtypes[stored] = dtype
        return TensorEntry(
            raw, path, flat_name(path, kind), kind, dtype, shape, header_offset, data_offset, length, wide_dimensions
        )

    def _where(self, position: int) -> str:
        return f"{self._label}, index entry at byte {PREAMBLE_BYTES + position}"


def _check_offsets(entry: TensorEntry, header_offset: int, *, encrypted: bool, label: str) -> None:
    if entry.header_offset != header_offset:
        raise FormatDamaged(
            f"{label}: the header of tensor {short_repr(entry.raw_name)} is stated at byte {entry.header_offset}, but "
            f"what "
            f"comes before it ends at byte {header_offset}."
        )
    header_size = entry.data_offset - header_offset
    smallest = min_header_size(entry)
    largest = smallest + _MAX_HASH_BLOCK_BYTES - 1
    if encrypted:
        smallest += MIN_CRYPT_BLOCK_BYTES
        largest += _CRYPT_OVERHEAD_BYTES + entry.length // _DATA_BYTES_PER_CRYPT_BYTE
    if not smallest <= header_size <= largest:
        raise FormatDamaged(
            f"{label}: the data of tensor {short_repr(entry.raw_name)} is stated at byte {entry.data_offset}, which "
            f"leaves "
            f"{header_size} bytes for its header at byte {header_offset}."
        )
    expected = entry.nbytes
    if entry.length not in {0, expected}:
        raise FormatDamaged(
            f"{label}: the tensor {short_repr(entry.raw_name)} has the shape {format_shape(entry.shape)}, which is "
            f"{expected} "
            f"bytes, but {entry.length} are stated at byte {entry.data_offset}."
        )
    if expected > _MAX_TENSOR_BYTES:
        raise FormatDamaged(
            f"{label}: the tensor {short_repr(entry.raw_name)} has the shape {format_shape(entry.shape)}, more than "
            f"any "
            "machine can hold."
        )


def min_header_size(entry: TensorEntry) -> int:
    """Returns the size of the header that this tensor would have without hashes and without encryption."""
    dimensions = len(entry.shape) * (8 if entry.wide_dimensions else 4)
    return 26 + len(entry.raw_name) + len(entry.dtype.stored_name) + dimensions


def format_shape(shape: tuple[int, ...]) -> str:
    """Returns a shape as error texts show it."""
    return "[" + ", ".join(map(str, shape)) + "]"


def _check_unique(tensors: list[TensorEntry], *, label: str) -> None:
    # Paths, not raw names: a flat name and an array of just that name are one path.
    seen: set[TensorPath] = set()
    for entry in tensors:
        if entry.path in seen:
            raise FormatDamaged(
                f"{label}: the tensor {short_repr(entry.raw_name)} is there twice, the second time at byte "
                f"{entry.header_offset}."
            )
        seen.add(entry.path)
