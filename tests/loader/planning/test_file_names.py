"""The stem of a file is kept where a reader depends on it; all others become the name that any engine reads."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.planning.file_names import (
    Stem,
    is_beside_the_model,
    rank_computed_buffers,
    rank_shard,
    rank_tied_weights,
    source_stem,
)

KEPT = ["adapter_model", "consolidated", "diffusion_pytorch_model", "learned_embeds", "pytorch_lora_weights"]
names = st.text(alphabet="abz_0", min_size=1, max_size=6)
folders = st.sampled_from(["", "unet/", "a/b/"])


@pytest.mark.parametrize("stem", KEPT)
@given(folder=folders)
def test_stems_that_readers_look_for_are_kept_in_any_folder(stem: str, folder: str) -> None:
    path = f"{folder}{stem}.tensors"
    assert source_stem(path, {path, f"{folder}config.json"}).shard(0, 1) == f"{stem}.safetensors"
    assert source_stem(f"{folder}{stem}-00001-of-00002.tensors", {path}).name == stem


@given(folder=folders, name=names)
def test_other_stems_become_the_name_that_any_engine_reads(folder: str, name: str) -> None:
    path = f"{folder}{name}.tensors"
    assert source_stem(path, {path, f"{folder}config.json"}) == Stem("model")


@given(folder=folders, name=names)
def test_any_file_of_an_adapters_folder_is_the_adapter(folder: str, name: str) -> None:
    path = f"{folder}{name}.tensors"
    paths = {path, f"{folder}adapter_config.json"}
    assert source_stem(path, paths) == Stem("adapter_model")
    assert source_stem(path, paths | {f"{folder}config.json"}) == Stem("model")
    assert source_stem(f"{folder}model.tensors", paths) == Stem("model")


@pytest.mark.parametrize(
    ("path", "others", "shard", "index"),
    [
        ("model.fp16.tensors", [], "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        (
            "model.fp16.tensors",
            ["model.tensors"],
            "model.fp16-00001-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
        ),
        (
            "text_encoder/model.fp16.tensors",
            ["model_index.json"],
            "model.fp16-00001-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
        ),
        (
            "text_encoder/pytorch_model.tensors",
            ["model_index.json"],
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
        (
            "unet/diffusion_pytorch_model.non_ema.tensors",
            [],
            "diffusion_pytorch_model.non_ema-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.non_ema.json",
        ),
        (
            "unet/diffusion_pytorch_model-00001-of-00003.fp16.tensors",
            [],
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
    ],
)
def test_variants_are_kept_where_a_reader_can_ask_for_one(path: str, others: list[str], shard: str, index: str) -> None:
    stem = source_stem(path, {path, *others})
    assert (stem.shard(0, 2), stem.index_name) == (shard, index)


@given(folder=folders, count=st.integers(1, 3), stem=st.sampled_from(KEPT), variant=st.sampled_from(["", "fp16"]))
def test_only_other_models_of_a_folder_with_an_index_are_beside_its_model(
    folder: str, count: int, stem: str, variant: str
) -> None:
    index = posixpath.join(folder, "model.safetensors.index.json")
    main, other = Stem("model"), Stem(stem, variant)
    for number in range(count):
        assert not is_beside_the_model(folder + main.shard(number, count), {index})
        for of_rank in (rank_shard(number, 0), rank_computed_buffers(number), rank_tied_weights(number)):
            assert not is_beside_the_model(folder + of_rank, {index})
        assert is_beside_the_model(folder + other.shard(number, count), {index})
        assert not is_beside_the_model(folder + other.shard(number, count), set())
    assert not is_beside_the_model(folder + main.computed_buffers, {index})
    assert is_beside_the_model(folder + other.computed_buffers, {index})
