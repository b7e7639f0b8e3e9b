"""Safetensors files: builds the header of a shard to write, and parses the header of an existing one.

A file consists of 8 bytes of header length, the header as JSON, and the tensors' data. Readers reject gaps,
overlaps and bytes after the last tensor. Therefore data is aligned by the order of the tensors (larger elements first)
and by spaces after the header's JSON, never by padding between tensors.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from tonnage.errors import (
    CacheDamaged,
    DtypeUnsupported,
    FormatDamaged,
    FormatUnsupported,
    InternalError,
    NameCollision,
    escape_unprintable,
)
from tonnage.format.dtypes import HALF_BYTE_NAME, dtype_from_safetensors
from tonnage.format.tensor_names import KIND_STATE_DICT, RESERVED_NAME, short_repr
from tonnage.format.tensors_index import TensorEntry
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.format.dtypes import Dtype

LENGTH_BYTES = 8
PREFIX_BYTES = 32
"""Bytes by which ``header_length`` recognizes a file of another format."""
MAX_HEADER_BYTES = 100_000_000
"""Largest header in bytes of JSON that the safetensors library reads."""
MAX_TENSORS = 1 << 18
"""Largest number of tensors in a file: more than any model has. It bounds the memory that a header can take."""
MAX_METADATA_BYTES = 16 << 20
"""Largest metadata of a header in bytes of JSON, for the same reason."""
MAX_UNUSUAL_BYTES = 8 << 20
"""Largest header, in bytes of JSON, in a form that no library writes: with escapes, or with fields of its own."""
MAX_DEPTH = 127
"""Deepest nesting of a header's JSON that the safetensors library reads."""
_LENGTH_MAX = (1 << 63) - 1
_LONG_ARRAY = re.compile(rb"\[[^\[\]]{8192}")
_METADATA = re.compile(rb'(?<!\\)"__metadata__"\s*:\s*')
_NEGATIVE = re.compile(rb"[\[,:]\s*-")
_QUOTES_OF_ROW = 10
"""Quotation marks of a tensor in the header: around its name, three fields, and the dtype."""
_NO_TENSOR = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


class ShardTensor(NamedTuple):
    """A tensor to write.

    Attributes:
        name: The flat name, unique in the shard.
        dtype: A dtype that the safetensors format supports.
        shape: The dimensions.
        length: Bytes of data: the product of the dimensions times the element size.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    length: int


class SafetensorsTensor(NamedTuple):
    """A tensor in a file. Its data is the file's bytes from ``start`` (inclusive) to ``end`` (exclusive)."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile(Record, frozen=True):
    """A parsed header, checked against the file's size.

    Attributes:
        tensors: The tensors by name, in the order of their data.
        metadata: The header's metadata, such as ``{"format": "pt"}``.
        data_start: Offset of the end of the header, where the first tensor begins.
    """

    tensors: Mapping[str, SafetensorsTensor]
    metadata: Mapping[str, str]
    data_start: int


def safetensors_dtype_name(name: str, dtype: Dtype, *, label: str) -> str:
    """Returns the name of a dtype in safetensors headers.

    Args:
        name: The tensor's flat name, for the error text.
        dtype: Its dtype.
        label: How the error text calls the source object.

    Raises:
        DtypeUnsupported: The safetensors format doesn't support it.
    """
    if dtype.safetensors_name is None:
        raise DtypeUnsupported(
            f"{label}: tensor {short_repr(name)} has the dtype {dtype.torch_name}, which the safetensors format does "
            "not support; load with --layout tensorizer."
        )
    return dtype.safetensors_name


def alignment_order(tensors: Sequence[ShardTensor]) -> list[int]:
    """Returns the indexes of ``tensors`` in an order that aligns each to its element size.

    Larger elements come first; tensors with the same element size keep their order.
    """
    return sorted(range(len(tensors)), key=lambda index: -tensors[index].dtype.item_size)


def build_shard_header(
    tensors: Sequence[ShardTensor], *, metadata: Mapping[str, str], label: str = "shard", align: int = 4096
) -> tuple[bytes, tuple[int, ...]]:
    """Returns the bytes before a shard's data, and the offset of each tensor's data.

    Args:
        tensors: In the order of their data, each aligned to its element size (see ``alignment_order``).
        metadata: The header's metadata, unchanged; engines expect ``{"format": "pt"}``.
        label: How error texts call the source object.
        align: Alignment of the data in bytes, a multiple of 8.

    Returns:
        The first bytes of the file, and the absolute offset of each tensor's first byte.

    Raises:
        DtypeUnsupported: The safetensors format doesn't support a dtype.
        NameCollision: A name is duplicate or ``__metadata__``.
        FormatUnsupported: The header would be larger than readers accept.
        InternalError: A tensor's length doesn't match its shape, or a tensor is misaligned.
    """
    if align < 8 or align % 8:
        raise InternalError(f"Shards can't be aligned to {align} bytes.")
    header: dict[str, object] = {RESERVED_NAME: dict(metadata)}
    starts: list[int] = []
    start = 0
    for tensor in tensors:
        end = start + tensor.length
        if tensor.name in header:
            raise NameCollision(f"A shard can't contain two tensors named {short_repr(tensor.name)}.")
        dtype_name = safetensors_dtype_name(tensor.name, tensor.dtype, label=label)
        _check_writable(tensor, start)
        header[tensor.name] = {"dtype": dtype_name, "shape": tensor.shape, "data_offsets": (start, end)}
        starts.append(start)
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    size = -(-(LENGTH_BYTES + len(text)) // align) * align
    if size - LENGTH_BYTES > MAX_HEADER_BYTES:
        raise FormatUnsupported(
            f"{len(tensors)} tensors need a safetensors header of {size} bytes, more than the limit of readers "
            f"({MAX_HEADER_BYTES}); load with --layout tensorizer, which has no such limit."
        )
    head = (size - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text.ljust(size - LENGTH_BYTES)
    return head, tuple(size + start for start in starts)


def _check_writable(tensor: ShardTensor, start: int) -> None:
    if math.prod(tensor.shape) * tensor.dtype.item_size != tensor.length:
        raise InternalError(
            f"The tensor {short_repr(tensor.name)} has {tensor.length} bytes for the shape {tensor.shape}."
        )
    if tensor.length and start % tensor.dtype.item_size:
        raise InternalError(f"The tensor {short_repr(tensor.name)} would be misaligned, at byte {start} of the data.")


def read_header(path_or_fd: str | os.PathLike[str] | int, *, label: str) -> SafetensorsFile:
    """Reads the header of a shard and checks it against the file's size.

    Args:
        path_or_fd: The file's path, or a descriptor open for reading, whose position doesn't change.
        label: How error texts call the file.

    Raises:
        CacheDamaged: The file can't be read, is truncated or too long, or Tonnage doesn't write such a header.
    """
    if isinstance(path_or_fd, int):
        return _read(path_or_fd, label=label)
    try:
        descriptor = os.open(path_or_fd, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CacheDamaged(f"{label} can't be opened: {error.strerror}.") from error
    try:
        return _read(descriptor, label=label)
    finally:
        os.close(descriptor)


def _read(descriptor: int, *, label: str) -> SafetensorsFile:
    try:
        file_size = os.fstat(descriptor).st_size
        length = header_length(os.pread(descriptor, PREFIX_BYTES, 0), file_size=file_size, label=label)
        text = os.pread(descriptor, length, LENGTH_BYTES)
    except (FormatDamaged, FormatUnsupported) as error:
        raise CacheDamaged(error.message) from error
    except OSError as error:
        raise CacheDamaged(f"{label} can't be read: {error.strerror}.") from error
    if len(text) < length:
        raise CacheDamaged(f"{label} is truncated inside its header, at byte {LENGTH_BYTES + len(text)}.")
    try:
        return parse_header(text, file_size=file_size, label=label)
    except (FormatDamaged, FormatUnsupported) as error:
        raise CacheDamaged(error.message) from error


_Length = Annotated[int, msgspec.Meta(ge=0, le=_LENGTH_MAX)]


class _Row(msgspec.Struct):
    """A tensor in the header's JSON."""

    dtype: str
    shape: tuple[_Length, ...]
    data_offsets: tuple[_Length, _Length]


class _Reserved(msgspec.Struct, rename={"metadata": RESERVED_NAME}):
    """What is not a tensor in the header's JSON."""

    metadata: msgspec.Raw = msgspec.Raw(b"null")


def header_length(prefix: bytes, *, file_size: int, label: str) -> int:
    """Returns the bytes of a header's JSON.

    Args:
        prefix: The first bytes of the file, 8 or more.
        file_size: Bytes of the whole file.
        label: How error texts call the file.

    Raises:
        FormatDamaged: The file is too short, or is not a safetensors file.
        FormatUnsupported: The header is larger than the safetensors library reads.
    """
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if len(prefix) < LENGTH_BYTES or length < 2:  # the shortest JSON is {}
        raise FormatDamaged(f"{label} has {file_size} bytes and begins with {prefix[:16]!r}: not a safetensors file.")
    if length > file_size - LENGTH_BYTES and prefix[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        pointer = prefix.startswith(b"version https://git")
        hint = " It is a pointer of Git LFS: upload the file itself." if pointer else ""
        raise FormatDamaged(f"{label} begins with {prefix[:16]!r}: it is not a safetensors file.{hint}")
    if length > file_size - LENGTH_BYTES:
        raise FormatDamaged(f"{label} has {file_size} bytes, but states a header of {length} bytes: it is truncated.")
    if length > MAX_HEADER_BYTES:
        raise FormatUnsupported(
            f"{label} has a header of {length} bytes; readers of safetensors accept {MAX_HEADER_BYTES}."
        )
    return length


def parse_header(text: bytes, *, file_size: int, label: str) -> SafetensorsFile:
    """Parses and checks a header as the safetensors library does, in bounded memory.

    Args:
        text: The JSON, without the 8 bytes before it.
        file_size: Bytes of the whole file.
        label: How error texts call the file.

    Raises:
        FormatDamaged: It is not a header, tensors overlap or have gaps between them, or the file has another size.
        FormatUnsupported: A dtype that PyTorch doesn't have, or more tensors than any model.
    """
    data_start = LENGTH_BYTES + len(text)
    try:
        rest, metadata = _split_metadata(text, label=label)
        if rest.count(b"{") > MAX_TENSORS or _LONG_ARRAY.search(rest) is not None:
            raise FormatUnsupported(f"{label}: its safetensors header has more tensors or dimensions than any model.")
        rows = msgspec.json.decode(rest, type=dict[str, _Row])
        if b"\\" in rest or rest.count(b'"') != _QUOTES_OF_ROW * len(rows) or _NEGATIVE.search(rest) is not None:
            _check_unusual(rest, label=label)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatDamaged(
            f"{label}: its safetensors header is invalid: {escape_unprintable(str(error))[:200]}."
        ) from error
    rows.pop(RESERVED_NAME, None)
    ordered = sorted(rows.items(), key=lambda item: item[1].data_offsets)
    tensors: dict[str, SafetensorsTensor] = {}
    end = 0
    for key, row in ordered:
        tensors[key] = _checked(key, row, end, data_start=data_start, label=label)
        end = row.data_offsets[1]
    if data_start + end != file_size:
        raise FormatDamaged(
            f"{label} should have {data_start + end} bytes according to its header, but has {file_size}."
        )
    return SafetensorsFile(tensors, metadata, data_start)


def _split_metadata(text: bytes, *, label: str) -> tuple[bytes, dict[str, str]]:
    """Returns the JSON with an empty tensor in place of the metadata, and the metadata.

    Metadata may have any strings, while the size of a tensor in JSON has a lower bound, which limits their number.
    """
    raw = bytes(msgspec.json.decode(text, type=_Reserved).metadata)
    if len(raw) > MAX_METADATA_BYTES:
        raise FormatUnsupported(f"{label}: its safetensors header has {len(raw)} bytes of metadata.")
    metadata = msgspec.json.decode(raw, type=dict[str, str] | None) or {}
    matches = list(_METADATA.finditer(text))
    if len(matches) > 1:
        raise FormatDamaged(f"{label}: its safetensors header has metadata twice.")
    for match in matches:
        if text.startswith(raw, match.end()):
            return text[: match.end()] + _NO_TENSOR + text[match.end() + len(raw) :], metadata
    return text, metadata


def _check_unusual(text: bytes, *, label: str) -> None:
    """Checks what is skipped in unknown fields, and what else the safetensors library does not read.

    Raises:
        FormatUnsupported: It is too large.
        ValueError: A field is there twice, text is not UTF-8, a number is out of range, or values are nested too deep.
    """
    if len(text) > MAX_UNUSUAL_BYTES:
        raise FormatUnsupported(f"{label}: its safetensors header of {len(text)} bytes has escapes or unknown fields.")
    depth = json.loads(
        text.decode(),
        object_pairs_hook=_depth_of_object,
        parse_int=_number,
        parse_float=_number,
        parse_constant=_number,
    )
    if depth > MAX_DEPTH:
        raise ValueError(f"values are nested {depth} deep")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or text == "-0":
        raise ValueError(f"{text[:20]} is not a number in a header")
    return number


class _Depth(int):
    """How deep an object of the header's JSON is nested."""


def _depth_of_object(fields: list[tuple[str, object]]) -> _Depth:
    known = [name for name, _ in fields if name in _Row.__struct_fields__]
    if len(known) > len(set(known)):
        raise ValueError(f"a tensor has a field twice, one of {', '.join(known)}")
    return _Depth(1 + max((_depth(value) for _, value in fields), default=0))


def _depth(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return value if isinstance(value, _Depth) else 0


def _checked(key: str, row: _Row, expected_start: int, *, data_start: int, label: str) -> SafetensorsTensor:
    where = f"{label}, tensor {short_repr(key)}"
    start, end = row.data_offsets
    if start != expected_start or end < start:
        raise FormatDamaged(f"{where}: its data is at {start} to {end}, but should start at {expected_start}.")
    dtype = dtype_from_safetensors(row.dtype, where=where)
    shape = row.shape
    if row.dtype == HALF_BYTE_NAME:
        if not shape or shape[-1] % 2:
            raise FormatUnsupported(f"{where}: PyTorch has no tensor of an odd number of half bytes in a row.")
        shape = (*shape[:-1], shape[-1] // 2)
    largest = max(accumulate(row.shape, operator.mul), default=1)  # the safetensors library counts in 64 bits, too
    if math.prod(shape) * dtype.item_size != end - start or largest >> 64:
        raise FormatDamaged(f"{where}: its {end - start} bytes don't match its shape and dtype.")
    return SafetensorsTensor(key, dtype, shape, data_start + start, data_start + end)


class SafetensorsIndex(Record, frozen=True):
    """The tensors of a safetensors file as a source of tensors, as ``TensorsIndex`` has those of a ``.tensors`` file.

    A tensor has no header: its ``header_offset`` is its ``data_offset``.

    Attributes:
        tensors: In the order of their data, without gaps.
        body_offset: End of the header, where the first tensor's data begins.
        body_end: End of the last tensor, which is the end of the file.
        metadata: The header's metadata.
    """

    tensors: tuple[TensorEntry, ...]
    body_offset: int
    body_end: int
    metadata: Mapping[str, str]

    @property
    def encrypted(self) -> bool:
        """False: the format has no encryption."""
        return False


def parse_safetensors_index(head: bytes, *, file_size: int, label: str) -> SafetensorsIndex:
    """Parses the header of a source file.

    Args:
        head: The file's first bytes, up to the end of the header.
        file_size: Bytes of the whole file.
        label: How error texts call the file.

    Raises:
        FormatDamaged: See ``parse_header``.
        FormatUnsupported: Likewise.
    """
    file = parse_header(head[LENGTH_BYTES:], file_size=file_size, label=label)
    entries = tuple(
        TensorEntry(
            tensor.name.encode(),
            (tensor.name,),
            tensor.name,
            KIND_STATE_DICT,
            tensor.dtype,
            tensor.shape,
            tensor.start,
            tensor.start,
            tensor.end - tensor.start,
        )
        for tensor in file.tensors.values()
    )
    return SafetensorsIndex(entries, file.data_start, file_size, file.metadata)
