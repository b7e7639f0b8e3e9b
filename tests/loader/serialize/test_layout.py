from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.errors import FormatUnsupported, NameCollision
from tonnage.serialize.layout import INDEX_BYTES, TensorSpec, check_distinct, divide, group_path

SPECS = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(st.characters(codec="utf-8", exclude_characters="\x1e"), min_size=1, max_size=2000),
        dtype=st.sampled_from(["<f4", "<V2\0torch.bfloat16", "|V1\0torch.float8_e4m3fn"]),
        dimensions=st.integers(0, 60),
        length=st.integers(0, 10_000),
    ),
    min_size=1,
    max_size=400,
    unique_by=lambda spec: spec.name,
)


@given(SPECS, st.integers(0, 20_000))
def test_files_have_all_tensors_in_order_and_each_fits_into_index_and_size(
    specs: list[TensorSpec], file_size: int
) -> None:
    files = divide("model.tensors", specs, file_size=file_size)
    assert [name for file in files for name in file.tensors] == [spec.name for spec in specs]
    by_name = {spec.name: spec for spec in specs}
    for file in files:
        found = [by_name[name] for name in file.tensors]
        assert sum(spec.index_bytes for spec in found) <= INDEX_BYTES
        assert not file_size or len(found) == 1 or sum(spec.length for spec in found) <= file_size
    check_distinct(file.path for file in files)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.safetensors", "model.tensors"),
        ("model-00002-of-00030.safetensors", "model.tensors"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.tensors"),
        ("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.fp16.tensors"),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "diffusion_pytorch_model.fp16.tensors"),
        ("adapter_model.safetensors", "adapter_model.tensors"),
        ("model-rank-11-part-0.safetensors", "model-rank-011.tensors"),
        ("model-rank-11-part-3.safetensors", "model-rank-011.tensors"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model.tensors"),
        ("weights.v2.pt", "weights.v2.tensors"),
    ],
)
def test_shards_and_parts_become_one_file_of_their_stem(path: str, expected: str) -> None:
    assert group_path(path) == expected


@pytest.mark.parametrize("name", ["", '\x1e["a"]', "a" * 65536])
def test_a_name_that_tensorizer_can_not_read_back_is_refused(name: str) -> None:
    with pytest.raises(NameCollision):
        divide("model.tensors", [TensorSpec(name, "<f4", 1, 4)])


def test_a_rank_that_needs_two_files_is_refused_because_its_reader_expects_one() -> None:
    specs = [TensorSpec(name, "<f4", 1, 4) for name in "ab"]
    with pytest.raises(FormatUnsupported, match="a rank is one file"):
        divide("model-rank-000.tensors", specs, file_size=4)


def test_two_files_of_one_name_and_a_file_without_tensors_are_refused() -> None:
    with pytest.raises(NameCollision, match=r"Two files would become a\.tensors"):
        check_distinct(["a.tensors", "b.json", "a.tensors"])
    with pytest.raises(FormatUnsupported, match="no tensors"):
        divide("model.tensors", [])
