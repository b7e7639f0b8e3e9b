"""Opening paths of all kinds, and the paths that are refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from tonnage.attach import (
    EntryBeingRemoved,
    EntryIncomplete,
    PathNotFound,
    RankMissing,
    open_weights,
)
from tonnage.cache import Cache, commit
from tonnage.contract import Layout
from tonnage.errors import (
    CacheDamaged,
    CacheInUse,
    FormatDamaged,
    FormatUnsupported,
    NameCollision,
    NoTensorFiles,
    TonnageError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from support.attach_fixture_types import MakeEntry, TensorsEqual
    from support.tensors_corpus import CorpusFile

PLAIN = [
    "module-float32", "module-bfloat16", "module-meta-marker", "state-dict", "dtypes-safetensors", "dtypes-other",
    "scalar", "strided", "empty", "empty-bfloat16", "many-dimensions", "meta", "meta-bfloat16", "nested", "list",
    "unicode", "unicode-nested", "longest-name", "mixed-large", "many", "reserved",
]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_tensorizers_files_open_with_every_tensor_as_it_was(
    corpus: dict[str, CorpusFile], name: str, tensors_equal: TensorsEqual
) -> None:
    file = corpus[name]
    with open_weights(file.path) as weights:
        assert list(weights) == list(file.flat_names.values())
        for path, tensor in file.tensors.items():
            expected = torch.zeros(tensor.shape).to(tensor.dtype) if tensor.is_meta else tensor
            assert tensors_equal(weights[file.flat_names[path]], expected), path


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(
    "name", ["module-bfloat16", "nested", "meta", "empty", "mixed-large", "dtypes-safetensors", "list"]
)
def test_entries_of_both_layouts_hold_the_same_tensors(
    corpus: dict[str, CorpusFile], make_entry: MakeEntry, layout: Layout, name: str, tensors_equal: TensorsEqual
) -> None:
    file = corpus[name]
    entry = make_entry([file.path], layout=layout, segment_size=1 << 20)
    for path in (entry.path, entry.model_dir):
        with open_weights(path) as weights:
            assert list(weights) == list(file.flat_names.values())
            for flat, tensor in file.by_flat_name.items():
                assert tensors_equal(weights[flat], tensor), flat
            assert weights.metadata["tonnage.layout"] == layout.value


def test_a_model_folder_that_is_mounted_alone_opens_by_its_files(
    corpus: dict[str, CorpusFile], make_entry: MakeEntry, tmp_path: Path, tensors_equal: TensorsEqual
) -> None:
    file = corpus["mixed-large"]
    entry = make_entry([file.path], segment_size=1 << 20)
    shutil.copytree(entry.model_dir, tmp_path / "models" / "llama")
    with open_weights(tmp_path / "models" / "llama") as weights:
        assert set(weights) == set(file.by_flat_name)
        assert all(tensors_equal(weights[name], tensor) for name, tensor in file.by_flat_name.items())


def test_one_file_of_an_entry_opens_alone(corpus: dict[str, CorpusFile], make_entry: MakeEntry) -> None:
    entry = make_entry([corpus["mixed-large"].path], segment_size=1 << 20)
    first = min(entry.model_dir.glob("*.safetensors"))
    with open_weights(first) as weights:
        assert 0 < len(weights) < len(corpus["mixed-large"].tensors)


def test_a_folder_of_an_entry_opens_alone(corpus: dict[str, CorpusFile], make_entry: MakeEntry) -> None:
    one, other = corpus["scalar"].path, corpus["one-float32"].path
    entry = make_entry([one, other], names=["unet/model.tensors", "vae/model.tensors"])
    with open_weights(entry.model_dir / "vae") as weights:
        assert list(weights) == ["w"]
    with open_weights(entry.path) as weights:
        assert set(weights) == {"scalar", "one", "w"}


@pytest.mark.parametrize("layout", list(Layout))
def test_one_rank_of_a_sharded_entry(corpus: dict[str, CorpusFile], make_entry: MakeEntry, layout: Layout) -> None:
    files = [corpus["one-float32"].path, corpus["one-bfloat16"].path]
    names = ["model-rank-000.tensors", "model-rank-001.tensors"]
    entry = make_entry(files, ranks=True, layout=layout, names=names)
    with open_weights(entry.path, rank=1) as weights:
        assert weights["w"].dtype == torch.bfloat16
    with open_weights(entry.path, rank=0) as weights:
        assert weights["w"].dtype == torch.float32
    with pytest.raises(RankMissing, match=r"2 ranks \(0, 1\): choose one with rank="):
        open_weights(entry.path)
    with pytest.raises(RankMissing, match=r"no rank 2\. Available: 0, 1"):
        open_weights(entry.path, rank=2)


def test_without_an_entry_ranks_are_parsed_from_file_names(
    corpus: dict[str, CorpusFile], make_entry: MakeEntry, tmp_path: Path
) -> None:
    files = [corpus["one-float32"].path, corpus["one-bfloat16"].path]
    entry = make_entry(files, ranks=True, names=["model-rank-000.tensors", "model-rank-001.tensors"])
    shutil.copytree(entry.model_dir, tmp_path / "alone")
    with open_weights(tmp_path / "alone", rank=1) as weights:
        assert weights["w"].dtype == torch.bfloat16
    with pytest.raises(RankMissing, match="choose one"):
        open_weights(tmp_path / "alone")


def test_a_missing_part_of_a_rank_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-rank-0-part-0.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-rank-0-part-2.safetensors")
    with pytest.raises(CacheDamaged, match="part 1 of rank 0 is missing"):
        open_weights(tmp_path)


def test_a_rank_of_weights_without_ranks_is_refused(shard: Path) -> None:
    with pytest.raises(RankMissing, match="not sharded by rank"):
        open_weights(shard.parent, rank=0)


def test_an_index_selects_the_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with open_weights(tmp_path) as weights:
        assert weights["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not an index"),
        ("[]", "is not an index"),
        ('{"weight_map": {"a": 5}}', "lists the file 5"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "not below the index's directory"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "does not exist: the directory is incomplete"),
    ],
)
def test_an_invalid_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CacheDamaged, match=message):
        open_weights(tmp_path)


def test_a_name_in_two_files_is_refused_naming_both(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(NameCollision, match=r"'a' is in .*one\.safetensors and in .*two\.safetensors"):
        open_weights(tmp_path)


def test_equal_flat_names_of_different_paths_are_kept_apart(
    corpus: dict[str, CorpusFile], tensors_equal: TensorsEqual
) -> None:
    file = corpus["colliding"]
    with open_weights(file.path) as weights:
        assert set(weights) == {"a.b", '["a", "b"]'}
        assert tensors_equal(weights["a.b"], file.tensors["a.b",])
        assert tensors_equal(weights['["a", "b"]'], file.tensors["a", "b"])
        assert tensors_equal(weights.nested()["a"]["b"], file.tensors["a", "b"])


def test_a_path_that_does_not_exist_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(PathNotFound, match="gone does not exist"):
        open_weights(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        open_weights(tmp_path / "gone")


def test_a_path_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoTensorFiles, match=r"has no \.safetensors and no \.tensors file"):
        open_weights(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NoTensorFiles, match="neither a directory nor"):
        open_weights(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["encrypted-module", "encrypted-meta"])
def test_encrypted_weights_are_refused_before_anything_is_read(
    corpus: dict[str, CorpusFile], make_entry: MakeEntry, name: str
) -> None:
    with pytest.raises(FormatUnsupported, match="encrypted"):
        open_weights(corpus[name].path)
    entry = make_entry([corpus[name].path], layout=Layout.TENSORIZER)
    with pytest.raises(FormatUnsupported, match="encrypted"):
        open_weights(entry.path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_shard_that_is_shorter_than_in_its_header_is_refused(shard: Path, left: int) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[:left])
    with pytest.raises(CacheDamaged, match=str(shard)):
        open_weights(shard)


@pytest.mark.parametrize("left", [10, 300_000, -1, -9])
def test_a_truncated_tensors_file_is_refused(tensors_file: Path, tmp_path: Path, left: int) -> None:
    path = tmp_path / "cut.tensors"
    path.write_bytes(tensors_file.read_bytes()[:left])
    with pytest.raises(FormatDamaged, match=r"cut\.tensors"):
        open_weights(path)


def test_an_entry_file_of_another_size_is_refused(corpus: dict[str, CorpusFile], make_entry: MakeEntry) -> None:
    entry = make_entry([corpus["state-dict"].path])
    shard = next(entry.model_dir.glob("*.safetensors"))
    shard.chmod(0o644)
    with shard.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CacheDamaged, match="in the manifest"):
        open_weights(entry.path)
    shard.unlink()
    with pytest.raises(CacheDamaged, match="can't be opened"):
        open_weights(entry.path)


def test_an_entry_whose_load_is_not_finished_is_refused(tmp_path: Path) -> None:
    entry = Cache(tmp_path).entry("r-0123456789ab")
    entry.path.mkdir()
    entry.create()
    with pytest.raises(EntryIncomplete, match="not finished") as caught:
        open_weights(entry.path)
    assert isinstance(caught.value, CacheDamaged)


def test_an_evicted_entry_is_refused(corpus: dict[str, CorpusFile], make_entry: MakeEntry) -> None:
    entry = make_entry([corpus["state-dict"].path])
    exclusive = entry.try_acquire_exclusive_use_lock()
    assert exclusive is not None
    commit.clear(entry)
    exclusive.release()
    with pytest.raises(EntryIncomplete):
        open_weights(entry.path)


def test_an_entry_that_is_being_evicted_is_refused(corpus: dict[str, CorpusFile], make_entry: MakeEntry) -> None:
    entry = make_entry([corpus["state-dict"].path])
    exclusive = entry.try_acquire_exclusive_use_lock()
    assert exclusive is not None
    with pytest.raises(EntryBeingRemoved, match="being evicted") as caught:
        open_weights(entry.path)
    assert isinstance(caught.value, CacheInUse)
    exclusive.release()
    open_weights(entry.path).close()


def test_every_error_of_opening_has_a_remedy(tmp_path: Path, corpus: dict[str, CorpusFile]) -> None:
    for path in (tmp_path / "gone", tmp_path, corpus["encrypted-module"].path):
        with pytest.raises(TonnageError) as caught:
            open_weights(path)
        assert caught.value.remedy
        assert str(path) in str(caught.value)
