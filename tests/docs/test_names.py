"""Names that documents use exist: fields of the resources, values of the chart, annotations, environment variables."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.markdown import code_blocks, markdown_files, prose
from support.repository import ROOT
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.markdown import CodeBlock

DOCUMENTS = markdown_files()
ANYTHING: dict[str, Any] = {}


@functools.cache
def chart_values() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "charts" / "tonnage" / "values.yaml").read_text()))


@functools.cache
def schemas() -> list[dict[str, Any]]:
    found = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml"))]
    return [each["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for each in found]


def has_field(schema: dict[str, Any], parts: list[str]) -> bool:
    """Returns whether a schema has a field, also of list items. Below a free-form object every name is a field."""
    schema = schema.get("items", schema)
    if not parts:
        return True
    if "properties" not in schema:
        return "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields", False)
    return parts[0] in schema["properties"] and has_field(schema["properties"][parts[0]], parts[1:])


def has_value(values: object, parts: list[str]) -> bool:
    """Returns whether the chart has a value; ``*`` is any name. Below an empty mapping every name is a value."""
    if not parts or values in (ANYTHING, []):
        return True
    if not isinstance(values, dict):
        return False
    if parts[0] == "*":
        return any(has_value(each, parts[1:]) for each in values.values())
    return parts[0] in values and has_value(values[parts[0]], parts[1:])


def dotted(document: Path) -> list[list[str]]:
    """Returns the dotted names in a document's code."""
    return [each.split(".") for each in re.findall(r"`([a-z]\w*(?:\.(?:\w+|\*))+)(?:: [^`]*)?`", prose(document))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_fields_of_resources_exist(document: Path) -> None:
    for parts in dotted(document):
        if parts[0] in {"spec", "status"}:
            assert any(has_field(schema, parts) for schema in schemas()), ".".join(parts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_values_of_the_chart_exist(document: Path) -> None:
    for parts in dotted(document):
        if parts[0] in chart_values() and isinstance(chart_values()[parts[0]], dict):
            assert has_value(chart_values(), parts), ".".join(parts)


def named_values(values: object, above: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yields the path of each leaf of a block of values."""
    if not isinstance(values, dict) or not values:
        yield list(above)
        return
    for name, each in values.items():
        yield from named_values(each, (*above, name))


@pytest.mark.parametrize(
    "block", [each for document in DOCUMENTS for each in code_blocks(document) if each.language == "yaml"], ids=str
)
def test_blocks_of_yaml_are_well_formed_and_blocks_of_values_are_values(block: CodeBlock) -> None:
    parsed = list(yaml.safe_load_all(block.text))
    for each in parsed:
        if isinstance(each, dict) and each and each.keys() <= chart_values().keys():
            for parts in named_values(each):
                assert has_value(chart_values(), parts), ".".join(parts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_annotations_and_labels_exist(document: Path) -> None:
    known = {value for value in vars(names).values() if isinstance(value, str)}
    versions = {names.API_VERSION}
    of_the_chart = set(re.findall(r"tonnage\.dev/[a-z-]+", charts_text()))
    used = set(re.findall(r"(?<![\w.])tonnage\.dev/[a-z][a-z0-9-]*", document.read_text()))
    assert not used - known - versions - of_the_chart


@functools.cache
def charts_text() -> str:
    """Returns the text of the chart's templates."""
    return "".join(file.read_text() for file in sorted((ROOT / "charts").rglob("*")) if file.is_file())
