"""All kinds of damaged files are rejected, and with no other exception than a TonnageError."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.tensors_damage import DAMAGES, Damage, sample_file, sample_file_with_features
from support.tensors_reader import read_index, read_tensors
from tonnage.errors import TonnageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.tensors_writer import BuiltFile


@pytest.mark.parametrize("damage", [pytest.param(damage, id=damage.name[:60]) for damage in DAMAGES])
def test_each_damage_is_rejected_with_its_reason_and_the_object(damage: Damage) -> None:
    file = damage.build()
    damage.corrupt(file)
    with pytest.raises(damage.error) as caught:
        read_tensors(bytes(file.data), name="s3://models/hurt.tensors")
    assert damage.message in str(caught.value)
    assert "s3://models/hurt.tensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("start", [sample_file, sample_file_with_features])
def test_a_file_truncated_at_any_byte_is_rejected(start: Callable[[], BuiltFile]) -> None:
    whole = bytes(start().data)
    read_tensors(whole)
    for length in range(len(whole)):
        with pytest.raises(TonnageError):
            read_tensors(whole[:length])


@pytest.mark.parametrize("start", [sample_file, sample_file_with_features])
def test_a_flipped_bit_anywhere_except_in_padding_is_detected(start: Callable[[], BuiltFile]) -> None:
    file = start()
    slack = range(*file.fields["slack"])
    for position in range(len(file.data)):
        if position in slack:
            continue
        for bit in range(8):
            file.data[position] ^= 1 << bit
            with pytest.raises(TonnageError):
                read_tensors(bytes(file.data))
            file.data[position] ^= 1 << bit


def test_without_hashes_flips_change_the_data_or_the_module_index_at_most() -> None:
    file = sample_file(hashes=())
    expected = read_tensors(bytes(file.data))
    for position in range(len(file.data)):
        file.data[position] ^= 0x10
        with contextlib.suppress(TonnageError):
            found = read_tensors(bytes(file.data))
            assert [tensor.entry for tensor in found.values()] == [tensor.entry for tensor in expected.values()]
        file.data[position] ^= 0x10


def test_a_stated_length_is_never_allocated_before_it_is_checked() -> None:
    import tracemalloc

    file = sample_file()
    tracemalloc.start()
    try:
        for field in ("count", "index_length", "data_bytes", "index[1].data_offset", "index[1].length"):
            hurt = sample_file()
            for value in (1 << 40, (1 << 63) - 1, (1 << 64) - 1):
                hurt.set_number(field, value)
                with pytest.raises(TonnageError):
                    read_tensors(bytes(hurt.data))
        assert tracemalloc.get_traced_memory()[1] < 40 * len(file.data) + (1 << 20)
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
@example(b"|TZR|")
@example(b"")
def test_arbitrary_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    with pytest.raises(TonnageError):
        read_tensors(data)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([sample_file, sample_file_with_features]),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=6),
    st.integers(0, 40),
)
def test_arbitrary_overwriting_raises_nothing_but_our_errors(
    start: Callable[[], BuiltFile], patches: list[tuple[int, bytes]], extra: int
) -> None:
    data = start().data
    for anywhere, patch in patches:
        position = anywhere % len(data)
        data[position : position + len(patch)] = patch
    with contextlib.suppress(TonnageError):
        read_tensors(bytes(data) + bytes(extra))


def test_bytes_after_the_terminator_are_not_damage() -> None:
    data = bytes(sample_file().data)
    assert read_index(data + b"more").body_end == len(data)
    assert len(read_tensors(data + b"more")) == 3
