"""Which ranges of an earlier load are still valid, where a range is in two files."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest

from support.blueprints import fill, source_object
from support.tensors_writer import RawTensor, build_tensors_file
from tonnage.contract import Layout
from tonnage.format.tensor_names import KIND_BUFFER
from tonnage.loading.resume import valid_records
from tonnage.planning.blueprint import EntryShape
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.planning.segments import SpanRole
from tonnage.transfer.transfer_spec import FetchedRange

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.planning.blueprint import Blueprint

OWN_FILE = "tonnage/computed-buffers.safetensors"
TENSORS = [
    RawTensor(b"a.weight", b"|u1", (1000,), bytes(range(250)) * 4),
    RawTensor(b"rotary_emb.inv_freq", b"|u1", (64,), bytes(range(64)), kind=KIND_BUFFER),
    RawTensor(b"b.weight", b"|u1", (500,), bytes(range(250)) * 2),
]


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[Blueprint, Path, FetchedRange]:
    """Returns a blueprint, the folder of its files, and the record of the only segment."""
    path = tmp_path / "m.tensors"
    data = bytes(build_tensors_file(TENSORS).data)
    path.write_bytes(data)
    blueprint = build_blueprint([source_object(path)], EntryShape(layout=Layout.SAFETENSORS))
    for name, content in fill(blueprint, [data]).items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    (segment,) = blueprint.segments
    pieces = segment.pieces(segment.start, segment.end)
    checksums = [zlib.crc32(data[piece.start : piece.end]) if piece.role is SpanRole.DATA else 0 for piece in pieces]
    captured = [b"" if piece.role is SpanRole.DATA else data[piece.start : piece.end] for piece in pieces]
    return blueprint, tmp_path / "model", FetchedRange(0, segment.start, segment.end, checksums, captured)


def test_a_range_in_two_intact_files_is_kept(loaded: tuple[Blueprint, Path, FetchedRange]) -> None:
    blueprint, folder, record = loaded
    assert valid_records([record], blueprint, folder) == [record]


@pytest.mark.parametrize("name", ["model.safetensors", OWN_FILE])
def test_a_range_is_dropped_if_one_of_its_files_is_lost(
    loaded: tuple[Blueprint, Path, FetchedRange], name: str
) -> None:
    blueprint, folder, record = loaded
    (folder / name).unlink()
    assert valid_records([record], blueprint, folder) == []


@pytest.mark.parametrize("name", ["model.safetensors", OWN_FILE])
def test_a_range_is_dropped_if_one_of_its_files_lacks_data(
    loaded: tuple[Blueprint, Path, FetchedRange], name: str
) -> None:
    blueprint, folder, record = loaded
    size = (folder / name).stat().st_size
    (folder / name).write_bytes((folder / name).read_bytes()[:-8].ljust(size, b"\0"))
    assert valid_records([record], blueprint, folder) == []
