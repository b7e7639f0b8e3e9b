"""Installs, upgrades and uninstalls the chart's release."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from operator_support.objects import deep_merge, get_condition
from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster

CHART = ROOT / "charts" / "tonnage"
NAME = "tonnage"
NAMESPACE = "tonnage-system"

Values = dict[str, Any]

_TEST_VALUES: Values = {
    "loader": {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}},
    "controller": {"resources": {"requests": {"cpu": "10m"}}},
    "webhook": {"resources": {"requests": {"cpu": "10m"}}, "drainSeconds": 1},
    "reports": {"intervalSeconds": 1},
    "retry": {"baseSeconds": 1, "capSeconds": 4},
}
"""Values that differ from the chart's defaults: small requests for a two-core node, and short intervals."""
_SMALL = {"enabled": True, "resources": {"requests": {"cpu": "10m"}}}
ALL_OPTIONS: Values = {
    # Each namespace may have one and a half of the large model on a node; others' entries don't count. Memory that is
    # reserved for the cache lets the memory limits of loaders as they are.
    "cache": {"memory": {"namespaceCapacity": "200Mi", "reserved": True}},
    "peers": _SMALL,
    # The timeout of a node's gate counts from its creation.
    "gate": {**_SMALL, "maxTimeout": "4h"},
    "policy": {"enabled": True},
}
"""Options that default to off, together."""


class HelmRelease:
    """The release."""

    def __init__(self, e2e: E2ECluster) -> None:
        self._e2e = e2e
        self._installed: tuple[Values, Path] | None = None

    def arguments(self, chart: Path | None = None) -> list[str]:
        """Returns the arguments of an installation; without ``chart`` its path is relative to the repository."""
        return [NAME, str(chart or CHART.relative_to(ROOT)), "-n", NAMESPACE, "--create-namespace"]

    def install(self, changes: Values | None = None, *, chart: Path = CHART, base: Values = _TEST_VALUES) -> str:
        """Installs or upgrades, waits until ready, and returns Helm's output; empty if nothing changed."""
        values = deep_merge(base, changes or {})
        if self._installed == (values, chart):
            return ""
        path = self._e2e.folder / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        self._installed = None
        output = self._e2e.cluster.helm(
            "upgrade", "--install", *self.arguments(chart), "--values", str(path), "--wait", "--timeout", "120s"
        )
        self._installed = (values, chart)
        return output

    def assume(self, changes: Values) -> None:
        """Takes for granted that ``install`` was called with these changes, by another process."""
        self._installed = (deep_merge(_TEST_VALUES, changes), CHART)

    def uninstall(self) -> str:
        self._installed = None
        return self._e2e.cluster.helm("uninstall", NAME, "-n", NAMESPACE, "--wait", "--timeout", "120s")

    def run_tests(self) -> str:
        """Runs ``helm test`` and returns its output."""
        return self._e2e.cluster.helm("test", NAME, "-n", NAMESPACE, "--timeout", "120s")

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Returns the pods of ``controller`` or ``webhook`` that are not being deleted."""
        found = self._e2e.api.list("Pod", NAMESPACE, labelSelector=f"app.kubernetes.io/component={component}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def wait_ready(self, component: str, *, timeout: float = 60) -> None:
        """Waits until all replicas of a Deployment are up to date and ready."""

        def is_ready(body: dict[str, Any]) -> bool:
            status, wanted = body.get("status") or {}, body["spec"]["replicas"]
            current = status.get("observedGeneration", 0) >= body["metadata"]["generation"]
            counts = {status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")}
            return current and counts == {wanted} and (not wanted or get_condition(body, "Available")[0] == "True")

        name = f"{NAME}-{component}"
        self._e2e.api.wait_for("Deployment", name, NAMESPACE, is_ready, timeout=timeout, description="all replicas")

    def scale(self, component: str, replicas: int) -> None:
        """Scales a Deployment and waits until it is ready."""
        self._e2e.api.patch("Deployment", f"{NAME}-{component}", NAMESPACE, {"spec": {"replicas": replicas}})
        self.wait_ready(component)

    def history(self) -> list[dict[str, Any]]:
        """Returns the output of ``helm history``."""
        found: list[dict[str, Any]] = json.loads(
            self._e2e.cluster.helm("history", NAME, "-n", NAMESPACE, "--output", "json")
        )
        return found
