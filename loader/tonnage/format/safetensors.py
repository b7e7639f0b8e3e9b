"""Safetensors files: builds the header of a shard to write, and parses the header of an existing one.

A file consists of 8 bytes of header length, the header as JSON, and the tensors' data. Readers reject gaps,
overlaps and bytes after the last tensor. Therefore data is aligned by the order of the tensors (larger elements first)
and by spaces after the header's JSON, never by padding between tensors.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.errors import (
    CacheDamaged,
    DtypeUnsupported,
    FormatUnsupported,
    InternalError,
    NameCollision,
)
from tonnage.format.dtypes import dtype_from_safetensors
from tonnage.format.tensor_names import RESERVED_NAME, short_repr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.format.dtypes import Dtype

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""Largest header in bytes of JSON that the safetensors library reads."""
_MAX_DIMENSION = (1 << 63) - 1


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


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
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
        prefix = os.pread(descriptor, LENGTH_BYTES, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < LENGTH_BYTES or length > min(file_size - LENGTH_BYTES, MAX_HEADER_BYTES):
            raise CacheDamaged(f"{label} has {file_size} bytes, fewer than its stated header length requires.")
        text = os.pread(descriptor, length, LENGTH_BYTES)
    except OSError as error:
        raise CacheDamaged(f"{label} can't be read: {error.strerror}.") from error
    if len(text) < length:
        raise CacheDamaged(f"{label} is truncated inside its header, at byte {LENGTH_BYTES + len(text)}.")
    return parse_header(text, file_size=file_size, label=label)


class _HeaderTensor(msgspec.Struct):
    """A tensor in the header's JSON."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def parse_header(text: bytes, *, file_size: int, label: str) -> SafetensorsFile:
    """Parses and checks a header; see ``read_header``.

    Args:
        text: The JSON, without the 8 bytes before it.
        file_size: Bytes of the whole file.
        label: How error texts call the file.

    Raises:
        CacheDamaged: See ``read_header``.
    """
    data_start = LENGTH_BYTES + len(text)
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        reserved = raw.pop(RESERVED_NAME, None)
        metadata = {} if reserved is None else msgspec.json.decode(reserved, type=dict[str, str])
        decode = msgspec.json.Decoder(_HeaderTensor).decode
        rows = {key: decode(value) for key, value in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CacheDamaged(f"{label}: its safetensors header is invalid: {error}.") from error
    ordered = sorted(rows.items(), key=lambda item: item[1].data_offsets)
    tensors: dict[str, SafetensorsTensor] = {}
    end = 0
    for key, row in ordered:
        tensors[key] = _checked(key, row, end, data_start=data_start, label=label)
        end = row.data_offsets[1]
    if data_start + end != file_size:
        raise CacheDamaged(
            f"{label} should have {data_start + end} bytes according to its header, but has {file_size}."
        )
    return SafetensorsFile(tensors, metadata, data_start)


def _checked(key: str, row: _HeaderTensor, expected_start: int, *, data_start: int, label: str) -> SafetensorsTensor:
    where = f"{label}, tensor {short_repr(key)}"
    start, end = row.data_offsets
    if start != expected_start or end < start:
        raise CacheDamaged(f"{where}: its data is at {start} to {end}, but should start at {expected_start}.")
    try:
        dtype = dtype_from_safetensors(row.dtype, where=where)
    except FormatUnsupported as error:
        raise CacheDamaged(error.message) from error
    if any(not 0 <= dimension <= _MAX_DIMENSION for dimension in row.shape):
        raise CacheDamaged(f"{where}: it has an invalid dimension.")
    if math.prod(row.shape) * dtype.item_size != end - start:
        raise CacheDamaged(f"{where}: its {end - start} bytes don't match its shape and dtype.")
    return SafetensorsTensor(key, dtype, row.shape, data_start + start, data_start + end)
