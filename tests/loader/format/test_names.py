"""Names, flat names, and name collisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.tensors_damage import F32
from support.tensors_reader import read_index
from support.tensors_writer import RawTensor, build_tensors_file
from tonnage.errors import FormatDamaged, NameCollision
from tonnage.format.tensor_names import check_flat_names, flat_name, parse_name, short_repr

if TYPE_CHECKING:
    from tonnage.format.tensors_index import TensorEntry


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (("a.b",), 0, "a.b"),
        ((".scale",), 0, "scale"),
        ((".mean",), 1, "mean"),
        (("..odd",), 0, ".odd"),
        ((".scale",), 2, ".scale"),
        ((".",), 0, "."),
        (("a", 0, "b"), 2, "a.0.b"),
        ((3,), 2, "3"),
        (("", "x"), 2, ".x"),
    ],
)
def test_a_flat_name_is_the_name_that_engines_use(path: tuple[str | int, ...], kind: int, name: str) -> None:
    assert flat_name(path, kind) == name


def test_only_entries_of_state_dicts_are_nested() -> None:
    assert parse_name(b'\x1e["a",1]', 2, where="x") == ("a", 1)
    with pytest.raises(FormatDamaged, match="in state dicts only"):
        parse_name(b'\x1e["a",1]', 0, where="x")


def test_long_and_unusual_names_are_truncated_and_escaped_in_error_texts() -> None:
    assert short_repr("n" * 65_535) == repr("n" * 100) + "… (65535 characters)"
    assert short_repr(b"\xff\0\n") == r"'\\xff\x00\n'"


def _tensors(*names: bytes) -> tuple[TensorEntry, ...]:
    return read_index(bytes(build_tensors_file([RawTensor(name, F32, (), b"abcd") for name in names]).data)).tensors


def test_two_paths_with_the_same_flat_name_are_rejected() -> None:
    tensors = _tensors(b'\x1e["a","b"]', b"a.b")
    with pytest.raises(NameCollision) as caught:
        check_flat_names(tensors, label="s3://b/k")
    assert '["a","b"]' in str(caught.value)
    assert "'a.b'" in str(caught.value)
    assert "s3://b/k" in str(caught.value)


def test_the_reserved_name_of_safetensors_is_rejected() -> None:
    with pytest.raises(NameCollision, match="__metadata__"):
        check_flat_names(_tensors(b"a", b"__metadata__"), label="s3://b/k")


def test_the_same_name_in_two_objects_is_rejected_with_both_objects() -> None:
    seen: dict[str, str] = {}
    check_flat_names(_tensors(b"a", b"b"), label="one", seen=seen)
    with pytest.raises(NameCollision, match="'b' is in one and in two"):
        check_flat_names(_tensors(b"c", b"b"), label="two", seen=seen)
    assert seen == {"a": "one", "b": "one"}
