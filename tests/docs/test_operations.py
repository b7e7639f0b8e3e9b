"""The operations pages have a row for each reason, metric and alert that exists, and no others."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from support.markdown import code_blocks, inline_code, section, table_rows
from support.repository import ROOT
from tonnage.errors import Reason
from tonnage_operator.domain.reasons import ConditionReason, EventReason, FailureReason
from tonnage_operator.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import StrEnum
    from pathlib import Path

PAGES = ROOT / "docs" / "guides" / "operations"
REASONS = PAGES / "reasons.md"
METRICS = PAGES / "alerts.md"
ALERTS = ROOT / "charts" / "tonnage" / "templates" / "monitoring" / "_alerts.tpl"
NOT_OURS = {"up", "apiserver_admission_webhook_rejection_count"}
"""Series of Prometheus and Kubernetes that alerts query."""
FUNCTIONS = {"absent", "by", "histogram_quantile", "increase", "le", "max", "min", "rate", "sum", "time", "without"}


def rows(page: Path, title: str) -> list[list[str]]:
    """Returns the rows of the first table of a section."""
    found = table_rows(section(page, title))
    width = len(found[0])
    return [row for row in found if len(row) == width]


def keys(page: Path, title: str) -> list[str]:
    """Returns the code in the first cell of each row of a section's table."""
    return [inline_code(row[0]) for row in rows(page, title)]


@pytest.mark.parametrize(
    ("title", "reasons"),
    [
        ("States", ConditionReason),
        ("Failures that the operator detects", FailureReason),
        ("The loader's reasons, in a cluster", Reason),
        ("Events", EventReason),
    ],
)
def test_every_reason_has_one_row_and_every_row_a_reason(title: str, reasons: type[StrEnum]) -> None:
    assert sorted(keys(REASONS, title)) == sorted(str(each) for each in reasons)


def literal_reasons() -> Iterator[str]:
    """Yields reasons that the operator writes as string literals instead of enum members."""
    for file in sorted((ROOT / "operator" / "tonnage_operator").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in {"Event", "Failure", "Observation"}:
                continue
            given = [each.value for each in node.keywords if each.arg == "reason"]
            given += node.args[:1] if name != "Observation" else node.args[2:3]
            for value in given:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"{file.relative_to(ROOT)}:{value.lineno}: {value.value}"


def test_the_operator_uses_only_reasons_of_the_enums() -> None:
    assert not list(literal_reasons())


def test_every_reason_of_the_operator_is_used() -> None:
    sources = (ROOT / "operator" / "tonnage_operator").rglob("*.py")
    text = "".join(file.read_text() for file in sources if file.name != "reasons.py")
    unused = [
        f"{kind.__name__}.{each.name}"
        for kind in (ConditionReason, FailureReason, EventReason)
        for each in kind
        if f"{kind.__name__}.{each.name}" not in text
    ]
    assert not unused


def metrics() -> dict[str, tuple[str, ...]]:
    """Returns the labels of each metric by the name that queries use."""
    registry = Metrics().registry
    found = {}
    for collector in registry._collector_to_names:
        assert isinstance(collector, MetricWrapperBase)
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = tuple(collector._labelnames)
    return found


def test_every_metric_has_a_row_with_its_labels() -> None:
    found = rows(METRICS, "Metrics")
    documented = {inline_code(row[0]): tuple(filter(None, row[1].replace(" ", "").split(","))) for row in found}
    assert documented == metrics()


def queries() -> list[str]:
    """Returns every PromQL query in the pages and in the chart's alerts."""
    table = table_rows(section(METRICS, "Metrics"))
    found = [inline_code(row[1]).replace("\\|", "|") for row in table if len(row) == 2]
    for block in [block for page in sorted(PAGES.glob("*.md")) for block in code_blocks(page)]:
        if block.language == "yaml" and "expr:" in block.text:
            groups = yaml.safe_load(block.text)["groups"]
            found += [rule["expr"] for group in groups for rule in group["rules"]]
    return found + re.findall(r"^ *expr: (.*)$", ALERTS.read_text(), re.MULTILINE)


def series(query: str) -> set[str]:
    """Returns the series in a query: what remains without labels, durations and functions."""
    plain = re.sub(r"\{\{.*?\}\}", "", query)
    plain = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\[\w+\]", " ", plain)
    plain = re.sub(r"\b(?:by|without)\s*\([^)]*\)", " ", plain)
    return set(re.findall(r"[a-z_][a-z0-9_]*", plain)) - FUNCTIONS


@pytest.mark.parametrize("query", queries())
def test_a_query_uses_existing_metrics_and_labels(query: str) -> None:
    known = metrics()
    exposed = {f"{name}{suffix}": name for name in known for suffix in ("", "_bucket", "_sum", "_count")}
    asked = series(query)
    assert asked
    assert not asked - exposed.keys() - NOT_OURS
    assert query.count("(") == query.count(")")
    for name, labels in re.findall(r"(tonnage_\w+)\{(.*?)\}", query):
        assert set(re.findall(r"(\w+)\s*[=!]", labels)) <= set(known[exposed[name]])


def test_series_are_parsed_from_a_query() -> None:
    assert series('sum by (le) (rate(a_b{x="c"}[5m])) / (d_total > 0)') == {"a_b", "d_total"}


def test_every_alert_of_the_chart_has_a_row() -> None:
    assert keys(METRICS, "Alerts") == re.findall(r"- alert: (\w+)", ALERTS.read_text())
