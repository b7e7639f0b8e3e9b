"""The real readers accept our shards, and damaged shards are rejected."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from support.tensors_corpus import SAFETENSORS_DTYPES, random_bits
from support.tensors_writer import raw_bytes, stored_dtype
from tonnage.errors import (
    CacheDamaged,
    DtypeUnsupported,
    FormatDamaged,
    FormatUnsupported,
    InternalError,
    NameCollision,
    TonnageError,
)
from tonnage.format.dtypes import Dtype, dtype_from_safetensors, parse_dtype
from tonnage.format.safetensors import (
    ShardTensor,
    alignment_order,
    build_shard_header,
    parse_header,
    read_header,
    safetensors_dtype_name,
)

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = {"format": "pt"}
F32 = dtype_from_safetensors("F32", where="x")
U8 = dtype_from_safetensors("U8", where="x")


def _dtype(tensor: torch.Tensor) -> Dtype:
    return parse_dtype(stored_dtype(tensor.dtype), where="x")


def _write(path: Path, tensors: dict[str, torch.Tensor], *, align: int = 4096) -> tuple[int, ...]:
    """Writes a shard like the loader: the header, then each tensor at its offset."""
    shard = [ShardTensor(n, _dtype(t), tuple(t.shape), t.numel() * t.element_size()) for n, t in tensors.items()]
    shard = [shard[index] for index in alignment_order(shard)]
    header, offsets = build_shard_header(shard, metadata=FORMAT, align=align)
    with path.open("wb") as file:
        file.write(header)
        for tensor, offset in zip(shard, offsets, strict=True):
            file.seek(offset)
            file.write(raw_bytes(tensors[tensor.name]))
    return offsets


def _every_kind() -> dict[str, torch.Tensor]:
    tensors = {str(dtype): random_bits(dtype, 3, 5, seed=7) for dtype in sorted(SAFETENSORS_DTYPES, key=str)}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.ones(0, 3), 'odd "名" 🙂\n\0': torch.ones(1)}


def test_the_real_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = _every_kind()
    path = tmp_path / "model.safetensors"
    _write(path, tensors)
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert raw_bytes(found[name]) == raw_bytes(tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == FORMAT


def test_the_real_library_reads_a_shard_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    _write(path, tensors)
    assert set(load(path.read_bytes())) == {"a", "b"}


def test_transformers_loads_a_model_from_our_shard(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    _write(tmp_path / "model.safetensors", model.state_dict())
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_tensors_are_aligned_to_their_elements_and_the_first_to_a_page(tmp_path: Path) -> None:
    tensors = _every_kind()
    offsets = _write(tmp_path / "x", tensors)
    assert offsets[0] % 4096 == 0
    for tensor in read_header(tmp_path / "x", label="x").tensors.values():
        assert tensor.start % tensor.dtype.item_size == 0
        assert tensor.start in offsets


@pytest.mark.parametrize("align", [8, 64, 4096, 1 << 21])
def test_data_has_the_requested_alignment(align: int) -> None:
    for length in range(60, 90):
        header, (offset,) = build_shard_header([ShardTensor("n" * length, U8, (1,), 1)], metadata={}, align=align)
        assert offset == len(header)
        assert offset % align == 0
        assert int.from_bytes(header[:8], "little") == offset - 8


def test_the_order_is_stable_and_has_larger_elements_first() -> None:
    shard = [
        ShardTensor(name, dtype_from_safetensors(word, where="x"), (), 0)
        for name, word in (("a", "U8"), ("b", "F32"), ("c", "I64"), ("d", "I32"), ("e", "BOOL"), ("f", "BF16"))
    ]
    assert [shard[index].name for index in alignment_order(shard)] == ["c", "b", "d", "f", "a", "e"]


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", {})
    assert load_file(tmp_path / "x.safetensors") == {}
    assert not read_header(tmp_path / "x.safetensors", label="x").tensors


def test_an_unsupported_dtype_is_rejected_with_tensor_dtype_and_layout() -> None:
    dtype = parse_dtype(b"<V4\0torch.complex32", where="x")
    for refuse in (
        lambda: safetensors_dtype_name("rotary", dtype, label="x"),
        lambda: build_shard_header([ShardTensor("rotary", dtype, (1,), 4)], metadata={}),
    ):
        with pytest.raises(DtypeUnsupported, match=r"'rotary'.*complex32.*--layout tensorizer"):
            refuse()


def test_invalid_names_in_a_header_are_rejected() -> None:
    one = ShardTensor("w", U8, (1,), 1)
    with pytest.raises(NameCollision, match="'w'"):
        build_shard_header([one, one], metadata={})
    with pytest.raises(NameCollision, match="__metadata__"):
        build_shard_header([one._replace(name="__metadata__")], metadata={})


def test_a_header_that_is_too_large_for_readers_is_not_written() -> None:
    names = [ShardTensor(f"{number:04d}" + "n" * 65_000, U8, (0,), 0) for number in range(1600)]
    with pytest.raises(FormatUnsupported, match="--layout tensorizer"):
        build_shard_header(names, metadata={})


def test_programming_errors_are_internal_errors() -> None:
    with pytest.raises(InternalError, match="shape"):
        build_shard_header([ShardTensor("w", F32, (2,), 4)], metadata={})
    with pytest.raises(InternalError, match="misaligned"):
        build_shard_header([ShardTensor("a", U8, (1,), 1), ShardTensor("b", F32, (1,), 4)], metadata={})
    with pytest.raises(InternalError, match="aligned to 12"):
        build_shard_header([], metadata={}, align=12)


def test_we_read_what_the_real_library_writes(tmp_path: Path) -> None:
    tensors = _every_kind()
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, metadata={"dtype": "pt", "shape": "any"})
    data = path.read_bytes()
    header = read_header(path, label="theirs")
    assert header.metadata == {"dtype": "pt", "shape": "any"}
    assert set(header.tensors) == set(tensors)
    for name, tensor in tensors.items():
        found = header.tensors[name]
        assert found.shape == tuple(tensor.shape)
        assert getattr(torch, found.dtype.torch_name) is tensor.dtype
        assert data[found.start : found.end] == raw_bytes(tensor)


def test_a_header_is_read_from_a_descriptor_without_moving_it(tmp_path: Path) -> None:
    _write(tmp_path / "x", {"a": torch.ones(3)})
    with (tmp_path / "x").open("rb") as file:
        assert set(read_header(file.fileno(), label="x").tensors) == {"a"}
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A small shard."""
    path = tmp_path / "small.safetensors"
    _write(path, {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}, align=8)
    return path


def test_a_shard_truncated_at_any_byte_or_too_long_is_rejected(shard: Path) -> None:
    whole = shard.read_bytes()
    for length in range(len(whole)):
        shard.write_bytes(whole[:length])
        with pytest.raises(CacheDamaged, match=r"^small"):
            read_header(shard, label="small")
    shard.write_bytes(whole + b"\0")
    with pytest.raises(CacheDamaged, match="should have"):
        read_header(shard, label="small")


def test_a_missing_file_is_damage_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheDamaged, match="model-1 can't be opened: No such file"):
        read_header(tmp_path / "none", label="model-1")
    with pytest.raises(CacheDamaged, match="can't be read"):
        read_header(tmp_path, label="a directory")


def _row(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ([], 0),
        ({"a": 1}, 0),
        ({"a": _row(dtype="F4")}, 8),
        ({"a": _row(dtype="NEW")}, 8),
        ({"a": _row(dtype=1)}, 8),
        ({"a": _row(shape=(3,))}, 8),
        ({"a": _row(shape=(-2,))}, 8),
        ({"a": _row(shape=(-1, -2))}, 8),
        ({"a": _row(shape=(1 << 70, 0), offsets=(0, 0))}, 0),
        ({"a": _row(shape="2")}, 8),
        ({"a": _row(offsets=(4, 12))}, 12),
        ({"a": _row(offsets=(8, 0))}, 8),
        ({"a": _row(offsets=(-8, 0))}, 8),
        ({"a": _row(offsets=(0, 1 << 62))}, 8),
        ({"a": _row(offsets=(0, 8, 16))}, 8),
        ({"a": _row(), "b": _row()}, 8),
        ({"a": _row(), "b": _row(offsets=(4, 12))}, 12),
        ({"a": _row(), "b": _row(offsets=(16, 24))}, 24),
        ({"a": _row()}, 16),
        ({"a": _row()}, 7),
        ({"__metadata__": {"format": 1}}, 0),
        ({"__metadata__": "pt"}, 0),
    ],
)
def test_an_inconsistent_header_is_rejected(header: object, size: int) -> None:
    text = json.dumps(header).encode()
    with pytest.raises((FormatDamaged, FormatUnsupported), match=r"^small"):
        parse_header(text, file_size=8 + len(text) + size, label="small")


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_arbitrary_overwriting_of_the_header_raises_nothing_but_our_errors(position: int, patch: bytes) -> None:
    shard = [ShardTensor("ä", F32, (2, 2), 16), ShardTensor("b", U8, (3,), 3)]
    header = bytearray(build_shard_header(shard, metadata=FORMAT, align=8)[0][8:])
    position %= len(header)
    header[position : position + len(patch)] = patch
    with contextlib.suppress(TonnageError):
        parse_header(bytes(header), file_size=8 + len(header) + 19, label="x")


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.just(b"[" * 100_000))
def test_arbitrary_headers_raise_nothing_but_our_errors(text: bytes) -> None:
    with contextlib.suppress(TonnageError):
        parse_header(text, file_size=8 + len(text), label="x")


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter("__metadata__".__ne__),
        st.tuples(st.sampled_from(sorted(SAFETENSORS_DTYPES, key=str)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=8,
    )
)
def test_we_and_the_real_library_read_the_same_from_any_shard(
    tmp_path_factory: pytest.TempPathFactory, described: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("shard") / "x.safetensors"
    tensors = {name: random_bits(dtype, *shape) for name, (dtype, shape) in described.items()}
    _write(path, tensors)
    ours, theirs = read_header(path, label="x"), load_file(path)
    data = path.read_bytes()
    assert set(ours.tensors) == set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        found = ours.tensors[name]
        assert data[found.start : found.end] == raw_bytes(tensor) == raw_bytes(theirs[name])
