"""Checksums of the bytes that belong to no tensor: headers of shards, gaps between tensors, whole companions.

Tensors have the hashes that their source states. Everything else is ours or small, and what ``tonnage verify`` compares
it with is taken when the entry is published.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.filesystem import read_range, translate_os_errors
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tonnage.cache.manifest import Manifest, TensorTable

MAX_NON_TENSOR_BYTES = 256 << 20
"""Bytes outside of tensors above which a file gets no such checksum (an encrypted object whose tensors are unknown)."""

_READ_BYTES = 1 << 20


def add_non_tensor_checksums(
    manifest: Manifest, table: TensorTable, paths: Mapping[str, Path], published_checksums: Mapping[str, int | None]
) -> Manifest:
    """Returns the manifest with ``rest_crc32`` filled in for the files of ``paths`` that have none.

    Args:
        manifest: What is about to be published.
        table: Its tensors.
        paths: Where new files lie now, by their path in the manifest.
        published_checksums: The checksums of files that are published already and stay.

    Raises:
        CacheDamaged: A file can't be read, or tensors overlap.
    """
    extents = tensor_extents(table, len(manifest.files))
    files = []
    for index, file in enumerate(manifest.files):
        if file.rest_crc32 is not None:
            files.append(file)
            continue
        path = paths.get(file.path)
        if path is None:
            files.append(msgspec.structs.replace(file, rest_crc32=published_checksums.get(file.path)))
            continue
        ranges = non_tensor_ranges(extents[index], file.size, label=file.path)
        small = sum(end - start for start, end in ranges) <= MAX_NON_TENSOR_BYTES
        files.append(msgspec.structs.replace(file, rest_crc32=ranges_crc32(path, ranges) if small else None))
    return msgspec.structs.replace(manifest, files=tuple(files))


def tensor_extents(table: TensorTable, file_count: int) -> list[list[tuple[int, int]]]:
    """Returns for each file the half-open byte ranges of its tensors, in the table's order, without empty ones."""
    extents: list[list[tuple[int, int]]] = [[] for _ in range(file_count)]
    for tensor in table.tensors:
        if tensor.file >= 0 and tensor.length:
            extents[tensor.file].append((tensor.offset, tensor.offset + tensor.length))
    return extents


def non_tensor_ranges(extents: Iterable[tuple[int, int]], size: int, *, label: str) -> list[tuple[int, int]]:
    """Returns the half-open ranges of a file of ``size`` bytes that are not in ``extents``.

    Raises:
        CacheDamaged: Extents overlap or reach beyond the end. Equal ones don't count: tensors may share their bytes.
    """
    ranges = []
    position = 0
    for start, end in sorted(set(extents)):
        if start < position or end > size:
            raise CacheDamaged(f"A tensor of {label!r} at {start:,} to {end:,} overlaps another or the file's end.")
        if start > position:
            ranges.append((position, start))
        position = end
    if position < size:
        ranges.append((position, size))
    return ranges


def ranges_crc32(path: Path, ranges: Iterable[tuple[int, int]]) -> int:
    """Returns the CRC-32 of these ranges of a file, one after the other.

    Raises:
        CacheDamaged: The file can't be read or ends before.
    """
    crc = 0
    buffer = memoryview(bytearray(_READ_BYTES))
    with translate_os_errors(f"{path} can't be read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, end in ranges:
                for data in read_range(descriptor, start, end, buffer, path=path):
                    crc = zlib.crc32(data, crc)
        finally:
            os.close(descriptor)
    return crc
