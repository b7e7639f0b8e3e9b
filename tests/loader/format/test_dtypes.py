"""The table of dtypes, against torch and the real safetensors library."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.tensors_corpus import SAFETENSORS_DTYPES, all_dtypes, random_bits
from support.tensors_writer import NUMPY_DTYPES, raw_bytes, stored_dtype
from tonnage.errors import FormatUnsupported
from tonnage.format.dtypes import DTYPES, Dtype, dtype_from_safetensors, parse_dtype

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = [pytest.param(dtype, id=dtype.torch_name) for dtype in DTYPES]
IN_SAFETENSORS = [pytest.param(dtype, id=dtype.torch_name) for dtype in DTYPES if dtype.safetensors_name]


@pytest.mark.parametrize("dtype", KNOWN)
def test_torch_has_each_dtype_with_this_size_and_spelling(dtype: Dtype) -> None:
    real = getattr(torch, dtype.torch_name)
    assert real.itemsize == dtype.item_size
    assert stored_dtype(real).decode() == dtype.stored_name
    assert parse_dtype(dtype.stored_name.encode(), where="x") is dtype


def test_the_table_has_every_dtype_that_torch_has_and_tensorizer_writes() -> None:
    assert {getattr(torch, dtype.torch_name) for dtype in DTYPES} == set(all_dtypes())
    assert {getattr(torch, dtype.torch_name) for dtype in DTYPES if b"\0" not in dtype.stored_name.encode()} == set(
        NUMPY_DTYPES
    )
    assert {getattr(torch, dtype.torch_name) for dtype in DTYPES if dtype.safetensors_name} == SAFETENSORS_DTYPES


@pytest.mark.parametrize("dtype", IN_SAFETENSORS)
def test_safetensors_writes_and_reads_each_dtype_under_this_name(dtype: Dtype, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    tensors = {
        "w": random_bits(getattr(torch, dtype.torch_name), 3, 5),
        "s": random_bits(getattr(torch, dtype.torch_name)),
    }
    save_file(tensors, path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for name, tensor in tensors.items():
        assert header[name]["dtype"] == dtype.safetensors_name
        assert header[name]["shape"] == list(tensor.shape)
        found = load_file(path)[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert raw_bytes(found) == raw_bytes(tensor)
    assert dtype.safetensors_name is not None
    assert dtype_from_safetensors(dtype.safetensors_name, where="x") is dtype


def test_safetensors_states_another_shape_for_pairs_of_four_bit_floats(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"w": random_bits(torch.float4_e2m1fn_x2, 2, 4)}, path)
    with safe_open(path, "pt") as file:
        assert file.get_slice("w").get_shape() == [2, 8]


def test_a_dtype_of_a_later_torch_is_kept_but_has_no_safetensors_name() -> None:
    dtype = parse_dtype(b"|V1\0torch.float6_e2m3", where="x")
    assert (dtype.item_size, dtype.torch_name, dtype.safetensors_name) == (1, "float6_e2m3", None)
    assert dtype.stored_name == "|V1\0torch.float6_e2m3"
    assert parse_dtype(b"<V16\0torch.float128", where="x").item_size == 16


@pytest.mark.parametrize("stored", [b"<V2\0torch.float8_e5m2", b"|V4\0torch.new", b"<V1\0torch.new", b"<f16", b"|V8"])
def test_an_unknown_dtype_is_refused_by_name(stored: bytes) -> None:
    with pytest.raises(FormatUnsupported, match=r"^s3://b/k, tensor 'w': the dtype '") as caught:
        parse_dtype(stored, where="s3://b/k, tensor 'w'")
    assert stored.decode().replace("\0", " ") in str(caught.value)


@pytest.mark.parametrize("name", ["F6_E2M3", "C128", ""])
def test_a_safetensors_dtype_that_pytorch_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(FormatUnsupported, match=f"'{name}'"):
        dtype_from_safetensors(name, where="x")
