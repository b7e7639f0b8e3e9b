"""From an object in a store to tensors: loaded by the loader, then opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tonnage
from support.load_harness import KEY, LoadHarness
from support.models import CONFIG, make_tensors, to_tensors_file
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
