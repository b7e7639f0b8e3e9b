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


ROW = '"dtype": "U8", "shape": [1], "data_offsets": [0, 1]'
EMPTY = '"dtype": "U8", "shape": [0], "data_offsets": [%d, %d]'
NUMBERS = st.integers(0, 4).map(str) | st.sampled_from(
    ["-0", "-1", "01", "1.0", "1e0", "+1", "NaN", "null", "true", '"1"', "[]", "{}", "[1]", "", " 1 ", "1" + "0" * 400]
)
LISTS = st.lists(NUMBERS, max_size=3).map(lambda each: f"[{','.join(each)}]")
NAMES = [
    '"a"', '"b"', '"c"', r'"\u0061"', '""', '"é"', r'"\ud83d\ude00"', r'"\ud800"', r'"\u0000"', r'"\x"', '"\x7f"',
    '"\t"', '"__metadata__"', "a", "'a'", "1", r'"x\"dtype"', '"a,-b"',
]  # fmt: skip
PLAIN = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
    lambda each: [f'"dtype": "U8", "shape": [{each[1]}], "data_offsets": [{each[0]}, {sum(each)}]']
)
ANY_VALUE = st.sampled_from(
    [
        "1",
        "1e999",
        "-1e5",
        "null",
        '"x"',
        r'"\ud800"',
        '"\x01"',
        '["a", {"b": []}]',
        '{"dtype": [[[]]]}',
        "[" * 126,
        "nul",
    ]
)
FIELDS = st.one_of(
    st.sampled_from(['"dtype": "U8"', r'"dtype": "U\u0038"', r'"d\u0074ype": "U8"', '"dtype": null', '"dtype"', ""]),
    LISTS.map('"shape": {}'.format),
    LISTS.map('"data_offsets": {}'.format),
    ANY_VALUE.map('"more": {}'.format),
)
ROW_TEXTS = st.tuples(
    st.lists(FIELDS, max_size=2), PLAIN | st.lists(FIELDS, max_size=3), st.lists(FIELDS, max_size=2)
).map(lambda parts: "{" + ", ".join(field for part in parts for field in part) + "}")
METADATA = [
    "null", "{}", '{"a": "b"}', '{"a": 1}', '{"a": null}', '{"a": {}}', '{"a": ["b"]}', "[]", '"a"', "1", "{1: 2}",
    "{}{}", "{" + ROW + "}", '{"a": "b", "a": "c"}', '{"a": "b",}', r'{"\u0061": "\ud800"}', '[["a", "b"]]',
    '{"a": "\n"}',
]  # fmt: skip
ITEMS = st.tuples(st.sampled_from(NAMES), ROW_TEXTS | ANY_VALUE) | st.tuples(
    st.just('"__metadata__"'), st.sampled_from(METADATA)
)
AROUND = st.sampled_from(["", "", "", " ", "\n\t ", "\x00", "{}", ",", "\ufeff", "//", "\x0c", "x", "   \x00"])


@given(items=st.lists(ITEMS, max_size=4), before=AROUND, after=AROUND, size=st.integers(0, 6))
@settings(max_examples=500, deadline=None)
def test_any_text_is_read_as_the_library_reads_it(
    items: list[tuple[str, str]], before: str, after: str, size: int
) -> None:
    """Names and fields twice, numbers that are none, metadata of any type, bytes before and after the JSON."""
    text = before + "{" + ", ".join(f"{name}: {value}" for name, value in items) + "}" + after
    assert_as_the_library(file_of(text.encode(), size))


UNUSUAL = {
    "a field twice": f'{{"a": {{{ROW}, "dtype": "U8"}}}}',
    "a field twice, of which only the second is right": f'{{"a": {{"shape": "x", {ROW}}}}}',
    "a field twice, once with an escape": f'{{"a": {{{ROW}, "d\\u0074ype": "U8"}}}}',
    "a number that is too large": f'{{"a": {{{ROW}, "x": 1e999}}}}',
    "minus zero": '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [-0, 1]}}',
    "metadata twice": f'{{"__metadata__": {{{ROW}}}, "__metadata__": {{"a": "b"}}}}',
    "other metadata twice": f'{{"__metadata__": {{"a": "b"}}, "__metadata__": {{"a": "b"}}, "a": {{{ROW}}}}}',
    "a name twice": f'{{"a": {{{ROW}}}, "a": {{{ROW}}}}}',
    "a name twice, once with an escape": f'{{"a": {{{ROW}}}, "\\u0061": {{{ROW}}}}}',
    "a name of a field": f'{{"x\\"dtype": {{{ROW}}}}}',
    "a field of its own": f'{{"a": {{{ROW}, "x": {{"dtype": [1, "é"]}}}}}}',
    "a byte order mark": f'\ufeff{{"a": {{{ROW}}}}}',
    "no tensor": '{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
    "a tensor without data after the others": f'{{"a": {{{ROW}}}, "b": {{{EMPTY % (1, 1)}}}}}',
    "a tensor without data behind the end": f'{{"a": {{{ROW}}}, "b": {{{EMPTY % (2, 2)}}}}}',
}
NOT_UTF8 = {
    "a name that is not UTF-8": b'{"\xff": {%s}}',
    "a field that is not UTF-8": b'{"a": {%s, "\xff": 1}}',
    "a value that is not UTF-8": b'{"a": {%s, "x": "\xff"}}',
    "metadata that is not UTF-8": b'{"__metadata__": {"a": "\xff"}, "a": {%s}}',
    "a surrogate as bytes": b'{"\xed\xa0\x80": {%s}}',
    "NUL as two bytes": b'{"\xc0\x80": {%s}}',
}
TEXTS = {
    **{name: text.encode() for name, text in UNUSUAL.items()},
    **{n: t % ROW.encode() for n, t in NOT_UTF8.items()},
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [0, 1])
def test_what_no_library_writes_is_read_as_the_library_reads_it(name: str, size: int) -> None:
    assert_as_the_library(file_of(TEXTS[name], size))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ["U8", [1], [0, 1]]}',
        '{"a": {"dtype": {"U8": null}, "shape": [1], "data_offsets": [0, 1]}}',
        f'{{"\\u005f_metadata__": {{"a": "b"}}, "a": {{{ROW}}}}}',
        f'{{"a": {{{ROW}}}, "b": {{"dtype": "U8", "shape": [0, {1 << 63}], "data_offsets": [1, 1]}}}}',
    ],
    ids=["a row as a list", "a dtype as an object", "metadata under an escaped name", "a dimension of 64 bits"],
)
def test_a_few_forms_are_refused_that_the_library_reads_but_no_program_writes(text: str) -> None:
    file = file_of(text.encode(), 1)
    assert read_by_library(file) is not None
    assert read(file) is None


@pytest.mark.parametrize("depth", [1, 125, 126, 500, 2000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("where", ['{"a": {%s, "x": %s}}', '{"b": {%s}, "a": %s}', '{"b": {%s}, "__metadata__": %s}'])
def test_nesting_is_read_as_the_library_reads_it(where: str, opening: str, closing: str, depth: int) -> None:
    text = where % (ROW, opening * depth + "1" + closing * depth)
    assert_as_the_library(file_of(text.encode(), 1))


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
    "a field of its own": lambda size: b'{"a":{%s,"x":[' % ROW.encode() + b"[1]," * (size // 4) + b"1]}}",
    "escapes": lambda size: b'{"' + rb"\n" * (size // 3) + b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
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
