from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.repository import ROOT
from tonnage_operator.api import crd
from tonnage_operator.api.modelweights import ModelWeightsSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from _fields(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _fields(schema[key], f"{path}[]")


@pytest.mark.parametrize("name", sorted(crd.files()))
def test_the_committed_file_matches_the_models(name: str) -> None:
    assert (ROOT / "crds" / name).read_text() == crd.files()[name], "run: tonnage-operator crd --output crds"


def test_there_is_no_other_crd_file() -> None:
    assert {path.name for path in (ROOT / "crds").iterdir()} == set(crd.files())


@pytest.mark.parametrize("name", sorted(crd.files()))
def test_every_field_has_a_description(name: str) -> None:
    schema = crd.definitions()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    silent = [path for path, child in _fields(schema, "") if path != ".metadata" and not child.get("description")]
    assert not silent
    unfinished = [path for path, child in _fields(schema, "") if child.get("description", "x.")[-1] not in ".)"]
    assert not unfinished


def test_a_spec_needs_only_a_source() -> None:
    spec = ModelWeightsSpec.model_validate({"source": {"s3": {"bucket": "models", "prefix": "a/"}}})
    assert spec.placement.max_concurrent_nodes == 4
    assert spec.files.tensors == ("*.tensors",)


def test_a_field_of_a_newer_schema_is_ignored() -> None:
    spec = ModelWeightsSpec.model_validate({"source": {"s3": {"bucket": "models", "prefix": ""}}, "later": {"a": 1}})
    assert spec.source.s3 is not None
