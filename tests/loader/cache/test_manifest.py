"""Manifests and tables: small, fast to read, and fully validated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cache_entries import make_sample, published_entry
from tonnage.cache import Entry, FileRecord, TensorRecord, TensorTable
from tonnage.cache.manifest import (
    decode_manifest,
    decode_table,
    encode_manifest,
    encode_table,
    is_safe_relative_path,
    table_record,
)
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.cache import Manifest

MADE = make_sample()
DATA = encode_table(MADE.table)
MANIFEST = msgspec.structs.replace(MADE.manifest, table=table_record(DATA))


def with_table(table: TensorTable) -> tuple[bytes, Manifest]:
    data = encode_table(table)
    return data, msgspec.structs.replace(MANIFEST, table=table_record(data))


def changed(**fields: object) -> TensorTable:
    return TensorTable(tensors=(msgspec.structs.replace(MADE.table.tensors[0], **fields),))


def test_a_manifest_is_decoded_as_it_was_encoded() -> None:
    assert decode_manifest(encode_manifest(MANIFEST), where="m") == MANIFEST


def test_a_table_is_decoded_as_it_was_encoded_with_nested_paths_and_raw_headers() -> None:
    table = changed(path=("layers", 0, "w.eight"), header=b"\0\xff", crc32=0xFFFFFFFF, sha256=None)
    data, manifest = with_table(table)
    assert decode_table(data, manifest, where="t") == table


def test_unknown_fields_are_ignored() -> None:
    data = msgspec.json.decode(encode_manifest(MANIFEST))
    data["from_the_future"] = {"x": 1}
    assert decode_manifest(msgspec.json.encode(data), where="m") == MANIFEST


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 100, b"\xff\xfe", b"[]", b"{}", b'{"schema_version": 1}', b'{"schema_version": "x"}',
        b"[" * 100_000, b'"' + b"\xff" * 10 + b'"',
    ],
)  # fmt: skip
def test_an_invalid_manifest_is_rejected(data: bytes) -> None:
    with pytest.raises(CacheDamaged, match=r"^/x/manifest\.json can't be read: "):
        decode_manifest(data, where="/x/manifest.json")


def test_a_manifest_of_a_later_schema_is_rejected() -> None:
    data = encode_manifest(msgspec.structs.replace(MANIFEST, schema_version=2))
    with pytest.raises(CacheDamaged, match="schema version 2; this release of Tonnage reads version 1 only"):
        decode_manifest(data, where="m")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a//b", "a/./b", "a/", "a\0b"])
def test_a_manifest_with_files_elsewhere_is_rejected(path: str) -> None:
    assert not is_safe_relative_path(path)
    files = (FileRecord(path=path, size=1, kind="companion"),)
    with pytest.raises(CacheDamaged, match="which is a duplicate or not a path below model/"):
        decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, files=files)), where="m")


@pytest.mark.parametrize("name", ["../manifest.json", "a/b", "", "/etc/passwd"])
def test_a_table_elsewhere_is_rejected(name: str) -> None:
    assert MANIFEST.table is not None
    record = msgspec.structs.replace(MANIFEST.table, name=name)
    with pytest.raises(CacheDamaged, match="which is not a file name"):
        decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, table=record)), where="m")


def test_a_manifest_with_a_duplicate_file_or_an_unknown_source_is_rejected() -> None:
    twice = msgspec.structs.replace(MANIFEST, files=MANIFEST.files[:1] * 2)
    with pytest.raises(CacheDamaged, match="is a duplicate"):
        decode_manifest(encode_manifest(twice), where="m")
    unknown = msgspec.structs.replace(MANIFEST, sources=())
    with pytest.raises(CacheDamaged, match="with an unknown source"):
        decode_manifest(encode_manifest(unknown), where="m")


def test_negative_sizes_are_refused() -> None:
    data = encode_manifest(MANIFEST).replace(b'"size": 300', b'"size": -1')
    with pytest.raises(CacheDamaged, match="size"):
        decode_manifest(data, where="m")


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=50)
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with pytest.raises(CacheDamaged):
        decode_manifest(data, where="m")


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_change_of_the_table_is_noticed(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(DATA) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != DATA[position]))
    with pytest.raises(CacheDamaged, match="not the tensor table"):
        decode_table(DATA[:position] + bytes([other]) + DATA[position + 1 :], MANIFEST, where="t")


def test_a_table_with_a_tensor_outside_of_its_file_is_rejected() -> None:
    for table, words in [
        (changed(offset=1 << 60), r"beyond the end of .*\(2,016 bytes\)"),
        (changed(file=99), "unknown file or source"),
        (changed(source=99), "unknown file or source"),
        (changed(file=-2), "can't be read"),
        (changed(crc32=1 << 32), "can't be read"),
    ]:
        data, manifest = with_table(table)
        with pytest.raises(CacheDamaged, match=words):
            decode_table(data, manifest, where="t")


def test_a_manifest_without_a_table_has_no_tensors_to_read() -> None:
    with pytest.raises(CacheDamaged, match="lists no tensor table"):
        decode_table(DATA, MADE.manifest, where="t")


def test_reading_is_fast_enough_for_a_hit(memory: Path) -> None:
    entry = published_entry(memory)

    def hit() -> float:
        began = time.process_time()
        manifest = Entry(entry.path).read_manifest()
        assert manifest is not None
        entry.check_files(manifest)
        return time.process_time() - began

    assert min(hit() for _ in range(10)) < 0.005


def test_twenty_thousand_tensors_are_read_in_50_ms() -> None:
    tensors = tuple(
        TensorRecord(
            f"model.layers.{number}.self_attn.q_proj.weight", None, 0, 0, "torch.bfloat16", (4096, 4096), 0, 16, 1000,
            number * 4096, b"\x5a" * 160, number, "a" * 64,
        )
        for number in range(20_000)
    )  # fmt: skip
    data, manifest = with_table(TensorTable(tensors=tensors))

    def read() -> float:
        began = time.process_time()
        decode_table(data, manifest, where="t")
        return time.process_time() - began

    assert min(read() for _ in range(10)) < 0.05
