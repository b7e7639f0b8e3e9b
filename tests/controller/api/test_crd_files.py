from __future__ import annotations

import pytest

from operator_support.schema_violations import iter_fields
from support.repository import ROOT
from tonnage_operator.api import crd
from tonnage_operator.api.modelweights import ModelWeightsSpec


@pytest.mark.parametrize("name", sorted(crd.files()))
def test_the_committed_file_matches_the_models(name: str) -> None:
    assert (ROOT / "crds" / name).read_text() == crd.files()[name], "run: tonnage-operator crd --output crds"


def test_there_is_no_other_crd_file() -> None:
    assert {path.name for path in (ROOT / "crds").iterdir()} == set(crd.files())


@pytest.mark.parametrize("name", sorted(crd.files()))
def test_every_field_has_a_description(name: str) -> None:
    schema = crd.definitions()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields = [(path, field) for path, field in iter_fields(schema) if path and path[-1] != "*"]
    assert not [path for path, field in fields if path != ("metadata",) and not field.get("description")]
    assert not [path for path, field in fields if field.get("description", "x.")[-1] not in ".)"]


def test_a_spec_needs_only_a_source() -> None:
    spec = ModelWeightsSpec.model_validate({"source": {"s3": {"bucket": "models", "prefix": "a/"}}})
    assert spec.placement.max_concurrent_nodes == 4
    assert spec.files.tensors == ("*.tensors",)


def test_a_field_of_a_newer_schema_is_ignored() -> None:
    spec = ModelWeightsSpec.model_validate({"source": {"s3": {"bucket": "models", "prefix": ""}}, "later": {"a": 1}})
    assert spec.source.s3 is not None
