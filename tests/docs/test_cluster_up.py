"""`make cluster-up` shows the product that people get: it installs the values that its printed command has."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from demo_cluster.install import install_command, install_values
from support.repository import ROOT


def _values_of(command: str) -> dict[str, Any]:
    words = shlex.split(command)
    settings = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    assert "--values" not in words
    return dict(each.split("=", 1) for each in settings)


def _leaves(values: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {above: values}
    found: dict[str, Any] = {}
    for name, each in values.items():
        found |= _leaves(each, f"{above}.{name}" if above else name)
    return found


def test_the_printed_command_has_exactly_the_values_that_are_installed() -> None:
    assert _leaves(install_values()) == _values_of(install_command())


def test_pauses_and_intervals_are_the_charts_own() -> None:
    defaults = yaml.safe_load((ROOT / "charts" / "tonnage" / "values.yaml").read_text())
    assert install_values().keys() <= defaults.keys()
    assert not {"retry", "reports"} & install_values().keys()
