"""The real tensorizer reads what the tests' writer writes, so both readers are tested with the same format."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import pytest
import torch
from tensorizer import DecryptionParams, TensorDeserializer

from support.tensors_corpus import random_bits, write_tensors_file
from support.tensors_reader import read_tensors
from support.tensors_writer import raw_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from support.tensors_corpus import CorpusFile


class Options(TypedDict, total=False):
    """Options of the tests' writer."""

    version: int
    hashes: tuple[str, ...]
    index_length: int


SOME = {
    "a": random_bits(torch.float32, 3, 5),
    "b": random_bits(torch.bfloat16, 7),
    "c": torch.tensor(3),
    "d": random_bits(torch.bool, 9),
}
MANY = {f"layers.{number}.experts.weight": torch.tensor([float(number)]) for number in range(6000)}


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        pytest.param(SOME, {}, id="as tensorizer"),
        pytest.param(SOME, {"index_length": 0}, id="no slack"),
        pytest.param(SOME, {"version": 5}, id="tagged"),
        pytest.param(SOME, {"hashes": ()}, id="no hashes"),
        pytest.param(SOME, {"hashes": ("sha256",)}, id="one hash"),
        pytest.param(SOME, {"hashes": ("sha256", "crc32")}, id="hashes in the other order"),
        pytest.param(MANY, {}, id="a longer index"),
    ],
)
def test_tensorizer_reads_what_the_tests_writer_writes(
    tensors: dict[str, torch.Tensor], options: Options, tmp_path: Path
) -> None:
    path = tmp_path / "own.tensors"
    write_tensors_file(path, dict(tensors.items()), **options)  # the keys' type is invariant
    with TensorDeserializer(str(path), device="cpu", num_readers=1, verify_hash=True) as theirs:
        ours = read_tensors(path.read_bytes())
        assert list(theirs.keys()) == [tensor.entry.name for tensor in ours.values()] == list(tensors)
        for name in list(tensors)[:50]:
            assert theirs[name].dtype == tensors[name].dtype
            assert raw_bytes(theirs[name]) == ours[name,].data == raw_bytes(tensors[name])


@pytest.mark.parametrize("name", ["module-bfloat16", "mixed-large", "meta", "encrypted-meta", "dtypes-other"])
def test_tensorizer_opens_the_corpus(name: str, corpus: dict[str, CorpusFile]) -> None:
    file = corpus[name]
    assert file.opens_in_tensorizer
    encryption = DecryptionParams.from_key(file.key) if file.key is not None else None
    with TensorDeserializer(
        str(file.path), device="cpu", num_readers=1, verify_hash=True, encryption=encryption
    ) as theirs:
        for (path,), tensor in file.tensors.items():
            stored = theirs[path]
            assert (stored.dtype, stored.shape) == (tensor.dtype, tensor.shape)
            assert raw_bytes(stored) == (bytes(tensor.nbytes) if tensor.is_meta else raw_bytes(tensor))


@pytest.mark.parametrize("name", ["meta-bfloat16", "empty-bfloat16"])
def test_we_can_open_files_that_tensorizer_writes_but_cannot_open(name: str, corpus: dict[str, CorpusFile]) -> None:
    file = corpus[name]
    assert not file.opens_in_tensorizer
    with pytest.raises(TypeError):
        TensorDeserializer(str(file.path), device="cpu", num_readers=1)
    assert list(read_tensors(file.path.read_bytes())) == list(file.tensors)
