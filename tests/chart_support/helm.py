"""Runs the real Helm with separate home folders, and parses what it renders."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from local_cluster import programs
from local_cluster.control_plane import ENVIRONMENT
from local_cluster.errors import MissingRequirements
from operator_support.control_plane import DependencyUnavailable
from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CHART = ROOT / "charts" / "tonnage"
NAMESPACE = "tonnage-system"

Object = dict[str, Any]
Values = dict[str, Any]


def find_helm() -> Path:
    """Returns Helm's path, after building it if it is missing."""
    try:
        return programs.find_or_build(programs.CLIENTS)["helm"]
    except MissingRequirements as error:
        raise DependencyUnavailable(str(error)) from error


class HelmError(Exception):
    """Helm failed; the message is its standard error."""


@dataclass
class Helm:
    """Helm, with or without a cluster."""

    binary: Path
    home: Path
    kubeconfig: Path | None = None
    _rendered: dict[str, str] = field(default_factory=dict, repr=False)
    """What was rendered, as JSON: much faster to parse than YAML, and than to copy."""

    def run(self, *arguments: str | Path, values: Values | None = None) -> str:
        """Runs Helm and returns its standard output.

        Raises:
            HelmError: It exited with a code other than 0.
        """
        command: list[str | Path] = [self.binary, *arguments]
        if values is not None:
            command += ["--values", "-"]
        folders = {f"HELM_{kind}_HOME": str(self.home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        kubeconfig = str(self.kubeconfig or "/nonexistent")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            **folders,
            "KUBECONFIG": kubeconfig,
            **ENVIRONMENT,
        }
        result = subprocess.run(
            command,
            input=json.dumps(values) if values is not None else None,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=90,
        )
        if result.returncode:
            raise HelmError(result.stderr)
        return result.stdout

    def template(self, values: Values | None = None, *arguments: str, namespace: str = NAMESPACE) -> list[Object]:
        """Returns all objects that the chart renders, hooks included, without a cluster.

        Results are kept, so that the same arguments are rendered once.
        """
        key = json.dumps([values, arguments, namespace], sort_keys=True)
        if key not in self._rendered:
            self._rendered[key] = json.dumps(self.render(values, *arguments, namespace=namespace))
        objects: list[Object] = json.loads(self._rendered[key])
        return objects

    def render(self, values: Values | None = None, *arguments: str, namespace: str = NAMESPACE) -> list[Object]:
        """Like ``template``, but renders each time."""
        text = self.run(
            "template", "tonnage", CHART, "--namespace", namespace, "--kube-version", "1.34.4", *arguments,
            values=values or {},
        )  # fmt: skip
        return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]

    def install(self, values: Values | None = None, *arguments: str, chart: Path = CHART) -> str:
        """Installs or upgrades the release ``tonnage``.

        Helm's OpenAPI validation is disabled: it takes as long as the rest, and the API server validates anyway.
        """
        where = ("--namespace", NAMESPACE, "--create-namespace", "--disable-openapi-validation")
        return self.run("upgrade", "--install", "tonnage", chart, *where, *arguments, values=values or {})

    def uninstall(self, *arguments: str) -> str:
        """Uninstalls the release; hooks time out after 30 seconds."""
        return self.run("uninstall", "tonnage", "--namespace", NAMESPACE, "--timeout", "30s", *arguments)


def find_one(objects: list[Object], kind: str, name: str = "") -> Object:
    """Returns the only object of this kind whose name ends with ``name``."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod_template(body: Object) -> Object | None:
    """Returns metadata and spec of the pods that an object is or creates; None if it creates none."""
    if body["kind"] == "Pod":
        return {"metadata": {**body["metadata"]}, "spec": body["spec"]}
    if body["kind"] in {"DaemonSet", "Deployment", "Job"}:
        template: Object = body["spec"]["template"]
        return template
    return None


def default_values() -> Values:
    values: Values = yaml.safe_load((CHART / "values.yaml").read_text())
    return values
