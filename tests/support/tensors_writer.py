"""Writes ``.tensors`` files that tensorizer can't: longer indexes, fewer hashes, other versions, and damaged ones.

Implements the format's description and shares no code with the loader, so that each checks the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    TensorPath = tuple[str | int, ...]
    Tensors = Mapping[str, torch.Tensor] | Mapping[TensorPath, torch.Tensor] | Mapping[str | TensorPath, torch.Tensor]
    """A union of mappings, since the key type of a mapping is invariant."""

NUMPY_DTYPES = {
    torch.float16: "<f2",
    torch.float32: "<f4",
    torch.float64: "<f8",
    torch.int8: "|i1",
    torch.int16: "<i2",
    torch.int32: "<i4",
    torch.int64: "<i8",
    torch.uint8: "|u1",
    torch.uint16: "<u2",
    torch.uint32: "<u4",
    torch.uint64: "<u8",
    torch.bool: "|b1",
    torch.complex64: "<c8",
    torch.complex128: "<c16",
}
DEFAULT_INDEX_LENGTH = 262_144
ALL_HASHES = ("crc32", "sha256")


class RawTensor(NamedTuple):
    """A tensor as stored in the file. Nothing is validated, so that invalid files can be written."""

    name: bytes
    dtype: bytes
    shape: tuple[int, ...]
    data: bytes
    kind: int = 2
    module_index: int = 0
    wide: bool = False


class Span(NamedTuple):
    """The bytes of a field, ``end`` exclusive."""

    start: int
    end: int


@dataclass
class BuiltFile:
    """The bytes of a file, and the span of each field.

    Names of fields are such as ``count``, ``index[0].length``, ``header[1].name``, ``data[2]`` and ``terminator``.
    """

    data: bytearray
    fields: dict[str, Span] = field(default_factory=dict)

    def set_number(self, name: str, value: int) -> None:
        """Overwrites an integer field with a value, which may be negative."""
        start, end = self.fields[name]
        self.data[start:end] = (value % (1 << 8 * (end - start))).to_bytes(end - start, "little")

    def number(self, name: str) -> int:
        start, end = self.fields[name]
        return int.from_bytes(self.data[start:end], "little")

    def set_bytes(self, name: str, value: bytes) -> None:
        """Overwrites a field with a value of the same length."""
        start, end = self.fields[name]
        assert len(value) == end - start
        self.data[start:end] = value


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Returns the bytes of a tensor's elements in C order."""
    if tensor.is_meta or not tensor.numel():
        return b""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def stored_dtype(dtype: torch.dtype) -> bytes:
    """Returns a dtype as stored in the file."""
    if dtype in NUMPY_DTYPES:
        return NUMPY_DTYPES[dtype].encode()
    size = dtype.itemsize
    return f"{'|' if size == 1 else '<'}V{size}\0{dtype}".encode()


def stored_name(path: str | tuple[str | int, ...]) -> bytes:
    """Returns a name or path as stored in the file."""
    if isinstance(path, str):
        return path.encode()
    if len(path) == 1 and isinstance(path[0], str):
        return path[0].encode()
    return b"\x1e" + json.dumps(path, separators=(",", ":")).encode()


def raw_tensors(tensors: Tensors) -> list[RawTensor]:
    """Converts torch tensors to entries of a state dict."""
    return [
        RawTensor(
            stored_name(path), stored_dtype(tensor.dtype), tuple(tensor.shape), raw_bytes(tensor),
            wide=any(size >= 1 << 32 for size in tensor.shape),
        )
        for path, tensor in tensors.items()
    ]  # fmt: skip


class _Buffer:
    """Appends fields and records their spans."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.fields: dict[str, Span] = {}

    def put(self, name: str, value: bytes) -> None:
        start = len(self.data)
        self.data += value
        self.fields[name] = Span(start, len(self.data))

    def pack(self, name: str, layout: str, *values: int) -> None:
        self.put(name, struct.pack(f"<{layout}", *values))


def _put_name(buffer: _Buffer, prefix: str, tensor: RawTensor) -> None:
    buffer.pack(f"{prefix}.name_length", "H", len(tensor.name))
    buffer.put(f"{prefix}.name", tensor.name)


def _put_type(buffer: _Buffer, prefix: str, tensor: RawTensor) -> None:
    buffer.pack(f"{prefix}.dtype_length", "B", len(tensor.dtype))
    buffer.put(f"{prefix}.dtype", tensor.dtype)
    buffer.pack(f"{prefix}.rank", "B", len(tensor.shape))
    buffer.pack(f"{prefix}.dims", f"{len(tensor.shape)}{'Q' if tensor.wide else 'I'}", *tensor.shape)


def _digests(hashes: Sequence[str], header: bytes, data: bytes) -> dict[str, bytes]:
    digest_functions = {
        "crc32": lambda: zlib.crc32(data, zlib.crc32(header)).to_bytes(4, "little"),
        "sha256": lambda: hashlib.sha256(header + data).digest(),
    }
    return {kind: digest_functions[kind]() for kind in hashes}


def _header(prefix: str, tensor: RawTensor, hashes: Sequence[str]) -> _Buffer:
    buffer = _Buffer()
    buffer.pack(f"{prefix}.size", "Q", 0)
    buffer.pack(f"{prefix}.module", "H", tensor.module_index)
    buffer.pack(f"{prefix}.kind", "B", tensor.kind)
    _put_name(buffer, prefix, tensor)
    _put_type(buffer, prefix, tensor)
    sizes = {"crc32": 4, "sha256": 32}
    buffer.pack(f"{prefix}.hash_block", "H", 1 + sum(2 + sizes[kind] for kind in hashes))
    buffer.pack(f"{prefix}.hash_count", "B", len(hashes))
    for kind in hashes:
        buffer.pack(f"{prefix}.{kind}.type", "B", ALL_HASHES.index(kind))
        buffer.pack(f"{prefix}.{kind}.size", "B", sizes[kind])
        buffer.put(f"{prefix}.{kind}", bytes(sizes[kind]))
    buffer.pack(f"{prefix}.length", "q", len(tensor.data))
    buffer.data[:8] = len(buffer.data).to_bytes(8, "little")
    for kind, digest in _digests(hashes, bytes(buffer.data), tensor.data).items():
        start, end = buffer.fields[f"{prefix}.{kind}"]
        buffer.data[start:end] = digest
    return buffer


def _entry_size(tensor: RawTensor, *, tagged: bool) -> int:
    dimensions = len(tensor.shape) * (8 if tensor.wide else 4)
    return (4 if tagged else 0) + 2 + len(tensor.name) + 2 + len(tensor.dtype) + 1 + dimensions + 24


def _minimum_version(tensors: Iterable[RawTensor]) -> int:
    version = 1
    for tensor in tensors:
        if tensor.wide:
            return 5
        if not tensor.data and 0 not in tensor.shape:
            version = max(version, 4)
        if b"\0" in tensor.dtype:
            version = max(version, 2)
    return version


def build_tensors_file(
    tensors: Sequence[RawTensor],
    *,
    version: int | None = None,
    flags: int | None = None,
    hashes: Sequence[str] = ALL_HASHES,
    index_length: int | None = None,
) -> BuiltFile:
    """Builds a file in memory.

    Args:
        tensors: In file order.
        version: None: the lowest that supports the tensors.
        flags: None: only a tagged index, from version 5.
        hashes: The hashes of each header, in this order.
        index_length: None: 256 KiB as in tensorizer, or more if needed; 0: exactly as needed.
    """
    version = _minimum_version(tensors) if version is None else version
    flags = (2 if version >= 5 else 0) if flags is None else flags
    tagged = bool(flags & 2)
    needed = sum(_entry_size(tensor, tagged=tagged) for tensor in tensors)
    length = max(needed, DEFAULT_INDEX_LENGTH if index_length is None else index_length)
    file = _Buffer()
    file.put("magic", b"|TZR|")
    file.pack("version", "I", version)
    file.put("flags", flags.to_bytes(32, "little"))
    file.pack("data_bytes", "Q", sum(len(tensor.data) for tensor in tensors))
    file.pack("reserved", "Q", 0)
    file.pack("count", "Q", len(tensors))
    file.pack("index_length", "Q", length)
    headers = [_header(f"header[{number}]", tensor, hashes) for number, tensor in enumerate(tensors)]
    position = 73 + length
    for number, (tensor, header) in enumerate(zip(tensors, headers, strict=True)):
        where = f"index[{number}]"
        if tagged:
            file.pack(f"{where}.tag", "I", 5 if tensor.wide else 1)
        _put_name(file, where, tensor)
        file.pack(f"{where}.kind", "B", tensor.kind)
        _put_type(file, where, tensor)
        file.pack(f"{where}.header_offset", "Q", position)
        file.pack(f"{where}.data_offset", "Q", position + len(header.data))
        file.pack(f"{where}.length", "Q", len(tensor.data))
        position += len(header.data) + len(tensor.data)
    file.put("slack", bytes(73 + length - len(file.data)))
    for number, (tensor, header) in enumerate(zip(tensors, headers, strict=True)):
        start = len(file.data)
        file.data += header.data
        file.fields.update({name: Span(start + a, start + b) for name, (a, b) in header.fields.items()})
        file.put(f"data[{number}]", tensor.data)
    file.put("terminator", bytes(8))
    return BuiltFile(file.data, file.fields)


def write_tensors_file(
    target: str | os.PathLike[str] | BinaryIO,
    tensors: Sequence[RawTensor] | Tensors,
    *,
    version: int | None = None,
    flags: int | None = None,
    hashes: Sequence[str] = ALL_HASHES,
    index_length: int | None = None,
    mutate: Callable[[BuiltFile], None] | None = None,
) -> BuiltFile:
    """Builds a file, applies ``mutate`` and writes it. See ``build_tensors_file`` for the other arguments."""
    raw = raw_tensors(tensors) if isinstance(tensors, Mapping) else tensors
    built = build_tensors_file(raw, version=version, flags=flags, hashes=hashes, index_length=index_length)
    if mutate is not None:
        mutate(built)
    if isinstance(target, str | os.PathLike):
        Path(target).write_bytes(built.data)
    else:
        target.write(built.data)
    return built
