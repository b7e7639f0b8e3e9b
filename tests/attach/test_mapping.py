"""Weights as a mapping, and state dicts on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch

from tonnage.attach import DeviceMemoryShort, KeyNotFound, open_weights
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from pathlib import Path

    from support.attach_fixture_types import TensorsEqual
    from support.tensors_corpus import CorpusFile


@pytest.fixture(params=["safetensors", "tensors"])
def path(request: pytest.FixtureRequest, shard: Path, tensors_file: Path) -> Path:
    return shard if request.param == "safetensors" else tensors_file


def test_it_is_a_mapping(path: Path, tensors: dict[str, torch.Tensor], tensors_equal: TensorsEqual) -> None:
    with open_weights(path) as weights:
        assert isinstance(weights, Mapping)
        assert set(weights.keys()) == set(tensors)
        assert len(weights) == len(tensors)
        assert "embed" in weights
        assert "other" not in weights
        assert weights.get("other") is None
        assert all(tensors_equal(tensor, tensors[name]) for name, tensor in weights.items())
        assert weights.nbytes == sum(tensor.nbytes for tensor in tensors.values())
        assert str(path) in repr(weights)


def test_tensors_are_views_of_one_mapping(path: Path) -> None:
    with open_weights(path) as weights:
        assert weights["embed"].data_ptr() == weights["embed"].data_ptr()
        assert weights["embed"].data_ptr() == weights.state_dict()["embed"].data_ptr()


def test_writing_to_a_view_changes_neither_the_file_nor_other_views(
    path: Path, tensors: dict[str, torch.Tensor], tensors_equal: TensorsEqual
) -> None:
    before = path.read_bytes()
    with open_weights(path) as weights, open_weights(path) as others:
        weights["embed"].zero_()
        assert weights["embed"].count_nonzero() == 0
        assert tensors_equal(others["embed"], tensors["embed"])
    assert path.read_bytes() == before


def test_a_key_that_is_not_there_is_a_key_error_with_the_nearest_names(path: Path) -> None:
    with open_weights(path) as weights:
        with pytest.raises(KeyNotFound, match=r"'layers\.3\.wieght' \(nearest: 'layers\.3\.weight'") as caught:
            weights["layers.3.wieght"]
        assert isinstance(caught.value, KeyError)
        with pytest.raises(KeyNotFound, match="has no tensor 5"):
            weights[5]  # type: ignore[index]
        with pytest.raises(KeyNotFound, match=r"'x', 'y'"):
            weights.state_dict(keys=["embed", "x", "y"])


def test_a_subset_by_names_or_by_filter(path: Path) -> None:
    with open_weights(path) as weights:
        assert list(weights.state_dict(keys=["scale", "embed", "scale"])) == ["scale", "embed"]
        assert set(weights.state_dict(filter=lambda name: name.endswith(".bias"))) == {
            f"layers.{n}.bias" for n in range(8)
        }
        assert list(weights.state_dict(keys=["scale", "embed"], filter=lambda name: name != "scale")) == ["embed"]
        assert weights.state_dict(keys=[]) == {}
        with pytest.raises(InvalidPlan, match="one string"):
            weights.state_dict(keys="embed")


def test_only_ordinary_floats_are_converted(
    path: Path, tensors: dict[str, torch.Tensor], tensors_equal: TensorsEqual
) -> None:
    with open_weights(path) as weights:
        found = weights.state_dict(dtype=torch.bfloat16)
    for name, tensor in tensors.items():
        changes = tensor.dtype in {torch.float16, torch.float32, torch.float64, torch.bfloat16}
        assert tensors_equal(found[name], tensor.to(torch.bfloat16) if changes else tensor), name


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "bfloat16"])
def test_conversion_to_a_dtype_that_is_not_floating_is_refused(path: Path, dtype: torch.dtype | str) -> None:
    with open_weights(path) as weights, pytest.raises(InvalidPlan, match="not a floating type"):
        weights.state_dict(dtype=dtype)  # type: ignore[arg-type]


def test_the_meta_device_gives_shapes_without_data(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with open_weights(path) as weights:
        found = weights.state_dict("meta", dtype=torch.float16)
    assert all(tensor.is_meta and tensor.shape == tensors[name].shape for name, tensor in found.items())
    assert found["embed"].dtype == torch.float16


def test_meta_tensors_are_zeros_or_stay_on_the_meta_device(corpus: dict[str, CorpusFile]) -> None:
    path = corpus["meta-bfloat16"].path
    with open_weights(path) as weights:
        assert weights["absent"].dtype == torch.bfloat16
        assert weights["absent"].tolist() == torch.zeros(3, 4).tolist()
    with open_weights(path, meta_tensors="meta") as weights:
        assert weights["absent"].is_meta
        assert weights["absent"].shape == (3, 4)


def test_zeros_of_a_huge_meta_tensor_use_no_memory_until_they_are_accessed(corpus: dict[str, CorpusFile]) -> None:
    with open_weights(corpus["long"].path) as weights:
        assert weights["long"].shape == ((1 << 32) + 5,)
        assert weights["long"][-1] == 0


def test_zeros_that_no_machine_can_hold_are_refused(corpus: dict[str, CorpusFile]) -> None:
    with open_weights(corpus["meta"].path) as weights:
        record = weights.records["absent"]._replace(shape=(1 << 60,))
        weights._records["absent"] = record
        with pytest.raises(DeviceMemoryShort, match="bytes of zeros can't be allocated"):
            weights["absent"]


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_progress_on_the_cpu_ends_at_the_total(path: Path, dtype: torch.dtype | None) -> None:
    seen: list[tuple[int, int]] = []
    with open_weights(path) as weights:
        weights.state_dict(dtype=dtype, progress=lambda done, total: seen.append((done, total)))
        assert seen == sorted(seen)
        assert len(seen) > 3
        assert {total for _, total in seen} == {weights.nbytes}
        assert seen[-1] == (weights.nbytes, weights.nbytes)


@pytest.mark.parametrize("progress", ["bar", 5, None])
def test_an_invalid_progress_is_refused(shard: Path, progress: str | int | None) -> None:
    with open_weights(shard) as weights, pytest.raises(InvalidPlan, match='neither "auto" nor "off"'):
        weights.state_dict(progress=progress)  # type: ignore[arg-type]


def test_metadata_comes_from_the_header(shard: Path) -> None:
    with open_weights(shard) as weights:
        assert weights.metadata["format"] == "pt"


def test_tensor_infos_are_read_without_touching_the_data(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with open_weights(path) as weights:
        record = weights.records["embed"]
        assert (record.shape, record.dtype, record.length) == ((1003, 101), "float32", tensors["embed"].nbytes)


def test_a_dtype_that_this_torch_lacks_is_named(shard: Path) -> None:
    with open_weights(shard) as weights:
        weights._records["embed"] = weights.records["embed"]._replace(dtype="float2_nice")
        with pytest.raises(Exception, match=r"'embed' has the dtype float2_nice .* does not have"):
            weights["embed"]
