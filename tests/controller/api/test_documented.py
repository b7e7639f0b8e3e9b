"""The operator accepts the installation, commands and annotations in docs/guides/operator.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from support.repository import ROOT
from tonnage_operator.api import names
from tonnage_operator.cli import _parser
from tonnage_operator.config import read_installation
from tonnage_operator.domain.admission.pod_request import parse_annotations, requests_weights
from tonnage_operator.domain.installation import Installation

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "guides" / "operator.md").read_text()


def test_the_installation_on_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(namespace: .*?)```", PAGE, re.DOTALL)
    path = tmp_path / "installation.yaml"
    path.write_text(text)
    (tmp_path / "signing").mkdir()
    (tmp_path / "signing" / "current").write_text("k" * 64)
    installation = read_installation(path)
    assert installation.media
    assert yaml.safe_load(text).keys() <= {field.alias for field in Installation.model_fields.values()}


def test_each_command_on_the_page_is_valid() -> None:
    commands = re.findall(r"^tonnage-operator (.*)$", PAGE, re.MULTILINE)
    assert {command.split()[0] for command in commands} >= {"controller", "release"}
    for command in commands:
        assert _parser().parse_args(command.split()).command == command.split()[0]


def test_each_pod_annotation_has_a_row_with_a_valid_example() -> None:
    rows = dict(re.findall(r"^\| `(tonnage\.dev/[a-z-]+): ([^`]+)` \|", PAGE, re.MULTILINE))
    assert set(names.POD_ANNOTATIONS) <= rows.keys()
    one = {name: rows[name].strip('"') for name in names.POD_ANNOTATIONS if name not in {names.MODELS, names.INJECT}}
    request = parse_annotations(one, namespace="serving")
    assert request.models[0].name == "llama-70b"
    several = parse_annotations({names.MODELS: rows[names.MODELS]}, namespace="serving")
    assert [each.alias for each in several.models] == ["base", "draft"]
    assert not requests_weights({names.MODEL: "llama-70b", names.INJECT: rows[names.INJECT].strip('"')})
