"""Parses the preamble and index of a ``.tensors`` file, which list its tensors and their offsets.

They are at the start of the file, so one request is enough to plan the rest. No hash covers them. Instead they are
checked against the object's size, for consistency, and against each tensor's header (``tensor_header``), which is
hashed. Memory is never allocated by a length that was not checked against the object's size.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import FormatDamaged, FormatUnsupported, NotATensorizerFile
from tonnage.format.dtypes import parse_dtype
from tonnage.format.tensor_names import KIND_STATE_DICT, flat_name, parse_name, short_repr
from tonnage.record import Record

if TYPE_CHECKING:
    from tonnage.format.dtypes import Dtype
    from tonnage.format.tensor_names import TensorPath

MAGIC = b"|TZR|"
PREAMBLE_BYTES = 73
TYPICAL_HEAD_BYTES = 262_217
"""Bytes of preamble and index in files of released tensorizers, so that one request usually fetches both."""
TERMINATOR = bytes(8)
"""The bytes after the last tensor: the header size 0."""

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
"""Bytes of the crypt block of a tensor without data in an encrypted file: its length and a count of 0."""
# A 16-byte authenticator for each piece of at least 1 KiB, and a key derivation with a salt of at most 64 KiB.
_DATA_BYTES_PER_CRYPT_BYTE = 64
_CRYPT_OVERHEAD_BYTES = 1 << 17
_MAX_TENSOR_BYTES = (1 << 63) - 1


class Preamble(Record, frozen=True):
    """The first 73 bytes.

    Attributes:
        version: 1 to 5, the lowest version that supports the file's contents.
        flags: The feature flags; zero below version 4.
        encrypted: Every tensor header has a crypt block, and tensor data is ciphertext.
        tagged: Every index entry begins with a tag for the width of its dimensions.
        data_bytes: Total bytes of all tensors' data.
        tensor_count: At least 1.
        index_length: Bytes of the index, including its zero padding.
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
        """Offset of the end of the index, where the first tensor's header begins."""
        return PREAMBLE_BYTES + self.index_length


class TensorEntry(NamedTuple):
    """A tensor in the index. Offsets are from the start of the file; ends are exclusive.

    Attributes:
        raw_name: The name's bytes as stored; unique in a file.
        path: The name as a path; unique in a file.
        name: The flat name; two paths may have the same.
        kind: 0 parameter, 1 buffer, 2 entry of a state dict.
        dtype: The element type.
        shape: The dimensions; empty for a scalar.
        header_offset: Start of the tensor's header.
        data_offset: End of that header and start of the data.
        length: Bytes of data in the file; 0 for empty tensors and for meta tensors.
        wide_dimensions: Whether dimensions are stored in 8 bytes instead of 4, here and in the tensor's header.
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
        """End of the data, where the next header or the terminator begins."""
        return self.data_offset + self.length

    @property
    def is_meta(self) -> bool:
        """The file has the shape but no data. tensorizer and Tonnage read such a tensor as zeros."""
        return self.length == 0 and 0 not in self.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory. Differs from ``length`` for meta tensors only.

        A small file can state any size here, so compare it with free memory before allocating zeros.
        """
        return math.prod(self.shape) * self.dtype.item_size


class TensorsIndex(Record, frozen=True):
    """A complete, checked index.

    Attributes:
        preamble: The preamble.
        tensors: In file order, without gaps: each header begins where the previous data ends.
        body_end: End of the terminator. The object may be longer; the remaining bytes have no meaning.
    """

    preamble: Preamble
    tensors: tuple[TensorEntry, ...]
    body_end: int

    @property
    def body_offset(self) -> int:
        """End of the index, where the first tensor's header begins."""
        return self.preamble.body_offset

    @property
    def encrypted(self) -> bool:
        """Whether the tensors' data is ciphertext."""
        return self.preamble.encrypted


def parse_preamble(data: bytes | bytearray | memoryview, *, object_size: int, label: str) -> Preamble:
    """Parses the first 73 bytes of an object and checks them against its size.

    Args:
        data: The first bytes of the object, 73 or more.
        object_size: Bytes of the whole object.
        label: How error texts call the object.

    Raises:
        NotATensorizerFile: It doesn't begin with the magic number.
        FormatUnsupported: A version or feature flag that no released tensorizer writes.
        FormatDamaged: It is truncated, has no tensors, or states lengths beyond the object's size.
    """
    head = bytes(data[:PREAMBLE_BYTES])
    if not head or head[: len(MAGIC)] != MAGIC[: len(head)]:
        begins = f"begins with {head[:16]!r}" if head else "is empty"
        raise NotATensorizerFile(f"{label} {begins}; files of tensorizer begin with {MAGIC.decode()}.")
    if len(head) < PREAMBLE_BYTES:
        raise FormatDamaged(f"{label} is truncated inside its first {PREAMBLE_BYTES} bytes, at byte {len(head)}.")
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
        raise FormatUnsupported(
            f"{label} has feature flags {flags:#x}, which format version {version} does not define."
        )
    if version >= _TAGS_VERSION and not flags & _FLAG_TAGGED:
        raise FormatUnsupported(
            f"{label} has format version {version} without tagged index entries. Only an unreleased branch of "
            "tensorizer wrote such files, in another layout."
        )
    return version == _ENCRYPTION_VERSION or bool(flags & _FLAG_ENCRYPTED), bool(flags & _FLAG_TAGGED)


def _check_sizes(data_bytes: int, count: int, index_length: int, *, object_size: int, label: str) -> None:
    available = object_size - PREAMBLE_BYTES - len(TERMINATOR)
    if index_length > available:
        raise FormatDamaged(f"{label} states an index of {index_length} bytes, but has only {object_size} bytes.")
    if count == 0:
        raise FormatDamaged(f"{label} has no tensors: tensorizer leaves such a file if serialization fails.")
    if count > index_length // _MIN_ENTRY_BYTES:
        raise FormatDamaged(f"{label} states {count} tensors, more than fit into its index of {index_length} bytes.")
    if index_length + count * _MIN_HEADER_BYTES + data_bytes > available:
        raise FormatDamaged(
            f"{label} states {data_bytes} bytes of tensor data after an index of {index_length} bytes, but has only "
            f"{object_size} bytes: it is truncated or damaged."
        )


def parse_index(
    preamble: Preamble, index: bytes | bytearray | memoryview, *, object_size: int, label: str
) -> TensorsIndex:
    """Parses and checks the index.

    Args:
        preamble: The preamble of the same object.
        index: At least the ``preamble.index_length`` bytes from byte 73; bytes after them are ignored.
        object_size: Bytes of the whole object.
        label: How error texts call the object.

    Raises:
        FormatUnsupported: A dtype that no released tensorizer writes.
        FormatDamaged: The index is truncated or inconsistent, has a duplicate name, has gaps or overlaps between
            tensors, or ends beyond the object.
    """
    if len(index) < preamble.index_length:
        raise FormatDamaged(f"{label}: the index is truncated after {len(index)} of {preamble.index_length} bytes.")
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
            f"{label}: its tensors have {total} bytes in total, but its preamble states {preamble.data_bytes}."
        )
    body_end = header_offset + len(TERMINATOR)
    if body_end > object_size:
        raise FormatDamaged(f"{label} is truncated: it should have {body_end} bytes, but has {object_size}.")
    return TensorsIndex(preamble, tuple(tensors), body_end)


class _IndexReader:
    """Reads entries in order. Reading beyond the end raises struct.error or IndexError."""

    __slots__ = ("_dtypes", "_index", "_label", "_position", "_tagged")

    def __init__(self, index: bytes, *, tagged: bool, label: str) -> None:
        self._index = index
        self._tagged = tagged
        self._label = label
        self._position = 0
        self._dtypes: dict[bytes, Dtype] = {}

    def read_entry(self) -> TensorEntry:
        """Reads the next entry and checks each of its fields, but not their consistency."""
        index = self._index
        start = position = self._position
        wide_dimensions = False
        if self._tagged:
            (tag,) = _U32.unpack_from(index, position)
            if tag not in {_TAG_SHORT, _TAG_LONG}:
                raise FormatDamaged(f"{self._where(start)}: the entry's tag is {tag} instead of 1 or 5.")
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
            raise FormatDamaged(f"{self._where(start)}: the tensor {short_repr(raw)} has the unknown kind {kind}.")
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
            f"{label}: the header of tensor {short_repr(entry.raw_name)} should be at byte {header_offset}, where the "
            f"previous data ends, but the index states byte {entry.header_offset}."
        )
    header_size = entry.data_offset - header_offset
    smallest = min_header_size(entry)
    largest = smallest + _MAX_HASH_BLOCK_BYTES - 1
    if encrypted:
        smallest += MIN_CRYPT_BLOCK_BYTES
        largest += _CRYPT_OVERHEAD_BYTES + entry.length // _DATA_BYTES_PER_CRYPT_BYTE
    if not smallest <= header_size <= largest:
        raise FormatDamaged(
            f"{label}: the index states that the data of tensor {short_repr(entry.raw_name)} is at byte "
            f"{entry.data_offset}, so its header at byte {header_offset} would have the invalid size {header_size}."
        )
    expected = entry.nbytes
    if entry.length not in {0, expected}:
        raise FormatDamaged(
            f"{label}: the tensor {short_repr(entry.raw_name)} at byte {entry.data_offset} needs {expected} bytes for "
            f"its shape {format_shape(entry.shape)}, but has {entry.length}."
        )
    if expected > _MAX_TENSOR_BYTES:
        raise FormatDamaged(
            f"{label}: the tensor {short_repr(entry.raw_name)} has the shape {format_shape(entry.shape)}, which is too "
            "large for any machine."
        )


def min_header_size(entry: TensorEntry) -> int:
    """Returns the size of this tensor's header without hashes and encryption."""
    dimensions = len(entry.shape) * (8 if entry.wide_dimensions else 4)
    return 26 + len(entry.raw_name) + len(entry.dtype.stored_name) + dimensions


def format_shape(shape: tuple[int, ...]) -> str:
    """Returns a shape for error texts."""
    return "[" + ", ".join(map(str, shape)) + "]"


def _check_unique(tensors: list[TensorEntry], *, label: str) -> None:
    # Paths, not raw names: a flat name and an array of only that name are the same path.
    seen: set[TensorPath] = set()
    for entry in tensors:
        if entry.path in seen:
            raise FormatDamaged(
                f"{label}: the tensor {short_repr(entry.raw_name)} is duplicate, the second time at byte "
                f"{entry.header_offset}."
            )
        seen.add(entry.path)
