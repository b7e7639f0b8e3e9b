"""Selection of a model's objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.contract import FileSelection, RankSelection, file_selection
from tonnage.contract.selection import classify_path, common_directory, rank_expression
from tonnage.errors import InvalidPlan, NameCollision, NoTensorFiles, ObjectNotFound
from tonnage.source.selection import check_path, filter_ranks, select

if TYPE_CHECKING:
    from tonnage.source.selection import Selection

WHERE = "s3://b/m/"


def pick(*paths: str, files: FileSelection | None = None, need_tensors: bool = True) -> Selection:
    keys = [(f"m/{path}", path) for path in paths]
    return select(keys, files or FileSelection(), where=WHERE, need_tensors=need_tensors)


def paths(selection: Selection) -> list[str]:
    return [each.path for each in selection.objects]


def ranked(*numbers: int) -> list[str]:
    return [f"model-rank-{number:03d}.tensors" for number in numbers]


def test_tensor_files_and_usual_companions_are_selected_in_order() -> None:
    picked = pick("tokenizer.json", "b.tensors", "README.md", "a.tensors", "config.json", "x.bin")
    assert [(each.path, each.kind) for each in picked.objects] == [
        ("a.tensors", "tensors"),
        ("b.tensors", "tensors"),
        ("config.json", "companion"),
        ("tokenizer.json", "companion"),
    ]


def test_patterns_match_the_whole_path_or_its_last_part() -> None:
    files = FileSelection(tensors=("sub/*.tensors",), companions=("config.json",))
    assert paths(pick("a.tensors", "sub/b.tensors", "deep/config.json", files=files)) == [
        "deep/config.json",
        "sub/b.tensors",
    ]


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], "tonnage serialize FOLDER TARGET"),
        (["consolidated.00.pth", "params.json"], "tonnage serialize FOLDER TARGET"),
        (["model-Q4_K_M.gguf"], "GGUF files are not loaded"),
        (["MODEL.SAFETENSORS", "README.md"], "lower case"),
        (["onnx/model.onnx"], "Save the model as safetensors"),
        (["README.md"], "Check the prefix"),
    ],
)
def test_a_source_of_other_formats_is_refused_with_the_way_to_load_it(there: list[str], words: str) -> None:
    with pytest.raises(NoTensorFiles) as caught:
        pick(*there, "config.json")
    assert words in caught.value.remedy
    assert (there[0] in caught.value.message) == (there != ["README.md"])


@pytest.mark.parametrize(
    "hidden",
    [
        "._model.safetensors",
        "unet/._model.safetensors",
        "__MACOSX/._config.json",
        ".cache/huggingface/download/config.json",
        ".ipynb_checkpoints/config-checkpoint.json",
        ".git/lfs/a.tensors",
    ],
)
def test_files_that_programs_leave_behind_are_no_part_of_a_model(hidden: str) -> None:
    picked = pick("model.safetensors", hidden)
    assert paths(picked) == ["model.safetensors"]
    assert any(hidden in note for note in picked.notes)
    assert hidden in paths(pick(hidden, files=file_selection([hidden], []), need_tensors=False))


def test_exclusion_wins() -> None:
    files = FileSelection(exclude=("optimizer*", "old/*"))
    assert paths(pick("a.tensors", "optimizer.tensors", "old/a.tensors", files=files)) == ["a.tensors"]


def test_only_files_with_the_suffix_are_tensor_files() -> None:
    files = FileSelection(tensors=("*",), companions=("*",))
    assert classify_path("a.bin", files) == "companion"
    assert classify_path("a.tensors", files) == "tensors"
    assert classify_path("a.tensors", FileSelection(tensors=("b*",), companions=("*",))) is None


def test_named_keys_need_no_pattern_to_be_companions() -> None:
    assert classify_path("README.md", FileSelection()) is None
    assert classify_path("README.md", FileSelection(), explicit=True) == "companion"


def test_indexes_of_safetensors_shards_are_left_out_with_a_note() -> None:
    picked = pick("a.tensors", "model.safetensors.index.json")
    assert paths(picked) == ["a.tensors"]
    assert "model.safetensors.index.json" in picked.notes[0]


def test_variants_of_an_index_of_safetensors_shards_are_left_out_too() -> None:
    picked = pick("a.tensors", "unet/diffusion_pytorch_model.safetensors.index.fp16.json")
    assert paths(picked) == ["a.tensors"]
    assert "it describes other files" in picked.notes[0]


def test_without_a_tensor_file_the_error_counts_the_objects() -> None:
    with pytest.raises(NoTensorFiles, match="none of the 2 objects"):
        pick("config.json", "a.bin")
    assert paths(pick("config.json", need_tensors=False)) == ["config.json"]


@pytest.mark.parametrize("path", ["/a", "a//b", "../a", "a/../b", "./a", "a/.", "", "a\x00b", "x" * 256, "é" * 128])
def test_paths_that_leave_the_directory_or_are_too_long_are_rejected(path: str) -> None:
    with pytest.raises(NameCollision, match="s3://b/m/"):
        check_path(path, where=WHERE)


@pytest.mark.parametrize("path", ["a", "a b+c", "a/b/c", "..a", "a..", "...", "x" * 255, "ü€", "new\nline"])
def test_odd_but_safe_paths_are_fine(path: str) -> None:
    check_path(path, where=WHERE)


def test_an_unsafe_key_that_is_not_selected_is_ignored() -> None:
    assert paths(pick("a.tensors", "x//../y.bin")) == ["a.tensors"]


def test_a_file_and_a_directory_of_one_name_collide() -> None:
    with pytest.raises(NameCollision, match=r"'a\.json'.*'a\.json/b\.tensors'"):
        pick("a.json", "a.json/b.tensors")


def test_ranks_are_recognized_by_default() -> None:
    picked = pick(*ranked(0, 1), "config.json", "extra.tensors")
    assert {each.path: each.rank for each in picked.objects} == {
        "model-rank-000.tensors": 0,
        "model-rank-001.tensors": 1,
        "config.json": None,
        "extra.tensors": None,
    }


def test_a_gap_in_found_ranks_is_noted() -> None:
    assert "rank 1 is missing at the source" in pick(*ranked(0, 2)).notes[0]


def test_missing_ranks_are_named() -> None:
    files = FileSelection(ranks=RankSelection(count=4))
    with pytest.raises(ObjectNotFound, match=r"ranks 1, 3 of 4 are missing"):
        pick(*ranked(0, 2), files=files)


def test_ranks_beyond_the_count_are_left_out_with_a_note() -> None:
    picked = pick(*ranked(0, 1, 2), files=FileSelection(ranks=RankSelection(count=2)))
    assert paths(picked) == ranked(0, 1)
    assert "model-rank-002.tensors" in picked.notes[0]


def test_two_files_of_one_rank_collide() -> None:
    with pytest.raises(NameCollision, match="both rank 0"):
        pick("a/model-rank-000.tensors", "b/model-rank-000.tensors")


def test_requested_ranks_need_matching_file_names() -> None:
    with pytest.raises(ObjectNotFound, match="no file name matches the pattern of ranks"):
        pick("a.tensors", files=FileSelection(ranks=RankSelection()))


def test_only_requested_ranks_and_common_files_are_selected() -> None:
    ranks = RankSelection(wanted=(1,))
    objects = pick(*ranked(0, 1), "config.json", files=FileSelection(ranks=ranks)).objects
    assert [each.path for each in filter_ranks(objects, ranks, where=WHERE)] == [
        "config.json",
        "model-rank-001.tensors",
    ]


def test_a_missing_requested_rank_is_named() -> None:
    ranks = RankSelection(wanted=(1, 7, 8))
    objects = pick(*ranked(0, 1), files=FileSelection(ranks=ranks)).objects
    with pytest.raises(ObjectNotFound, match="ranks 7, 8"):
        filter_ranks(objects, ranks, where=WHERE)


@pytest.mark.parametrize(
    ("pattern", "name", "rank"),
    [
        ("model-rank-%03d.tensors", "model-rank-012.tensors", 12),
        ("model-rank-%03d.tensors", "model-rank-1234.tensors", 1234),
        ("model-rank-%03d.tensors", "model-rank-1.tensors", None),
        ("tp%d.tensors", "tp7.tensors", 7),
        ("100%%-%d.t", "100%-3.t", 3),
        ("a.b-%d", "axb-3", None),
    ],
)
def test_rank_patterns_are_printf(pattern: str, name: str, rank: int | None) -> None:
    expression = rank_expression(pattern)
    assert expression is not None
    match = expression.fullmatch(name)
    assert (int(match[1]) if match else None) == rank


@pytest.mark.parametrize("pattern", ["model.tensors", "%s", "%d-%d", "%", "%03x"])
def test_invalid_rank_patterns_are_rejected(pattern: str) -> None:
    with pytest.raises(InvalidPlan, match="integer field"):
        pick("model-0.tensors", files=FileSelection(ranks=RankSelection(pattern=pattern)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99999))
def test_names_from_printf_are_recognized(rank: int) -> None:
    expression = rank_expression("model-rank-%03d.tensors")
    assert expression is not None
    match = expression.fullmatch(f"model-rank-{rank:03d}.tensors")
    assert match is not None
    assert int(match[1]) == rank


@pytest.mark.parametrize(
    ("keys", "directory"),
    [
        (["m/a.tensors"], "m/"),
        (["m/a", "m/sub/b"], "m/"),
        (["ma/a", "mb/b"], ""),
        (["a"], ""),
        (["a/b/c", "a/b"], "a/"),
    ],
)
def test_the_common_directory_ends_with_a_slash(keys: list[str], directory: str) -> None:
    assert common_directory(keys) == directory


def test_a_source_with_only_companions_needs_no_rank() -> None:
    ranks = RankSelection(wanted=(1,))
    objects = pick("config.json", files=FileSelection(ranks=ranks), need_tensors=False).objects
    assert filter_ranks(objects, ranks, where=WHERE) == objects


@pytest.mark.parametrize("path", [".tonnage/manifest.json", "sub/.tonnage/tensors.json", ".tonnage-x.json", ".tonnage"])
def test_names_of_the_caches_own_files_are_refused(path: str) -> None:
    with pytest.raises(NameCollision, match="can't be the name of a file in the cache"):
        check_path(path, where="s3://b/m/")
