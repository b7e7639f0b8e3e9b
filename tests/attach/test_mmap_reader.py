"""Reads through mappings."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.attach_fixture_types import FILE_BYTES
from tonnage.attach.copy import mmap_reader
from tonnage.attach.copy import reader as reader_module
from tonnage.attach.copy.chunks import pack_groups, split_group
from tonnage.attach.copy.mmap_reader import ThreadMappings
from tonnage.attach.copy.reader import ChunkReader
from tonnage.attach.copy.staging import StagingBuffer
from tonnage.attach.files.source_file import SourceFile
from tonnage.attach.files.tensor_info import TensorInfo
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from support.attach_fixture_types import Attach, LoadWithWorkers, TensorsEqual


@given(start=st.integers(0, FILE_BYTES - 1), length=st.integers(1, FILE_BYTES))
def test_any_range_arrives(file: SourceFile, data: bytes, start: int, length: int) -> None:
    length = min(length, FILE_BYTES - start)
    buffer = StagingBuffer(FILE_BYTES)
    mappings = ThreadMappings([file])
    mappings.read(0, start, length, buffer.address)
    mappings.release_page_tables()
    assert buffer.view[:length] == data[start : start + length]


def test_page_tables_are_freed_and_the_data_stays_readable(file: SourceFile, data: bytes) -> None:
    buffer = StagingBuffer(FILE_BYTES)
    mappings = ThreadMappings([file])
    mappings.read(0, 0, FILE_BYTES, buffer.address)
    assert resident(file) == FILE_BYTES // 1024
    mappings.release_page_tables()
    assert resident(file) == 0
    mappings.read(0, 5, 100, buffer.address)
    assert buffer.view[:100] == data[5:105]


def resident(file: SourceFile) -> int:
    """KiB of the file's mappings that this process has page tables for."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and len(head) >= 5:
            counts = line.endswith(str(file.path))
        elif counts and head[0] == "Rss:":
            found += int(head[1])
    return found


def test_a_file_that_became_shorter_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 20_000)
    with SourceFile(path) as file:
        mappings = ThreadMappings([file])
        buffer = ctypes.create_string_buffer(20_000)
        mappings.read(0, 0, 20_000, ctypes.addressof(buffer))
        os.truncate(path, 5000)
        with pytest.raises(CacheDamaged, match="truncated: it has 5,000 bytes and should have at least 20,000"):
            mappings.read(0, 0, 20_000, ctypes.addressof(buffer))


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[SourceFile]:
    path = tmp_path / "cold"
    path.write_bytes(os.urandom(FILE_BYTES))
    with SourceFile(path) as file:
        os.fsync(file.descriptor)
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield file


def test_what_is_in_memory_is_known_without_reading_it(cold: SourceFile) -> None:
    mappings = ThreadMappings([cold])
    if mappings.is_resident(0, 0, FILE_BYTES):
        pytest.skip("this file system doesn't drop pages")
    assert not mappings.is_resident(0, 1 << 20, FILE_BYTES - (1 << 20)), "the check has read the pages"
    os.pread(cold.descriptor, FILE_BYTES, 0)
    assert mappings.is_resident(0, 0, FILE_BYTES)
    assert mappings.is_resident(0, 4097, 4096)


@pytest.fixture
def in_memory(shard: Path) -> Iterator[Path]:
    """The sample's safetensors file in shared memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tonnage-test-") as folder:
        yield Path(shutil.copy(shard, folder))


@pytest.fixture
def by_mapping(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of ranges that were copied from mappings."""
    read = ThreadMappings.read
    lengths: list[int] = []

    def counted(self: ThreadMappings, file: int, start: int, length: int, address: int) -> bool:
        lengths.append(length)
        return read(self, file, start, length, address)

    monkeypatch.setattr(ThreadMappings, "read", counted)
    return lengths


def test_copy_workers_copy_all_bytes_through_mappings(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    in_memory: Path,
    tensors: dict[str, torch.Tensor],
    tensors_equal: TensorsEqual,
    by_mapping: list[int],
) -> None:
    found = load_with_workers(attach(in_memory))
    assert sum(by_mapping) > 0
    for name, tensor in tensors.items():
        assert tensors_equal(found[name], tensor), name


def test_copy_workers_read_what_they_cannot_map(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    in_memory: Path,
    tensors: dict[str, torch.Tensor],
    tensors_equal: TensorsEqual,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmap_reader, "_map", lambda _: None)
    found = load_with_workers(attach(in_memory))
    for name, tensor in tensors.items():
        assert tensors_equal(found[name], tensor), name


def test_each_thread_has_a_mapping_of_its_own_that_outlives_it(file: SourceFile, data: bytes) -> None:
    mappings = ThreadMappings([file])
    buffer = StagingBuffer(FILE_BYTES)
    threads = [threading.Thread(target=mappings.read, args=(0, 0, FILE_BYTES, buffer.address)) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert resident(file) == 3 * FILE_BYTES // 1024
    mappings.release_page_tables()
    assert resident(file) == 0
    assert buffer.view[:FILE_BYTES] == data


def test_a_quarter_of_the_chunks_is_mapped_until_the_ways_were_compared(
    file: SourceFile, data: bytes, by_mapping: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "find_memory_backed", lambda files: [True] * len(files))
    reader = ChunkReader([file])
    chunks = 0
    size = FILE_BYTES // 300
    records = [TensorInfo(str(n), (str(n),), "uint8", 1, (size - 7,), 0, n * size + 3, size - 7) for n in range(300)]
    buffer = StagingBuffer(64 << 10)
    scratch = memoryview(bytearray(64 << 10))
    for group in pack_groups(records, group_bytes=1 << 30):
        memory = bytearray(group.size)
        for chunk in split_group(group, chunk_bytes=len(buffer.view)):
            chunks += 1
            for offset, target, length in reader.read_chunk(chunk, buffer.view, scratch, address=buffer.address):
                memory[target : target + length] = buffer.view[offset : offset + length]
        for record, at in group.tensors:
            assert memory[at : at + record.length] == data[record.offset : record.offset + record.length]
    reader.close()
    reader.release_page_tables()
    assert 0.2 < sum(by_mapping) / sum(record.length for record in records) < 0.3
    assert chunks > 40
