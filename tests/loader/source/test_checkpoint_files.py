"""Which files of a folder of safetensors files are the model."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract import FileSelection, RankSelection, Weights, file_selection
from tonnage.errors import FormatDamaged, InvalidPlan, NameCollision, ObjectNotFound, TonnageError
from tonnage.source.index_files import IndexFile, apply_indexes, check_shards, listed_files, select_listed
from tonnage.source.selection import Selection, select

WHERE = "s3://b/m/"
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def pick(*paths: str, files: FileSelection | None = None) -> Selection:
    keys = [(f"m/{path}", path) for path in paths]
    return select(keys, files or FileSelection(), where=WHERE)


def apply(selection: Selection, contents: dict[str, bytes]) -> Selection:
    """Applies indexes that list no file which the selection has left out by its name."""
    return apply_indexes(selection, contents, where=WHERE, select=lambda _: selection)


def pick_by_index(index: bytes, *there: str) -> Selection:
    """Selects from an index and other files as a load does."""
    content = {INDEX: IndexFile(index)}
    keys = [(path, path) for path in (INDEX, *there)]
    found, _ = select_listed(
        lambda listed: select(keys, FileSelection(), where=WHERE, listed=listed), lambda _: content, where=WHERE
    )
    return found


def paths(selection: Selection) -> set[str]:
    return {each.path for each in selection.objects}


def index_of(*names: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"t{at}": name for at, name in enumerate(names)}}).encode()


CASES: dict[str, tuple[set[str], set[str]]] = {
    "a sharded model": ({*SHARDS, INDEX, "config.json"}, set()),
    "tensors beside safetensors": ({"a.tensors", "config.json"}, {"model.safetensors", INDEX}),
    "Llama with the files of its authors": (
        {*SHARDS, INDEX, "config.json"},
        {"original/consolidated.00.pth", "original/params.json", "original/consolidated.safetensors"},
    ),
    "only the files of its authors": ({"original/model.safetensors", "original/params.json"}, set()),
    "Mistral in both formats": (
        {*SHARDS, INDEX, "params.json"},
        {"consolidated.safetensors", "consolidated.safetensors.index.json"},
    ),
    "Mistral in its own format": ({"consolidated.safetensors", "params.json", "tekken.json"}, set()),
    "a diffusers pipeline with a checkpoint beside it": (
        {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"},
        {"sd_xl_base_1.0.safetensors", "unet/diffusion_pytorch_model.bin"},
    ),
    "a pipeline with variants": (
        {
            "model_index.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder_2/model-00001-of-00002.safetensors",
            "text_encoder_2/model-00002-of-00002.safetensors",
            "text_encoder_2/model.safetensors.index.json",
        },
        {
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder_2/model-00001-of-00002.fp16.safetensors",
            "text_encoder_2/model.fp16-00002-of-00002.safetensors",
            "text_encoder_2/model.safetensors.index.fp16.json",
        },
    ),
    "a pipeline in a subfolder": (
        {"a/model_index.json", "a/unet/model.safetensors", "b/model.safetensors"},
        {"a/whole.safetensors"},
    ),
    "other formats": (
        {"model.safetensors", "config.json"},
        {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "tf_model.h5", "flax_model.msgpack"},
    ),
    "an adapter": ({"adapter_model.safetensors", "adapter_config.json"}, {"adapter_model.bin"}),
    "a sentence transformer": (
        {"model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"},
        {"onnx/model.onnx"},
    ),
    "states of a training beside the model": (
        {"model.safetensors", "config.json"},
        {"checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors", "checkpoint-500/config.json"},
    ),
    "states of a training beside a pipeline": (
        {"a/model_index.json", "a/unet/model.safetensors"},
        {"a/checkpoint-10/unet/model.safetensors", "a/checkpoint-10/random.json"},
    ),
    "only states of a training": ({"checkpoint-5/model.safetensors", "checkpoint-10/model.safetensors"}, set()),
    "versions in a name": ({"flux1-dev.safetensors", "qwen2.5-vl.safetensors", "ae.safetensors"}, set()),
}


@pytest.mark.parametrize(("kept", "left_out"), CASES.values(), ids=CASES)
def test_the_files_that_libraries_read_are_the_model(kept: set[str], left_out: set[str]) -> None:
    selection = pick(*sorted(kept | left_out))
    assert paths(selection) == kept
    notes = " ".join(selection.notes)
    assert all(path in notes for path in sorted(left_out)[:5])
    assert paths(pick(*sorted(kept))) == kept, "a plan that pins the objects must select the same"


def test_a_variant_is_loaded_where_it_is_included() -> None:
    there = ("model.safetensors", "model.fp16.safetensors", "config.json")
    assert paths(pick(*there, files=file_selection(["*.fp16.safetensors"], []))) == set(there[1:])


def test_patterns_of_one_kind_do_not_select_the_other() -> None:
    chosen = FileSelection(weights=Weights.SAFETENSORS, tensors=("a*.tensors",))
    assert paths(pick("a.tensors", "b.safetensors", files=chosen)) == {"b.safetensors"}
    only = FileSelection(tensors=("b*.safetensors",))
    assert paths(pick("a.tensors", "b.safetensors", "c.safetensors", files=only)) == {"b.safetensors"}
    with pytest.raises(TonnageError, match=r"matching \.tensors or \.safetensors file"):
        pick("b.safetensors", files=FileSelection(tensors=("a*.tensors",)))


def test_an_index_decides_which_files_of_its_folder_belong() -> None:
    selection = pick(*SHARDS, INDEX, "model.safetensors", "adapter/adapter_model.safetensors")
    assert [each.path for each in selection.indexes] == [INDEX]
    found = apply(selection, {INDEX: index_of(*SHARDS)})
    assert paths(found) == {*SHARDS, INDEX, "adapter/adapter_model.safetensors"}
    assert any("the index beside them doesn't list them: model.safetensors" in note for note in found.notes)


def test_an_adapter_beside_an_index_is_found_by_its_name() -> None:
    selection = pick(*SHARDS, INDEX, "adapter_model.safetensors", "mtp.safetensors")
    assert paths(apply(selection, {INDEX: index_of(*SHARDS)})) == {*SHARDS, INDEX, "adapter_model.safetensors"}


SNAPSHOT = "models--org--m/snapshots/" + "a" * 40


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ({"a/config.json", "a/model.safetensors", "b/config.json", "b/x/model.safetensors"}, ["a/", "b/"]),
        ({"a/config.json", "a/model.tensors"}, ["a/"]),
        ({f"{SNAPSHOT}/config.json", f"{SNAPSHOT}/model.safetensors", "models--org--m/refs/x.json"}, [f"{SNAPSHOT}/"]),
        ({"a/model_index.json", "a/unet/config.json", "a/unet/model.safetensors"}, ["a/"]),
        ({"model_index.json", "unet/config.json", "unet/model.safetensors"}, []),
        ({"config.json", "a/config.json", "a/model.safetensors"}, []),
        ({"model.safetensors", "a/config.json", "a/model.safetensors"}, []),
        ({"weights/a.safetensors", "weights/b.safetensors", "tokenizer/config.json"}, []),
    ],
)
def test_models_below_a_folder_that_is_none_are_noted(there: set[str], named: list[str]) -> None:
    notes = [note for note in pick(*sorted(there)).notes if "engines look" in note]
    assert [re.findall(r"[\w/-]+/(?=,| and not)", note) for note in notes] == ([named] if named else [])


@pytest.mark.parametrize(
    "name", ["model-00003-of-00003.safetensors", "../x.safetensors", "/etc/passwd", "a\x1b[31m", ""]
)
def test_an_index_that_lists_a_file_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ObjectNotFound, match=r"index\.json lists '") as caught:
        apply(pick(*SHARDS, INDEX), {INDEX: index_of(*SHARDS, name)})
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    "listed", [("consolidated.safetensors",), (*SHARDS, "consolidated.safetensors"), ("model.fp16.safetensors",)]
)
def test_an_index_decides_also_about_files_with_the_names_of_copies(listed: tuple[str, ...]) -> None:
    """transformers reads what the index lists, whatever it is called."""
    there = {*SHARDS, "model.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "config.json"}
    found = pick_by_index(index_of(*listed), *sorted(there))
    assert paths(found) == {INDEX, "config.json", *listed}
    assert not any(name in note for note in found.notes for name in listed)
    keys = [(path, path) for path in sorted(paths(found))]
    again = select(keys, FileSelection(), where=WHERE, listed=paths(found))
    assert paths(again) == paths(found), "a plan that pins the objects must select the same"


@pytest.mark.parametrize("there", [("original/model.safetensors", "model.safetensors"), ("a.bin", "model.safetensors")])
def test_an_index_cannot_list_files_of_other_folders_or_formats(there: tuple[str, ...]) -> None:
    with pytest.raises(ObjectNotFound, match="which is not there or left out by the patterns"):
        pick_by_index(index_of(there[0].replace("original", "../original")), *there)


def test_an_index_beside_files_of_ranks_is_left_out_if_it_is_that_of_the_whole_checkpoint() -> None:
    """vLLM's script for sharded_state copies it there; its loader does not read it, and others would look for files."""
    ranks = [f"model-rank-{rank}-part-0.safetensors" for rank in (0, 1)]
    found = pick_by_index(index_of(*SHARDS), *ranks)
    assert paths(found) == {*ranks}
    assert f"{INDEX} was left out: it lists none of the files beside it." in found.notes
    with pytest.raises(ObjectNotFound):
        pick_by_index(index_of(*SHARDS, ranks[0]), *ranks)


def test_an_index_lists_files_in_folders_below_it() -> None:
    """transformers reads them there."""
    found = pick_by_index(index_of("weights/a.safetensors", "weights/b.safetensors"), "weights/a.safetensors",
                          "weights/b.safetensors", "config.json")  # fmt: skip
    assert paths(found) == {INDEX, "weights/a.safetensors", "weights/b.safetensors", "config.json"}
    with pytest.raises(ObjectNotFound, match=r"lists 'weights/b\.safetensors', which is not there"):
        pick_by_index(index_of("weights/a.safetensors", "weights/b.safetensors"), "weights/a.safetensors")


def test_an_index_beside_no_weights_is_left_out() -> None:
    selection = pick("a/model.safetensors", "b/model.safetensors.index.json")
    found = apply(selection, {"b/model.safetensors.index.json": index_of("x")})
    assert paths(found) == {"a/model.safetensors"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b"\xff",
        b"\xef\xbb\xbf" + index_of("model.safetensors"),
        b"[" * 100_000,
        b"{" + b'"a":' * 3_000_000,
    ],
    ids=range(10),
)
def test_what_is_not_an_index_is_refused(content: bytes) -> None:
    with pytest.raises(FormatDamaged, match="index of safetensors files"):
        listed_files(content, label="i")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_an_index_or_refused(content: bytes) -> None:
    with contextlib.suppress(FormatDamaged):
        assert isinstance(listed_files(content, label="i"), frozenset)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (SHARDS[:1], True),
        (SHARDS, False),
        (("model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"), False),
        (("model.fp16-00001-of-00002.safetensors",), True),
        (("model-1-of-3.safetensors", "model-2-of-3.safetensors"), True),
        (("a.safetensors", "b-1.safetensors"), False),
    ],
)
def test_missing_files_of_a_numbered_set_are_noticed_without_an_index(names: tuple[str, ...], *, missing: bool) -> None:
    if missing:
        with pytest.raises(ObjectNotFound, match=r"is one of \d files by its name, but only"):
            check_shards(pick(*names), where=WHERE)
    else:
        check_shards(pick(*names), where=WHERE)


def test_ranks_may_have_several_files_and_their_pattern_may_be_given() -> None:
    names = [f"model-rank-{rank}-part-{part}.safetensors" for rank in (0, 1) for part in (0, 1)]
    assert {each.path: each.rank for each in pick(*names).objects} == dict(zip(names, (0, 0, 1, 1), strict=True))
    ranks = RankSelection(pattern="r%d.*.safetensors", count=1)
    assert [each.rank for each in pick("r0.a.safetensors", files=FileSelection(ranks=ranks)).objects] == [0]
    one = RankSelection(pattern="r%d.safetensors")
    with pytest.raises(NameCollision, match="both rank 0"):
        pick("a/r0.safetensors", "b/r0.safetensors", files=FileSelection(ranks=one))
    with pytest.raises(ObjectNotFound, match=r"rank 2 of 3 is missing \(file names: model-rank-%d-part"):
        pick(*names, files=FileSelection(ranks=RankSelection(count=3)))
    with pytest.raises(InvalidPlan, match="exactly one integer field"):
        pick("a.safetensors", files=FileSelection(ranks=RankSelection(pattern="a.safetensors")))


PATHS = st.lists(
    st.tuples(
        st.sampled_from(["", "original/", "unet/", "a/unet/"]),
        st.sampled_from(
            [
                "model.safetensors",
                "model.fp16.safetensors",
                "consolidated.safetensors",
                *SHARDS,
                INDEX,
                "model_index.json",
                "x.tensors",
                "config.json",
                "pytorch_model.bin.index.json",
                "model.safetensors.index.fp16.json",
            ]
        ),
    ).map("".join),
    unique=True,
    min_size=1,
)


@given(PATHS)
def test_selecting_what_was_selected_selects_all_of_it(there: list[str]) -> None:
    """A load of pinned objects selects by the same rules, from the pinned objects alone."""
    try:
        found = paths(pick(*there))
    except TonnageError:
        return
    assert paths(pick(*sorted(found))) == found
    assert all(posixpath.normpath(path) == path for path in found)
