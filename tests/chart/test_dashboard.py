"""The dashboard asks for series that exist, in queries that a real Prometheus parses and answers with data."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import prometheus_client
import pytest

from chart_support.helm import find_one
from support.ports import free_ports
from tonnage_operator.telemetry import Metrics

if TYPE_CHECKING:
    from chart_support.helm import Helm

ROOT: Final = Path(__file__).parents[2]

VALUES = {"metrics": {"dashboard": {"enabled": True}}}
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")


def dashboard(helm: Helm) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        find_one(helm.template(VALUES), "ConfigMap", "dashboard")["data"]["tonnage.json"]
    )
    return found


def queries(helm: Helm) -> dict[str, str]:
    """Returns each query with all namespaces, by panel and letter."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$namespace", ".*")
        for panel in dashboard(helm)["panels"]
        for target in panel.get("targets", ())
    }


def labels_by_series() -> dict[str, set[str]]:
    """Returns the labels of each series that the operator has."""
    return {
        metric.name + suffix: {*getattr(collector, "_labelnames", ()), "le"}
        for collector in Metrics().registry._collector_to_names
        for metric in collector.describe()  # type: ignore[attr-defined]
        for suffix in SUFFIXES
    }


def test_the_config_map_has_the_label_of_the_sidecar(helm: Helm) -> None:
    found = find_one(helm.template(VALUES), "ConfigMap", "dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert not [each for each in helm.template({}) if each["metadata"]["name"].endswith("-dashboard")]


def test_panels_do_not_overlap_and_each_has_a_description(helm: Helm) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(helm)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    assert max(x for x, _ in taken) == 23


def test_queries_use_series_and_labels_that_exist(helm: Helm) -> None:
    known = labels_by_series()
    for panel, query in queries(helm).items():
        used = re.findall(r"\b(tonnage_[a-z_]+)(?:\{(.*?)\})?", query)
        assert used, panel
        for name, labels in used:
            assert name in known, panel
            assert set(re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', '""', labels))) <= known[name], panel
            grouped = {each.strip() for part in re.findall(r"by \(([^)]*)\)", query) for each in part.split(",")}
            assert grouped <= set().union(*(known[each] for each, _ in used)), panel


def fill(metrics: Metrics) -> None:
    """Counts once in every series, with labels as the operator sets them."""
    for collector in list(metrics.registry._collector_to_names):
        labels = getattr(collector, "_labelnames", ())
        values = {
            "namespace": "serving", "name": "llama", "type": "Ready", "status": "True", "result": "failure",
            "medium": "Memory", "state": "Ready", "code": "403", "reason": "Timeout", "cause": "Pressure",
        }  # fmt: skip
        chosen = [values.get(label, "x") for label in labels]
        series = collector.labels(*chosen) if labels else collector  # type: ignore[attr-defined]
        for method, amount in (("inc", 1.0), ("observe", 1.5)):
            if hasattr(series, method):
                getattr(series, method)(amount)
                break
    metrics.cache_requests.labels("serving", "llama", "hit").inc()
    metrics.events.labels("GateWaiting").inc()


@pytest.mark.timeout(120)
def test_a_real_prometheus_answers_every_query_with_data(helm: Helm, tmp_path: Path) -> None:
    found = subprocess.run([ROOT / "hack/env/prometheus.sh"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip())
    program = found.stdout.strip()
    metrics = Metrics()
    fill(metrics)
    served, port = free_ports(2)
    server, thread = prometheus_client.start_http_server(served, "127.0.0.1", metrics.registry)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs:\n- job_name: tonnage\n"
        f"  honor_labels: true\n  static_configs: [{{targets: ['127.0.0.1:{served}']}}]\n"
    )
    command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            missing = queries(helm)
            deadline = time.monotonic() + 90
            while missing:
                fill(metrics)  # rates need a change
                for panel, query in list(missing.items()):
                    answer = ask(port, query)
                    if answer is not None and answer["result"]:
                        missing.pop(panel)
                assert time.monotonic() < deadline, missing
        finally:
            process.terminate()
            process.wait(30)
            server.shutdown()
            server.server_close()
            thread.join()


def ask(port: int, query: str) -> dict[str, Any] | None:
    """Returns the answer of Prometheus; None while it starts. A query that it can't parse fails the test."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            found: dict[str, Any] = json.load(response)["data"]
            return found
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 503:
                pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:
        pass
    return None
