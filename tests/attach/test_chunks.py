"""Groups and chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.attach.copy.chunks import ALIGNMENT, pack_groups, split_group, total_bytes
from tonnage.attach.files.tensor_info import TensorInfo

if TYPE_CHECKING:
    from tonnage.attach.copy.chunks import Group

    Rows = list[tuple[int, int, int]]

layouts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(1, 2000)), min_size=1, max_size=60
)  # file, gap before, length


def records_of(layout: Rows) -> list[TensorInfo]:
    ends = [0, 0, 0]
    found = []
    for number, (file, gap, length) in enumerate(layout):
        start = ends[file] + gap
        ends[file] = start + length
        found.append(TensorInfo(f"t{number}", (f"t{number}",), "uint8", 1, (length,), file, start, length))
    return found


@given(layouts, st.integers(64, 5000), st.integers(1, 3000))
@settings(deadline=None, max_examples=200)
def test_chunks_copy_each_byte_once_to_its_place(layout: Rows, group_bytes: int, chunk_bytes: int) -> None:
    records = records_of(layout)
    where: dict[str, Group] = {}
    for group in pack_groups(records, group_bytes=group_bytes):
        placed = bytearray(group.size)
        memory = {}
        for chunk in split_group(group, chunk_bytes=chunk_bytes):
            assert chunk.length <= chunk_bytes
            for file, source, target, length in chunk.extents:
                assert chunk.target <= target
                assert target + length <= chunk.target + chunk.length
                for at in range(length):
                    assert not placed[target + at]
                    placed[target + at] = 1
                    memory[target + at] = (file, source + at)
        for record, offset in group.tensors:
            assert offset % ALIGNMENT == 0
            got = [memory[offset + at] for at in range(record.length)]
            assert got == [(record.file, record.offset + at) for at in range(record.length)]
            where[record.name] = group
    assert set(where) == {record.name for record in records}


@given(layouts, st.integers(64, 5000))
@settings(deadline=None, max_examples=100)
def test_groups_have_the_requested_size_and_little_padding(layout: Rows, group_bytes: int) -> None:
    records = records_of(layout)
    groups = pack_groups(records, group_bytes=group_bytes)
    for group in groups:
        assert group.size % ALIGNMENT == 0
        assert group.size <= group_bytes + ALIGNMENT or len(group.tensors) == 1
    assert total_bytes(groups) < sum(record.length for record in records) + ALIGNMENT * len(records) + 1


def test_neighbors_in_a_file_are_one_extent() -> None:
    records = [TensorInfo(f"t{n}", (f"t{n}",), "uint8", 1, (640,), 0, 4096 + 640 * n, 640) for n in range(10)]
    (group,) = pack_groups(reversed(records), group_bytes=1 << 20)
    assert group.extents == ((0, 4096, 0, 6400),)


def test_a_tensor_larger_than_a_group_gets_one_of_its_own() -> None:
    records = [
        TensorInfo(f"t{n}", (f"t{n}",), "uint8", 1, (size,), 0, 10_000 * n, size) for n, size in enumerate((5, 900, 5))
    ]
    assert [group.size for group in pack_groups(records, group_bytes=128)] == [64, 960, 64]
