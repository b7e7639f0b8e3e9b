"""Safetensors files: the header of a shard that is about to be written, and the tensors of one that is there.

A file is 8 bytes of header length, the header as JSON, and the tensors' data back to back: readers refuse gaps,
overlaps and bytes after the last tensor. So alignment comes from the order of the tensors (larger elements first) and
from spaces after the header's JSON, never from padding between tensors.
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
"""Bytes of JSON up to which the safetensors library reads a header."""
_MAX_DIMENSION = (1 << 63) - 1


class ShardTensor(NamedTuple):
    """A tensor that is to be written.

    Attributes:
        name: The flat name, unique in the shard.
        dtype: An element type that safetensors can say.
        shape: The dimensions.
        length: Bytes of data, which is the product of the dimensions times the element's size.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    length: int


class SafetensorsTensor(NamedTuple):
    """A tensor in a file, whose data is the bytes from ``start`` (inclusive) to ``end`` (exclusive) of the file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A header, checked against the file's size.

    Attributes:
        tensors: By name, in the order of their data.
        metadata: What the header says besides, such as ``{"format": "pt"}``.
        data_start: Where the header ends and the first tensor begins.
    """

    tensors: Mapping[str, SafetensorsTensor]
    metadata: Mapping[str, str]
    data_start: int


def safetensors_dtype_name(name: str, dtype: Dtype, *, label: str) -> str:
    """Returns the word for a dtype in a safetensors header.

    Args:
        name: The tensor's flat name, for the error text.
        dtype: Its element type.
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
    """Returns the indexes of ``tensors`` in an order in which each begins at a multiple of its element's size.

    Larger elements come first; tensors with elements of one size keep their order.
    """
    return sorted(range(len(tensors)), key=lambda index: -tensors[index].dtype.item_size)


def build_shard_header(
    tensors: Sequence[ShardTensor], *, metadata: Mapping[str, str], label: str = "shard", align: int = 4096
) -> tuple[bytes, tuple[int, ...]]:
    """Returns everything in front of a shard's data, and where the data of each tensor goes.

    Args:
        tensors: In the order of their data, each at a multiple of its element's size (see ``alignment_order``).
        metadata: The header's metadata, unchanged; engines expect ``{"format": "pt"}``.
        label: How error texts call the source object.
        align: The data begins at a multiple of this many bytes, itself a multiple of 8.

    Returns:
        The first bytes of the file, and for each tensor the absolute offset of its first byte.

    Raises:
        DtypeUnsupported: A dtype that safetensors can't say.
        NameCollision: A name is there twice, or is ``__metadata__``.
        FormatUnsupported: The header would be longer than readers accept.
        InternalError: A tensor's length is not that of its shape, or the order leaves one misaligned.
    """
    if align < 8 or align % 8:
        raise InternalError(f"Shards can't be aligned to {align} bytes.")
    header: dict[str, object] = {RESERVED_NAME: dict(metadata)}
    starts: list[int] = []
    start = 0
    for tensor in tensors:
        end = start + tensor.length
        if tensor.name in header:
            raise NameCollision(f"A shard can't hold two entries called {short_repr(tensor.name)}.")
        dtype_name = safetensors_dtype_name(tensor.name, tensor.dtype, label=label)
        _check_writable(tensor, start)
        header[tensor.name] = {"dtype": dtype_name, "shape": tensor.shape, "data_offsets": (start, end)}
        starts.append(start)
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    size = -(-(LENGTH_BYTES + len(text)) // align) * align
    if size - LENGTH_BYTES > MAX_HEADER_BYTES:
        raise FormatUnsupported(
            f"The names of {len(tensors)} tensors make a safetensors header of {size} bytes, which readers refuse "
            f"(they take {MAX_HEADER_BYTES}); --layout tensorizer has no such limit."
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
    """Reads the header of a shard in the cache and checks it against the file's size.

    Args:
        path_or_fd: The file's path, or a descriptor open for reading, whose position is left alone.
        label: What error texts call the file.

    Raises:
        CacheDamaged: The file can't be read, is cut off or too long, or its header is not one that Tonnage writes.
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
            raise CacheDamaged(f"{label} has {file_size} bytes, too few for the header that its first bytes state.")
        text = os.pread(descriptor, length, LENGTH_BYTES)
    except OSError as error:
        raise CacheDamaged(f"{label} can't be read: {error.strerror}.") from error
    if len(text) < length:
        raise CacheDamaged(f"{label} is cut off inside its header, at byte {LENGTH_BYTES + len(text)}.")
    return parse_header(text, file_size=file_size, label=label)


class _HeaderTensor(msgspec.Struct):
    """A tensor in the header's JSON."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def parse_header(text: bytes, *, file_size: int, label: str) -> SafetensorsFile:
    """Checks a header as ``read_header`` does.

    Args:
        text: The JSON, without the 8 bytes before it.
        file_size: Bytes of the whole file.
        label: What error texts call the file.

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
        raise CacheDamaged(f"{label}: its header is not that of a safetensors file: {error}.") from error
    ordered = sorted(rows.items(), key=lambda item: item[1].data_offsets)
    tensors: dict[str, SafetensorsTensor] = {}
    end = 0
    for key, row in ordered:
        tensors[key] = _checked(key, row, end, data_start=data_start, label=label)
        end = row.data_offsets[1]
    if data_start + end != file_size:
        raise CacheDamaged(f"{label} should have {data_start + end} bytes by its header and has {file_size}.")
    return SafetensorsFile(tensors, metadata, data_start)


def _checked(key: str, row: _HeaderTensor, expected_start: int, *, data_start: int, label: str) -> SafetensorsTensor:
    where = f"{label}, tensor {short_repr(key)}"
    start, end = row.data_offsets
    if start != expected_start or end < start:
        raise CacheDamaged(f"{where}: it has the bytes {start} to {end} of the data, where {expected_start} is next.")
    try:
        dtype = dtype_from_safetensors(row.dtype, where=where)
    except FormatUnsupported as error:
        raise CacheDamaged(error.message) from error
    if any(not 0 <= dimension <= _MAX_DIMENSION for dimension in row.shape):
        raise CacheDamaged(f"{where}: it states a dimension that no tensor has.")
    if math.prod(row.shape) * dtype.item_size != end - start:
        raise CacheDamaged(f"{where}: its {end - start} bytes are not those of its shape and dtype.")
    return SafetensorsTensor(key, dtype, row.shape, data_start + start, data_start + end)
