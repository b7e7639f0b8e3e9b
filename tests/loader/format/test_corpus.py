"""Files of the real tensorizer are read as they were written: names, dtypes, shapes, bytes and hashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from support.tensors_corpus import stored_dtype
from support.tensors_decrypt import make_decrypt
from support.tensors_reader import read_index, read_tensors
from support.tensors_writer import raw_bytes
from tonnage.errors import NameCollision
from tonnage.format.dtypes import parse_dtype
from tonnage.format.tensor_header import HashType
from tonnage.format.tensor_names import check_flat_names
from tonnage.format.tensors_index import TYPICAL_HEAD_BYTES

if TYPE_CHECKING:
    from support.tensors_corpus import CorpusFile

FILES = [
    "module-float32", "module-float16", "module-bfloat16", "module-meta-marker", "state-dict", "dtypes-safetensors",
    "dtypes-other", "one-float32", "one-bfloat16", "scalar", "strided", "empty", "empty-bfloat16",
    "many-dimensions", "meta", "meta-bfloat16", "long", "nested", "list", "colliding", "reserved", "unicode",
    "unicode-nested", "longest-name", "encrypted-module", "encrypted-pieces", "encrypted-meta", "encrypted-long",
    "many", "mixed-large",
]  # fmt: skip


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, corpus: dict[str, CorpusFile]) -> CorpusFile:
    """Each file."""
    return corpus[request.param]


def test_the_list_above_is_the_whole_corpus(corpus: dict[str, CorpusFile]) -> None:
    assert sorted(FILES) == sorted(corpus)


def test_the_index_has_the_names_dtypes_and_shapes_that_were_written(file: CorpusFile) -> None:
    index = read_index(file.path.read_bytes())
    assert [entry.path for entry in index.tensors] == list(file.tensors)
    for entry in index.tensors:
        tensor = file.tensors[entry.path]
        assert entry.shape == tuple(tensor.shape)
        assert getattr(torch, entry.dtype.torch_name) is tensor.dtype
        assert entry.dtype.item_size == tensor.element_size()
        assert entry.kind == file.kinds[entry.path]
        assert entry.name == file.flat_names[entry.path]
        assert entry.is_meta == (tensor.is_meta and tensor.numel() > 0)
        assert (0 in entry.shape) == (tensor.numel() == 0)
        assert entry.nbytes == tensor.numel() * tensor.element_size()


def test_the_preamble_has_the_version_and_flags_of_the_file(file: CorpusFile) -> None:
    data = file.path.read_bytes()
    index = read_index(data)
    assert index.preamble.version == file.version
    assert index.preamble.encrypted == file.encrypted
    assert index.preamble.tagged == (file.version == 5)
    assert index.preamble.body_offset == TYPICAL_HEAD_BYTES
    assert index.body_end == len(data)


def test_every_hash_of_every_tensor_holds_and_the_bytes_are_those_written(file: CorpusFile) -> None:
    data = file.path.read_bytes()
    decrypt = make_decrypt(data, file.key) if file.key is not None else None
    found = read_tensors(data, decrypt=decrypt)
    for path, (entry, header, contents) in found.items():
        sealed = file.encrypted and entry.length > 0
        assert set(header.hashes) == ({HashType.SHA256} if sealed else {HashType.CRC32, HashType.SHA256})
        assert header.module_index == file.module_indexes.get(path, 0)
        if not file.encrypted:
            assert contents == raw_bytes(file.tensors[path])


def test_dtypes_are_stored_as_the_tests_writer_stores_them(corpus: dict[str, CorpusFile]) -> None:
    for name in ("dtypes-safetensors", "dtypes-other"):
        for entry in read_index(corpus[name].path.read_bytes()).tensors:
            stored = stored_dtype(corpus[name].tensors[entry.path].dtype)
            assert parse_dtype(stored, where="x") == entry.dtype
            assert (entry.dtype.safetensors_name is not None) == (name == "dtypes-safetensors")


def test_flat_names_are_those_of_the_module_s_state_dict(corpus: dict[str, CorpusFile]) -> None:
    as_module = read_index(corpus["module-float32"].path.read_bytes())
    as_state_dict = read_index(corpus["state-dict"].path.read_bytes())
    persistent = [entry.name for entry in as_module.tensors if entry.name != "scratch"]
    assert sorted(persistent) == sorted(entry.name for entry in as_state_dict.tensors)


def test_files_for_the_safetensors_layout_have_no_colliding_names(file: CorpusFile) -> None:
    tensors = read_index(file.path.read_bytes()).tensors
    if file.name in {"colliding", "reserved"}:
        with pytest.raises(NameCollision):
            check_flat_names(tensors, label=file.name)
    else:
        check_flat_names(tensors, label=file.name)
