"""Preamble and index of files that the format allows, but tensorizer doesn't write."""

from __future__ import annotations

import io
import struct
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tensors_corpus import write_tensors_file
from support.tensors_damage import F32, sample_file, sample_file_with_features
from support.tensors_reader import read_index, read_tensors
from support.tensors_writer import ALL_HASHES, RawTensor, build_tensors_file
from tonnage.errors import FormatDamaged, NotATensorizerFile
from tonnage.format.dtypes import DTYPES
from tonnage.format.tensor_header import HashType
from tonnage.format.tensors_index import PREAMBLE_BYTES, parse_index, parse_preamble


def _many(count: int) -> list[RawTensor]:
    return [
        RawTensor(f"model.layers.{number // 300}.experts.{number % 300}.down_proj".encode(), F32, (1,), b"abcd")
        for number in range(count)
    ]


def test_the_index_may_be_longer_than_any_release_writes_it() -> None:
    data = bytes(build_tensors_file(_many(12_000)).data)
    index = read_index(data)
    assert index.preamble.index_length > 262_144
    assert len(index.tensors) == 12_000
    assert len(read_tensors(data)) == 12_000


def test_twenty_thousand_tensors_are_indexed_quickly() -> None:
    data = bytes(build_tensors_file(_many(20_000), index_length=0).data)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        read_index(data)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3, "measured 0.06 on an idle machine"


@pytest.mark.parametrize("hashes", [(), ("crc32",), ("sha256",), ("crc32", "sha256"), ("sha256", "crc32")])
def test_a_header_may_have_any_of_the_hashes_in_any_order(hashes: tuple[str, ...]) -> None:
    found = read_tensors(bytes(sample_file(hashes=hashes).data))
    for tensor in found.values():
        assert [kind.name.lower() for kind in tensor.header.hashes] == list(hashes)
        assert (tensor.header.expected_crc32 is None) == ("crc32" not in hashes)
        assert (tensor.header.expected_sha256 is None) == ("sha256" not in hashes)


def test_the_crc_is_a_number_and_the_sha_is_bytes() -> None:
    header = read_tensors(bytes(sample_file().data))["first",].header
    assert header.expected_crc32 == int.from_bytes(header.hashes[HashType.CRC32], "little")
    assert header.expected_sha256 == header.hashes[HashType.SHA256]
    assert len(header.expected_sha256) == 32


@pytest.mark.parametrize("index_length", [0, 99, 262_144, 400_000])
def test_the_index_may_have_any_padding_or_none(index_length: int) -> None:
    assert len(read_tensors(bytes(sample_file(index_length=index_length).data))) == 3


def test_a_tagged_index_may_have_short_entries_only() -> None:
    index = read_index(bytes(sample_file(version=5).data))
    assert index.preamble.tagged
    assert [entry.shape for entry in index.tensors] == [(2, 3), (4,), (5,)]


def test_each_entry_has_its_own_width_of_dimensions() -> None:
    found = read_tensors(bytes(sample_file_with_features().data))
    assert [tensor.entry.wide_dimensions for tensor in found.values()] == [False, True, False, False]
    assert found["long",].entry.shape == ((1 << 32) + 1,)


def test_a_tensor_without_data_is_empty_or_meta_depending_on_its_shape() -> None:
    meta, long, empty, nested = read_index(bytes(sample_file_with_features().data)).tensors
    assert (meta.is_meta, 0 in meta.shape, meta.nbytes) == (True, False, 24)
    assert (long.is_meta, 0 in long.shape, long.nbytes) == (True, False, (1 << 32) + 1)
    assert (empty.is_meta, 0 in empty.shape, empty.nbytes) == (False, True, 0)
    assert (nested.is_meta, 0 in nested.shape, nested.data_end) == (False, False, nested.data_offset + 4)


def test_a_higher_version_need_not_use_its_features() -> None:
    for version in (1, 2, 4, 5):
        assert len(read_tensors(bytes(sample_file(version=version).data))) == 3


def test_the_preamble_alone_states_where_the_body_begins() -> None:
    data = bytes(sample_file().data)
    preamble = parse_preamble(memoryview(data), object_size=len(data), label="x")
    assert (preamble.tensor_count, preamble.data_bytes, preamble.body_offset) == (3, 37, PREAMBLE_BYTES + 300)
    assert parse_index(preamble, bytearray(data[73:]), object_size=len(data), label="x").body_end == len(data)


def test_a_truncated_index_is_rejected() -> None:
    data = bytes(sample_file().data)
    preamble = parse_preamble(data, object_size=len(data), label="x")
    with pytest.raises(FormatDamaged, match="x: the index is truncated after 299 of 300 bytes"):
        parse_index(preamble, data[73:372], object_size=len(data), label="x")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\0\0\0\0\0\0\0{}", b"<?xml", b"", b"|TZR"[::-1]])
def test_files_of_other_formats_are_rejected(start: bytes) -> None:
    with pytest.raises(NotATensorizerFile, match="s3://b/k"):
        parse_preamble(start, object_size=len(start), label="s3://b/k")


def test_torch_tensors_can_be_written_to_a_stream_with_damage() -> None:
    stream = io.BytesIO()
    tensors: dict[str | tuple[str | int, ...], torch.Tensor]
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), ("b", 0): torch.tensor(1)}
    write_tensors_file(stream, tensors, mutate=lambda file: file.set_number("reserved", 1))
    with pytest.raises(FormatDamaged, match="reserved"):
        read_index(stream.getvalue())


_DTYPES = st.sampled_from([dtype for dtype in DTYPES if dtype.item_size <= 8])
_COMPONENT = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.integers(0, 1 << 40))


@st.composite
def _raw_tensors(draw: st.DrawFn) -> list[RawTensor]:
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    flat = text.filter(lambda name: not name.startswith("\x1e")).map(str.encode)
    names = draw(st.lists(flat, min_size=1, max_size=8, unique=True))
    tensors = []
    for name in names:
        dtype = draw(_DTYPES)
        wide = draw(st.booleans())
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
        size = dtype.item_size
        for dimension in shape:
            size *= dimension
        meta = draw(st.booleans())
        data = b"" if meta else draw(st.binary(min_size=size, max_size=size))
        kind = draw(st.integers(0, 2))
        tensors.append(
            RawTensor(name, dtype.stored_name.encode(), shape, data, kind, draw(st.integers(0, 65535)), wide)
        )
    return tensors


@settings(deadline=None, max_examples=60)
@given(_raw_tensors(), st.lists(st.sampled_from(ALL_HASHES), unique=True), st.integers(0, 500))
def test_any_file_is_read_as_it_was_written(tensors: list[RawTensor], hashes: list[str], slack: int) -> None:
    built = build_tensors_file(tensors, version=5, flags=2, hashes=hashes, index_length=slack)
    found = list(read_tensors(bytes(built.data)).values())
    assert len(found) == len(tensors)
    for number, (raw, (entry, header, data)) in enumerate(zip(tensors, found, strict=True)):
        assert entry.path == (raw.name.decode(),)
        assert (entry.raw_name, entry.kind, entry.shape, entry.wide_dimensions) == (
            raw.name,
            raw.kind,
            raw.shape,
            raw.wide,
        )
        assert entry.dtype.stored_name.encode() == raw.dtype
        assert entry.header_offset == built.fields[f"header[{number}].size"].start
        assert (entry.data_offset, entry.data_end) == built.fields[f"data[{number}]"]
        assert data == raw.data
        assert header.module_index == raw.module_index
        assert sorted(kind.name.lower() for kind in header.hashes) == sorted(hashes)


@settings(deadline=None, max_examples=60)
@given(st.lists(_COMPONENT, min_size=2, max_size=6))
def test_nested_names_are_read_back(path: list[str | int]) -> None:
    import json

    raw = b"\x1e" + json.dumps(path, separators=(",", ":")).encode()
    data = bytes(build_tensors_file([RawTensor(raw, F32, (), struct.pack("<f", 1))], index_length=0).data)
    (entry,) = read_index(data).tensors
    assert entry.path == tuple(path)
    assert entry.name == ".".join(map(str, path))
