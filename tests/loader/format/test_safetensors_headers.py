"""Headers of safetensors files from anywhere are read as the safetensors library reads them, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from tonnage.errors import FormatDamaged, FormatUnsupported
from tonnage.format.safetensors import (
    MAX_HEADER_BYTES,
    header_length,
    parse_header,
    parse_safetensors_index,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LOADER = Path(__file__).parents[3] / "loader"
GROUND = save({"a": torch.arange(6).reshape(2, 3), "b.é": torch.zeros(4, dtype=torch.bfloat16)}, {"format": "pt"})
REFUSALS = (FormatDamaged, FormatUnsupported)


def read(file: bytes) -> dict[str, tuple[int, int]] | None:
    """Returns where each tensor's data is in the file; None if it is refused."""
    try:
        length = header_length(file[:32], file_size=len(file), label="x")
        index = parse_safetensors_index(file[: 8 + length], file_size=len(file), label="x")
    except REFUSALS as error:
        refusal = error.message
    else:
        assert [entry.header_offset for entry in index.tensors] == [entry.data_offset for entry in index.tensors]
        return {entry.name: (entry.data_offset, entry.length) for entry in index.tensors}
    assert refusal.startswith("x")
    assert len(refusal) < 500
    return None


def read_by_library(file: bytes) -> dict[str, int] | None:
    try:
        return {name: len(found["data"]) for name, found in deserialize(file)}  # type: ignore[no-untyped-call]
    except SafetensorError:
        return None


def file_of(header: object, size: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def assert_as_the_library(file: bytes) -> None:
    """Fails unless both refuse the file or find the same tensors. Dtypes without one in PyTorch are refused by us."""
    found, expected = read(file), read_by_library(file)
    if found is None:
        assert expected is None or any(name in file for name in (b"F6_", b"F4", b"F8_E3M4")), expected
        return
    assert expected is not None
    assert {name: length for name, (_, length) in found.items()} == expected


@given(at=st.integers(0, len(GROUND) - 1), byte=st.integers(0, 255))
@settings(max_examples=500)
def test_a_changed_byte_is_read_as_the_library_reads_it(at: int, byte: int) -> None:
    assert_as_the_library(GROUND[:at] + bytes([byte]) + GROUND[at + 1 :])


@given(end=st.integers(0, len(GROUND)), more=st.binary(max_size=20))
def test_a_truncated_or_longer_file_is_read_as_the_library_reads_it(end: int, more: bytes) -> None:
    assert_as_the_library(GROUND[:end] + more)


SIZES = st.integers(-1, 9) | st.sampled_from([1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200])
ROWS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "BF16", "F32", "F4", "F6_E2M3", "C64", "BOOL", "", "x"]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2),
    }
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "c", '"__metadata__": {'[:6]]), ROWS, max_size=3)


@given(HEADERS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2) | st.none(), st.integers(0, 20))
@example({"a": {"dtype": "U8", "shape": [1 << 32, 1 << 32, 0], "data_offsets": [0, 0]}}, None, 0)
@example({"a": {"dtype": "U8", "shape": [0, 1 << 32, 1 << 32], "data_offsets": [0, 0]}}, None, 0)
@settings(max_examples=500)
def test_any_offsets_shapes_and_dtypes_are_read_as_the_library_reads_them(
    rows: dict[str, Any], metadata: dict[str, str] | None, size: int
) -> None:
    assert_as_the_library(file_of(rows if metadata is None else {**rows, "__metadata__": metadata}, size))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """Draws a valid header, in any order of its tensors, and the size of its data."""
    rows, end = {}, 0
    for name in draw(st.lists(st.text(max_size=6), unique=True, max_size=6)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        dtype, item = draw(st.sampled_from([("U8", 1), ("BF16", 2), ("F32", 4), ("I64", 8)]))
        size = item
        for dimension in shape:
            size *= dimension
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    order = draw(st.permutations(list(rows)))
    rows.pop("__metadata__", None)
    return {name: rows[name] for name in order if name in rows}, end


@given(tensors(), st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=3))
def test_valid_headers_are_read(drawn: tuple[dict[str, Any], int], metadata: dict[str, str]) -> None:
    rows, size = drawn
    file = file_of({"__metadata__": metadata, **rows}, size)
    found = read(file)
    assert found is not None
    assert found.keys() == rows.keys()
    assert parse_header(file[8 : len(file) - size], file_size=len(file), label="x").metadata == metadata


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "not a safetensors file"),
        (b"\x00" * 7, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer of Git LFS: upload the file"),
        (b"PK\x03\x04" + bytes(60), "it is not a safetensors file"),
        (b"|TZR|" + bytes(60), "it is not a safetensors file"),
        (b"<!DOCTYPE html><html><head><title>Log in</title>", "it is not a safetensors file"),
        (GROUND[:40], "but states a header of .* bytes: it is truncated"),
        (GROUND[:-1], "should have"),
    ],
)
def test_a_file_of_another_format_is_named(file: bytes, why: str) -> None:
    with pytest.raises(FormatDamaged, match=why):
        parse_safetensors_index(
            file[: 8 + header_length(file[:32], file_size=len(file), label="x")], file_size=len(file), label="x"
        )


def test_a_header_above_the_limit_of_readers_is_refused_before_it_is_read() -> None:
    prefix = (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{"
    with pytest.raises(FormatUnsupported, match="100000001 bytes; readers of safetensors accept"):
        header_length(prefix, file_size=1 << 40, label="x")


def test_half_bytes_are_counted_as_pytorch_counts_them() -> None:
    row = {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}
    file = file_of({"a": row}, 4)
    (entry,) = parse_safetensors_index(file[:-4], file_size=len(file), label="x").tensors
    assert (entry.dtype.torch_name, entry.shape, entry.length) == ("float4_e2m1fn_x2", (2, 2), 4)
    odd = file_of({"a": row | {"shape": [4, 1], "data_offsets": [0, 2]}}, 2)
    with pytest.raises(FormatUnsupported, match="odd number of half bytes"):
        parse_header(odd[8:-2], file_size=len(odd), label="x")


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "empty objects": lambda size: b"{" + b",".join(b'"%07d":{}' % number for number in range(size // 13)) + b"}",
    "metadata": lambda size: (
        b'{"__metadata__":{' + b",".join(b'"%07d":""' % number for number in range(size // 13)) + b"}}"
    ),
    "a shape": lambda size: b'{"a":{"dtype":"U8","shape":[' + b"1000," * (size // 5) + b'1],"data_offsets":[0,1]}}',
    "tensors without data": lambda size: (
        b"{"
        + b",".join(b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(size // 58))
        + b"}"
    ),
    "nesting": lambda size: b'{"a":' * (size // 5),
    "brackets": lambda size: b"[" * size,
    "a long name": lambda size: b'{"' + b"a" * size + b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
}
READER = r"""
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tonnage.errors import TonnageError
from tonnage.format.safetensors import parse_safetensors_index
head = sys.stdin.buffer.read()
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
try:
    parse_safetensors_index(head, file_size=len(head), label="x")
    print("read", end=" ")
except TonnageError as error:
    print(error.reason, end=" ")
print((peak() - before) >> 10)
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_takes_bounded_memory(name: str) -> None:
    """In a process of its own, with 24 MiB of header: what it takes beside the header is at most six times as much."""
    text = HOSTILE[name](24 << 20)
    head = len(text).to_bytes(8, "little") + text
    found = subprocess.run(
        [sys.executable, "-c", READER, str(LOADER)], input=head, capture_output=True, check=True, timeout=60
    )
    outcome, mebibytes = found.stdout.decode().split()
    assert outcome in {"FormatDamaged", "FormatUnsupported"} or name == "a long name"
    assert int(mebibytes) <= 6 * 24
