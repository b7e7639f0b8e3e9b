"""The file of computed buffers, the headers of shards, and files that vLLM serialized, from the blueprint alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from tensorizer import TensorSerializer

from support.blueprints import fill, source_object
from tonnage.contract import ComputedBuffers, Layout
from tonnage.format.safetensors import LENGTH_BYTES, parse_header
from tonnage.planning.blueprint import NO_FILE, EntryShape
from tonnage.planning.blueprint_builder import build_blueprint

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.planning.blueprint import Blueprint, SourceObject

OWN_FILE = "tonnage/computed-buffers.safetensors"
SAFETENSORS = EntryShape(layout=Layout.SAFETENSORS)
TENSORIZER = EntryShape(layout=Layout.TENSORIZER)
REVISION, DIGEST = "r-0123456789ab", "sha256:" + "0123456789ab" + "0" * 52


class Rotary(torch.nn.Module):
    def __init__(self, *, size: int = 8) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.rand(size, dtype=torch.float64), persistent=False)
        self.register_buffer("original_inv_freq", torch.rand(size), persistent=False)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotary_emb = Rotary()
        self.proj = torch.nn.Linear(16, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.register_buffer("_k_scale", torch.rand(1))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))


def write(path: Path, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Writes a module as tensorizer's documentation does, and returns its tensors."""
    serializer = TensorSerializer(str(path))
    serializer.write_module(module)
    serializer.close()
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def filled(blueprint: Blueprint, objects: list[Path]) -> dict[str, dict[str, torch.Tensor]]:
    """Transfers in memory; returns the tensors of each safetensors file by the file's path."""
    from safetensors.torch import load

    files = fill(blueprint, [path.read_bytes() for path in objects])
    return {path: load(content) for path, content in files.items() if path.endswith(".safetensors")}


def metadata(blueprint: Blueprint) -> dict[str, dict[str, str]]:
    found = {}
    for file in blueprint.files:
        if file.kind == "shard":
            header = parse_header(file.prefix[LENGTH_BYTES:], file_size=file.size, label=file.path)
            found[file.path] = dict(header.metadata)
    return found


@pytest.mark.parametrize("segment_size", [0, 2500, 600, 1])
def test_computed_buffers_are_in_a_file_of_their_own(tmp_path: Path, segment_size: int) -> None:
    tensors = write(tmp_path / "m.tensors", Model())
    source = source_object(tmp_path / "m.tensors")
    blueprint = build_blueprint([source], EntryShape(layout=Layout.SAFETENSORS, segment_size=segment_size))
    files = filled(blueprint, [tmp_path / "m.tensors"])
    own = files.pop(OWN_FILE)
    assert set(own) == {name for name in tensors if name.endswith("inv_freq")}
    shards = {name: tensor for shard in files.values() for name, tensor in shard.items()}
    assert shards.keys() == tensors.keys() - own.keys()
    for name, tensor in (shards | own).items():
        assert torch.equal(tensor, tensors[name]), name
    assert all(files.values()), "a shard is empty"
    if len(files) > 1:
        count = len(files)
        assert sorted(files) == [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
        (index,) = (file for file in blueprint.files if file.kind == "index")
        listed = json.loads(index.prefix)
        assert listed["weight_map"] == {name: path for path, shard in files.items() for name in shard}
        assert listed["metadata"]["total_size"] == sum(tensor.nbytes for tensor in shards.values())
    by_path = {file.path: file for file in blueprint.files}
    assert [path for path, file in by_path.items() if file.computed_buffers] == [OWN_FILE]
    for place in blueprint.placements:
        assert source.tensors_index is not None
        entry = source.tensors_index.tensors[place.tensor_index]
        path = blueprint.files[place.file_index].path
        assert (path == OWN_FILE) == entry.name.endswith("inv_freq")
        assert place.offset % entry.dtype.item_size == 0


def test_every_byte_of_the_object_is_transferred_once(tmp_path: Path) -> None:
    write(tmp_path / "m.tensors", Model())
    source = source_object(tmp_path / "m.tensors")
    both = [
        build_blueprint([source], EntryShape(layout=Layout.SAFETENSORS, segment_size=1000, computed_buffers=place))
        for place in ComputedBuffers
    ]
    assert both[0].source_bytes == both[1].source_bytes
    assert [(item.start, item.end) for item in both[0].segments] == [
        (item.start, item.end) for item in both[1].segments
    ]


def test_in_shards_leaves_all_tensors_in_the_shards_without_a_note(tmp_path: Path) -> None:
    tensors = write(tmp_path / "m.tensors", Model())
    blueprint = build_blueprint(
        [source_object(tmp_path / "m.tensors")],
        EntryShape(layout=Layout.SAFETENSORS, computed_buffers=ComputedBuffers.IN_SHARDS),
    )
    assert filled(blueprint, [tmp_path / "m.tensors"])["model.safetensors"].keys() == tensors.keys()
    assert blueprint.notes == ()
    assert blueprint.computed_buffers is ComputedBuffers.IN_SHARDS


def test_a_note_has_the_number_of_buffers_and_their_file(tmp_path: Path) -> None:
    write(tmp_path / "m.tensors", Model())
    blueprint = build_blueprint([source_object(tmp_path / "m.tensors")], SAFETENSORS)
    (note,) = blueprint.notes
    assert note.startswith("6 buffers that engines compute themselves")
    assert OWN_FILE in note
    assert "--computed-buffers in-shards" in note


def test_each_rank_and_each_folder_has_a_file_of_its_own(tmp_path: Path) -> None:
    objects: list[SourceObject] = []
    paths = []
    for rank in range(2):
        paths.append(tmp_path / f"model-rank-{rank:03d}.tensors")
        write(paths[-1], Model())
        objects.append(source_object(paths[-1], rank=rank))
    paths.append(tmp_path / "vae.tensors")
    write(paths[-1], Model())
    objects.append(source_object(paths[-1], key="vae/model.tensors"))
    blueprint = build_blueprint(objects, SAFETENSORS)
    own = {file.path: file.rank for file in blueprint.files if file.computed_buffers}
    assert own == {
        "tonnage/computed-buffers-rank-0.safetensors": 0,
        "tonnage/computed-buffers-rank-1.safetensors": 1,
        "vae/tonnage/computed-buffers.safetensors": None,
    }
    note, of_ranks = blueprint.notes
    assert note.startswith("18 buffers that engines compute themselves")
    assert "3 files such as tonnage/computed-buffers-rank-0.safetensors" in note
    assert "doesn't compare the number of ranks" in of_ranks
    for path, tensors in filled(blueprint, paths).items():
        assert all(name.endswith("inv_freq") == (path in own) for name in tensors)


def test_a_file_of_only_computed_buffers_stays_a_shard(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.rotary_emb = Rotary()
    write(tmp_path / "m.tensors", module)
    blueprint = build_blueprint([source_object(tmp_path / "m.tensors")], SAFETENSORS)
    assert [file.path for file in blueprint.files] == ["model.safetensors"]
    assert blueprint.notes == ()


def test_the_tensorizer_layout_has_no_other_files(tmp_path: Path) -> None:
    write(tmp_path / "m.tensors", Model())
    blueprint = build_blueprint([source_object(tmp_path / "m.tensors")], TENSORIZER)
    assert [file.path for file in blueprint.files] == ["m.tensors"]
    assert (blueprint.notes, blueprint.computed_buffers) == ((), None)


def test_every_header_names_revision_and_digest_and_keeps_the_format_that_engines_require(tmp_path: Path) -> None:
    write(tmp_path / "m.tensors", Model())
    blueprint = build_blueprint(
        [source_object(tmp_path / "m.tensors")],
        EntryShape(layout=Layout.SAFETENSORS, segment_size=1000, revision=REVISION, digest=DIGEST),
    )
    headers = metadata(blueprint)
    assert len(headers) > 2
    for found in headers.values():
        assert found == {"format": "pt", "tonnage.revision": REVISION, "tonnage.digest": DIGEST}


def test_files_of_vllm_are_recognized_and_the_flags_that_serve_them_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "m.tensors", tmp_path / "model-rank-000.tensors"):
        model = Model()
        marker = torch.nn.Parameter(torch.empty((1,), device="meta"), requires_grad=False)
        model.register_parameter("vllm_tensorized_marker", marker)
        write(path, model)
    blueprint = build_blueprint([source_object(tmp_path / "m.tensors")], SAFETENSORS)
    note = blueprint.notes[-1]
    assert "s3://bucket/m.tensors was serialized by vLLM" in note
    assert "vllm serve MODEL --load-format sharded_state`" in note
    assert sum(place.file_index == NO_FILE for place in blueprint.placements) == 1
    (note,) = build_blueprint([source_object(tmp_path / "m.tensors")], TENSORIZER).notes
    assert "--load-format tensorizer" in note
    assert '"tensorizer_uri": "MODEL/m.tensors"' in note
    ranked = build_blueprint([source_object(tmp_path / "model-rank-000.tensors", rank=0)], TENSORIZER)
    assert "MODEL/model-rank-%03d.tensors" in ranked.notes[0]
    assert "--tensor-parallel-size" in ranked.notes[0]
