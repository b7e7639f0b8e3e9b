"""The whole way: an object in a store, loaded by the loader, opened by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tonnage
from support.load_site import KEY, Site
from support.models import CONFIG, file_of, tensors_of
from tonnage.contract import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from support.attach_types import Same
    from support.faulty_server import FaultyServer
    from support.tensors_files import CorpusFile


@pytest.fixture
def site(faulty: FaultyServer, tmp_path: Path) -> Site:
    tensors = tensors_of(count=6)
    weights = file_of(tensors)
    faulty.put(KEY, weights)
    faulty.put("bucket/model/config.json", CONFIG)
    return Site(faulty, tmp_path / "cache", tensors, weights)


@pytest.mark.parametrize("layout", list(Layout))
def test_what_was_loaded_opens_with_every_bit(site: Site, layout: Layout, same: Same) -> None:
    report = site.load(layout=layout)
    with tonnage.open(report.path) as weights:
        assert list(weights) == list(site.tensors)
        assert all(same(weights[name], tensor) for name, tensor in site.tensors.items())
        assert weights.metadata["tonnage.revision"] in report.entry
        assert weights.metadata["tonnage.verified"] == "crc32"


def test_a_second_load_finds_the_open_entry(site: Site, same: Same) -> None:
    with tonnage.open(site.load().path) as weights:
        again = site.load()
        assert again.path == str(weights.path)
        assert all(same(weights[name], tensor) for name, tensor in site.tensors.items())


@pytest.mark.parametrize("name", ["nested", "meta", "module-bfloat16"])
@pytest.mark.parametrize("layout", list(Layout))
def test_names_and_meta_tensors_survive_the_load(
    site: Site, corpus: dict[str, CorpusFile], name: str, layout: Layout, same: Same
) -> None:
    file = corpus[name]
    site.server.put(KEY, file.path.read_bytes())
    with tonnage.open(site.load(layout=layout).path) as weights:
        assert set(weights) == set(file.by_flat_name)
        assert all(same(weights[flat], tensor) for flat, tensor in file.by_flat_name.items())
        tree = weights.nested()
        for path in file.tensors:
            node = tree
            for step in path if len(path) > 1 else (file.flat_names[path],):
                node = node[step]
            assert node.shape == file.tensors[path].shape
