from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING

import pytest
import torch

from support.blueprints import fill, source_object
from support.models import REFUSAL
from support.tensors_corpus import CorpusFile, write_tensors_file
from support.tensors_writer import raw_tensors
from tonnage.contract import Layout
from tonnage.errors import DtypeUnsupported, FormatUnsupported, NameCollision
from tonnage.planning.blueprint import EntryShape, SourceObject, segment_count
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.planning.segments import SpanRole

if TYPE_CHECKING:
    from pathlib import Path


MIB = 1 << 20
GIB = 1 << 30
SAFETENSORS = EntryShape(layout=Layout.SAFETENSORS)
TENSORIZER = EntryShape(layout=Layout.TENSORIZER)


def file_of(directory: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    path = directory / name
    write_tensors_file(path, raw_tensors(dict(tensors.items())))  # the keys' type is invariant
    return path


def test_the_tensorizer_layout_is_the_unmodified_object(corpus: dict[str, CorpusFile]) -> None:
    for item in corpus.values():
        blueprint = build_blueprint([source_object(item.path)], EntryShape(layout=Layout.TENSORIZER, segment_size=1000))
        assert fill(blueprint, [item.path.read_bytes()]) == {item.path.name: item.path.read_bytes()}, item.name


def test_shards_of_every_file_hold_its_tensors_bit_for_bit(corpus: dict[str, CorpusFile], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tried = 0
    for item in corpus.values():
        if not item.safetensors:
            continue
        blueprint = build_blueprint(
            [source_object(item.path)], EntryShape(layout=Layout.SAFETENSORS, segment_size=4096)
        )
        found: dict[str, torch.Tensor] = {}
        for path, content in fill(blueprint, [item.path.read_bytes()]).items():
            if path.endswith(".safetensors") and not path.startswith(REFUSAL):
                (tmp_path / path).write_bytes(content)
                found |= load_file(tmp_path / path)
        expected = {item.flat_names[path]: tensor for path, tensor in item.tensors.items() if not tensor.is_meta}
        assert found.keys() == expected.keys(), item.name
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert torch.equal(
                found[name].contiguous().flatten().view(torch.uint8), tensor.contiguous().flatten().view(torch.uint8)
            ), (item.name, name)
        tried += 1
    assert tried > 10


def test_every_tensor_is_aligned_to_its_item_size_in_its_shard(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        "m.tensors",
        {
            "a": torch.zeros(3, dtype=torch.uint8),
            "b": torch.zeros(3, dtype=torch.float64),
            "c": torch.zeros(5, dtype=torch.bfloat16),
            "d": torch.zeros(1, dtype=torch.float32),
        },
    )
    blueprint = build_blueprint([source_object(path)], SAFETENSORS)
    for place in blueprint.placements:
        tensors = blueprint.objects[0].tensors_index
        assert tensors is not None
        assert place.offset % tensors.tensors[place.tensor_index].dtype.item_size == 0


def test_shards_are_named_and_indexed_as_engines_expect(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.zeros(1000) for number in range(6)}
    one = build_blueprint([source_object(file_of(tmp_path, "m.tensors", tensors))], SAFETENSORS)
    assert [file.path for file in one.files] == ["model.safetensors"]
    blueprint = build_blueprint(
        [source_object(tmp_path / "m.tensors")], EntryShape(layout=Layout.SAFETENSORS, segment_size=9000)
    )
    assert [file.path for file in blueprint.files] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(blueprint.files[-1].prefix)
    assert index["metadata"]["total_size"] == 24_000
    assert index["weight_map"]["layer.5"] == "model-00003-of-00003.safetensors"
    assert len(index["weight_map"]) == 6


def test_ranks_are_named_as_sharded_state_loaders_expect(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.zeros(1000) for number in range(4)}
    objects = [
        source_object(file_of(tmp_path, f"model-rank-00{rank}.tensors", tensors), rank=rank) for rank in range(2)
    ]
    blueprint = build_blueprint(objects, EntryShape(layout=Layout.SAFETENSORS, segment_size=9000))
    assert [file.path for file in blueprint.files] == [
        "model-rank-0-part-0.safetensors",
        "model-rank-0-part-1.safetensors",
        "model-rank-1-part-0.safetensors",
        "model-rank-1-part-1.safetensors",
    ]


def test_files_in_directories_keep_them_and_may_share_names(tmp_path: Path) -> None:
    path = file_of(tmp_path, "m.tensors", {"w": torch.zeros(4)})
    blueprint = build_blueprint(
        [source_object(path, key="unet/model.tensors"), source_object(path, key="vae/model.tensors")],
        SAFETENSORS,
    )
    assert {posixpath.dirname(file.path) for file in blueprint.files} == {"unet", "vae"}


def test_two_files_of_one_directory_with_a_common_tensor_name_are_rejected_with_both_names(tmp_path: Path) -> None:
    first = source_object(file_of(tmp_path, "a.tensors", {"w": torch.zeros(4)}))
    second = source_object(file_of(tmp_path, "b.tensors", {"w": torch.zeros(4)}))
    with pytest.raises(NameCollision, match=r"(?s)'w'.*a\.tensors.*b\.tensors|b\.tensors.*a\.tensors"):
        build_blueprint([first, second], SAFETENSORS)
    assert len(build_blueprint([first, second], TENSORIZER).files) == 2


def test_a_dtype_that_safetensors_lacks_is_rejected_with_tensor_dtype_and_layout(tmp_path: Path) -> None:
    item = source_object(file_of(tmp_path, "m.tensors", {"z": torch.zeros(2, dtype=torch.complex128)}))
    with pytest.raises(DtypeUnsupported, match=r"'z' has the dtype complex128") as caught:
        build_blueprint([item], SAFETENSORS)
    assert "--layout tensorizer" in caught.value.remedy


def test_an_encrypted_file_needs_the_tensorizer_layout_and_its_data_is_opaque(corpus: dict[str, CorpusFile]) -> None:
    item = next(item for item in corpus.values() if item.encrypted)
    with pytest.raises(FormatUnsupported, match="Tensorizer layout"):
        build_blueprint([source_object(item.path)], SAFETENSORS)
    blueprint = build_blueprint([source_object(item.path)], TENSORIZER)
    assert not any(span.role is SpanRole.DATA for segment in blueprint.segments for span in segment.spans)
    assert "encrypted" in blueprint.notes[0]


def test_a_companion_with_the_path_of_a_shard_is_rejected(tmp_path: Path) -> None:
    item = source_object(file_of(tmp_path, "m.tensors", {"w": torch.zeros(4)}))
    companion = SourceObject("s3://bucket/model.safetensors", "model.safetensors", 10)
    with pytest.raises(NameCollision, match=r"model\.safetensors"):
        build_blueprint([item, companion], SAFETENSORS)
    folder = SourceObject("s3://bucket/model.safetensors/x", "model.safetensors/x", 10)
    with pytest.raises(NameCollision, match="directory"):
        build_blueprint([item, folder], SAFETENSORS)


def test_the_number_of_segments_depends_on_the_model_only() -> None:
    assert segment_count(0, 0) == 1
    assert segment_count(100 * MIB, 0) == 1
    assert segment_count(GIB, 0) == 4
    assert segment_count(6 * GIB, 0) == 24
    assert segment_count(16 * GIB, 0) == 32
    assert segment_count(140 * GIB, 0) == 35
    assert segment_count(10, 3) == 4
