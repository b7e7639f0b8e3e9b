"""Inspection of files without their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from support.tensors_writer import RawTensor, build_tensors_file, raw_bytes
from tonnage.contract import ComputedBuffers, Layout
from tonnage.errors import FormatDamaged, NotATensorizerFile, NoTensorFiles, ObjectNotFound
from tonnage.format.tensor_names import KIND_BUFFER
from tonnage.inspection import inspect_files

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from support.tensors_corpus import CorpusFile

TENSORS = [RawTensor(f"t{number}".encode(), b"|u1", (1000,), bytes(1000)) for number in range(10)]


def test_inspection_of_a_file_matches_what_was_written(
    tensors_file: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, tensors = tensors_file
    inspection = inspect_files([path])
    (file,) = inspection.files
    assert [tensor.name for tensor in file.tensors] == list(tensors)
    for found, tensor in zip(file.tensors, tensors.values(), strict=True):
        assert found.shape == tuple(tensor.shape)
        assert f"torch.{found.dtype}" == str(tensor.dtype)
        assert found.bytes == tensor.nbytes
        data = path.read_bytes()[found.offset : found.offset + found.bytes]
        assert data == raw_bytes(tensor)
    assert file.size == path.stat().st_size
    assert file.segments[0].tensors == len(tensors)


def test_every_file_of_the_corpus_can_be_inspected(corpus: dict[str, CorpusFile]) -> None:
    for name, known in corpus.items():
        (file,) = inspect_files([known.path]).files
        assert len(file.tensors) == len(known.tensors), name
        assert file.version == known.version, name
        assert file.encrypted == known.encrypted, name


def test_a_model_unsupported_by_safetensors_is_shown_in_the_other_layout_with_a_note(
    corpus: dict[str, CorpusFile],
) -> None:
    encrypted = next(file for file in corpus.values() if file.encrypted)
    inspection = inspect_files([encrypted.path])
    assert inspection.layout is Layout.TENSORIZER
    assert "safetensors layout can't represent this model" in inspection.notes[0]


def test_notes_name_computed_buffers_and_the_flags_that_serve_a_file_of_vllm(
    corpus: dict[str, CorpusFile], tmp_path: Path
) -> None:
    (note,) = inspect_files([corpus["module-meta-marker"].path]).notes
    assert "serialized by vLLM" in note
    assert "vllm serve MODEL --load-format sharded_state" in note
    path = tmp_path / "x.tensors"
    buffer = RawTensor(b"rotary_emb.inv_freq", b"<f4", (2,), bytes(8), kind=KIND_BUFFER)
    path.write_bytes(build_tensors_file([*TENSORS, buffer]).data)
    (note,) = inspect_files([path]).notes
    assert note.startswith("1 buffer that engines compute themselves, 'rotary_emb.inv_freq', is in tonnage/")
    assert inspect_files([path], computed_buffers=ComputedBuffers.IN_SHARDS).notes == ()


def test_segments_cover_the_body_without_gaps_and_tensors_have_their_segment(tmp_path: Path) -> None:
    path = tmp_path / "x.tensors"
    path.write_bytes(build_tensors_file(TENSORS).data)
    (file,) = inspect_files([path], segment_size=3000).files
    assert len(file.segments) > 2
    assert file.segments[0].start == file.index_bytes
    assert file.segments[-1].end == file.size
    for before, after in zip(file.segments, file.segments[1:], strict=False):
        assert before.end == after.start
    for tensor in file.tensors:
        segment = file.segments[tensor.segment]
        assert segment.start <= tensor.offset <= tensor.offset + tensor.bytes <= segment.end
    assert sum(segment.tensors for segment in file.segments) == len(TENSORS)


def test_a_folder_is_all_files_below_it(tmp_path: Path) -> None:
    for name in ("b.tensors", "a/c.tensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(build_tensors_file(TENSORS[:1]).data)
    # two files of one model must not have tensors of one name in the safetensors layout
    inspection = inspect_files([tmp_path], layout=Layout.TENSORIZER)
    assert [file.label for file in inspection.files] == [str(tmp_path / "a/c.tensors"), str(tmp_path / "b.tensors")]


def test_an_inspection_is_json(tmp_path: Path) -> None:
    path = tmp_path / "x.tensors"
    path.write_bytes(build_tensors_file(TENSORS).data)
    decoded = msgspec.json.decode(msgspec.json.encode(inspect_files([path])))
    assert decoded["files"][0]["tensors"][3]["name"] == "t3"


def test_another_kind_of_file_is_rejected_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound, match="gone"):
        inspect_files([tmp_path / "gone"])
    with pytest.raises(NoTensorFiles, match=str(tmp_path)):
        inspect_files([tmp_path])
    other = tmp_path / "other.tensors"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(NotATensorizerFile, match=r"other\.tensors"):
        inspect_files([other])
    cut = tmp_path / "cut.tensors"
    cut.write_bytes(build_tensors_file(TENSORS).data[:-5000])
    with pytest.raises(FormatDamaged, match=r"cut\.tensors"):
        inspect_files([cut])
