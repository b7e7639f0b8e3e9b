"""Nested names of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.attach import open_weights
from tonnage.attach.unflatten import unflatten
from tonnage.errors import FormatDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from support.attach_fixture_types import MakeEntry
    from support.tensors_corpus import CorpusFile, TensorPath

    Tree = int | list["Tree"] | dict[str, "Tree"]

trees = st.recursive(
    st.integers(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4) | st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=4)
    ),
    max_leaves=20,
).filter(lambda tree: not isinstance(tree, int))


def flatten(tree: Tree, path: TensorPath = ()) -> dict[TensorPath, int]:
    if isinstance(tree, int):
        return {path: tree}
    items: Iterable[tuple[str | int, Tree]] = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for step, child in items for key, value in flatten(child, (*path, step)).items()}


@given(trees)
@settings(deadline=None, max_examples=100)
def test_nesting_undoes_flattening(tree: Tree) -> None:
    assert unflatten(flatten(tree)) == tree


def test_a_part_keeps_positions_in_lists() -> None:
    every = [("a", 0, "w"), ("a", 1, "w"), ("b", "x"), ("c", 0)]
    assert unflatten({("a", 1, "w"): 5}, all_paths=every) == {"a": [None, {"w": 5}]}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([("a",), ("a", "b")], "continues below another tensor"),
        ([("a", "b"), ("a",)], "both a tensor and a collection"),
        ([("a", "b"), ("a", 0)], "has both names and list positions"),
        ([("a", 10**12)], "not numbered from 0"),
    ],
)
def test_names_that_do_not_form_a_tree_are_refused(paths: list[TensorPath], message: str) -> None:
    with pytest.raises(FormatDamaged, match=message):
        unflatten(dict.fromkeys(paths, 1))


@pytest.mark.parametrize("name", ["nested", "list", "unicode-nested"])
def test_weights_nest_as_they_were(corpus: dict[str, CorpusFile], make_entry: MakeEntry, name: str) -> None:
    file = corpus[name]
    for path in (file.path, make_entry([file.path]).path):
        with open_weights(path) as weights:
            tree = weights.nested()
            for keys, tensor in file.tensors.items():
                node = tree
                for key in keys:
                    if isinstance(key, int):
                        assert isinstance(node, list)
                        node = node[key]
                    else:
                        assert isinstance(node, dict)
                        node = node[key]
                assert node.tolist() == tensor.tolist()


def test_flat_names_nest_to_one_dict(shard: Path) -> None:
    with open_weights(shard) as weights:
        assert weights.state_dict(nested=True).keys() == weights.state_dict().keys()
