"""Reading chunks: vectored reads, and direct I/O."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.attach_fixture_types import FILE_BYTES
from tonnage.attach.copy.chunks import pack_groups, split_group
from tonnage.attach.copy.reader import DIRECT_IO_ALIGNMENT, ChunkReader
from tonnage.attach.copy.staging import HUGE_PAGE, StagingBuffer
from tonnage.attach.files.source_file import SourceFile
from tonnage.attach.files.tensor_info import TensorInfo
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    Direct = Literal["auto", "never", "always"]


def arrive(reader: ChunkReader, records: list[TensorInfo], chunk_bytes: int) -> dict[str, bytes]:
    host = StagingBuffer(chunk_bytes + 2 * DIRECT_IO_ALIGNMENT)
    buffer = memoryview(host.view)
    scratch = memoryview(bytearray(64 << 10))
    found: dict[str, bytes] = {}
    for group in pack_groups(records, group_bytes=1 << 30):
        memory = bytearray(group.size)
        for chunk in split_group(group, chunk_bytes=chunk_bytes):
            for offset, target, length in reader.read_chunk(chunk, buffer, scratch, address=host.address):
                memory[target : target + length] = buffer[offset : offset + length]
        found |= {record.name: bytes(memory[at : at + record.length]) for record, at in group.tensors}
    return found


pieces = st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 60_000)), min_size=1, max_size=25)


@pytest.mark.parametrize("direct", ["auto", "never", "always"])
@given(layout=pieces, chunk_bytes=st.sampled_from([64 << 10, (1 << 20) + 4096, 2 << 20]))
@settings(deadline=None, max_examples=30)
def test_extents_are_read_at_any_offset(
    file: SourceFile, data: bytes, direct: Direct, layout: list[tuple[int, int]], chunk_bytes: int
) -> None:
    records: list[TensorInfo] = []
    at = 0
    for number, (gap, length) in enumerate(layout):
        at += gap
        records.append(TensorInfo(str(number), (str(number),), "uint8", 1, (length,), 0, at, length))
        at += length
    assert at <= FILE_BYTES
    reader = ChunkReader([file], direct=direct)
    found = arrive(reader, records, chunk_bytes)
    reader.close()
    assert all(found[record.name] == data[record.offset : record.offset + record.length] for record in records)


@pytest.mark.parametrize("start", [0, 1, 4095, 4096, 100_003])
def test_direct_reads_reach_the_end_of_the_file(file: SourceFile, data: bytes, start: int) -> None:
    reader = ChunkReader([file], direct="always")
    record = TensorInfo("all", ("all",), "uint8", 1, (FILE_BYTES - start,), 0, start, FILE_BYTES - start)
    assert arrive(reader, [record], 4 << 20)["all"] == data[start:]
    reader.close()


def test_a_cold_file_is_read_correctly(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "cold"
    path.write_bytes(data)
    with SourceFile(path) as file:
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        reader = ChunkReader([file])
        record = TensorInfo("all", ("all",), "uint8", 1, (FILE_BYTES - 77,), 0, 77, FILE_BYTES - 77)
        assert arrive(reader, [record], 1 << 20)["all"] == data[77:]
        reader.close()


def test_a_file_that_ended_early_is_named_with_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 1000)
    with SourceFile(path) as file:
        os.truncate(path, 400)
        record = TensorInfo("all", ("all",), "uint8", 1, (1000,), 0, 0, 1000)
        with pytest.raises(CacheDamaged, match=r"short ended at byte 400; it had 1,000"):
            arrive(ChunkReader([file]), [record], 1 << 20)


def test_buffers_begin_at_huge_pages() -> None:
    buffer = StagingBuffer(3 << 20)
    assert buffer.address % HUGE_PAGE == 0
    assert len(buffer.view) == 3 << 20
    buffer.prefault(1 << 20, 2 << 20)
    buffer.view[-1] = 5
    view = buffer.view
    del buffer
    assert view[-1] == 5


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheDamaged, match="not a regular file"):
        SourceFile(tmp_path)
