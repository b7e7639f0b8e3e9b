"""From an object in a store to tensors: loaded by the loader, then opened."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import tonnage
from support.load_harness import KEY, KEYS, LoadHarness
from support.models import CONFIG, make_tensors, to_safetensors_file, to_tensors_file
from tonnage.attach.copy.chunks import pack_groups, split_group
from tonnage.contract import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from support.attach_fixture_types import TensorsEqual
    from support.faulty_server import FaultyServer
    from support.tensors_corpus import CorpusFile


@pytest.fixture
def harness(faulty_server: FaultyServer, tmp_path: Path) -> LoadHarness:
    tensors = make_tensors(count=6)
    weights = to_tensors_file(tensors)
    faulty_server.put(KEY, weights)
    faulty_server.put("bucket/model/config.json", CONFIG)
    return LoadHarness(faulty_server, tmp_path / "cache", tensors, weights)


@pytest.mark.parametrize("layout", list(Layout))
def test_a_loaded_model_opens_with_all_bytes(harness: LoadHarness, layout: Layout, tensors_equal: TensorsEqual) -> None:
    report = harness.load(layout=layout)
    with tonnage.open(report.path) as weights:
        assert list(weights) == list(harness.tensors)
        assert all(tensors_equal(weights[name], tensor) for name, tensor in harness.tensors.items())
        assert weights.metadata["tonnage.revision"] in report.entry
        assert weights.metadata["tonnage.verified"] == "crc32"


def test_an_entry_of_safetensors_files_is_copied_in_the_same_steps_as_one_of_a_tensors_file(
    harness: LoadHarness, tmp_path: Path, tensors_equal: TensorsEqual
) -> None:
    """What is read at a time and how often decides the speed of a copy to a GPU."""
    tensors = {name: tensor.bfloat16() for name, tensor in harness.tensors.items()}
    steps = []
    for kind, file in (("tensors", to_tensors_file(tensors)), ("safetensors", to_safetensors_file(tensors))):
        harness.server.delete(KEY)
        harness.server.put(KEYS[kind], file)
        report = replace(harness, cache=tmp_path / kind).load()
        with tonnage.open(report.path) as weights:
            groups = pack_groups(weights.records.values(), group_bytes=300_000)
            chunks = [chunk for group in groups for chunk in split_group(group, chunk_bytes=70_000)]
            steps.append([(chunk.length, len(chunk.extents)) for chunk in chunks])
            assert all(tensors_equal(weights.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert len(steps[0]) > 6
    assert steps[0] == steps[1]


def test_a_second_load_finds_the_open_entry(harness: LoadHarness, tensors_equal: TensorsEqual) -> None:
    with tonnage.open(harness.load().path) as weights:
        again = harness.load()
        assert again.path == str(weights.path)
        assert all(tensors_equal(weights[name], tensor) for name, tensor in harness.tensors.items())


@pytest.mark.parametrize("name", ["nested", "meta", "module-bfloat16"])
@pytest.mark.parametrize("layout", list(Layout))
def test_names_and_meta_tensors_survive_the_load(
    harness: LoadHarness, corpus: dict[str, CorpusFile], name: str, layout: Layout, tensors_equal: TensorsEqual
) -> None:
    file = corpus[name]
    harness.server.put(KEY, file.path.read_bytes())
    with tonnage.open(harness.load(layout=layout).path) as weights:
        assert set(weights) == set(file.by_flat_name)
        assert all(tensors_equal(weights[flat], tensor) for flat, tensor in file.by_flat_name.items())
        tree = weights.nested()
        for path in file.tensors:
            node = tree
            for step in path if len(path) > 1 else (file.flat_names[path],):
                node = node[step]
            assert node.shape == file.tensors[path].shape
