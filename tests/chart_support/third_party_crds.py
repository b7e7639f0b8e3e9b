"""CRDs of operators whose objects the chart or an example creates: cert-manager, the Prometheus operator and KServe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from operator_support.control_plane import DependencyUnavailable
from support.repository import ROOT

_FOLDER = ROOT / "hack" / "chart" / "foreign"
_CRD_FILES = {
    "github.com/cert-manager/cert-manager": ("deploy/crds/crd-certificates.yaml", "deploy/crds/crd-issuers.yaml"),
    "github.com/kserve/kserve": (
        "config/crd/full/clusterstoragecontainer/serving.kserve.io_clusterstoragecontainers.yaml",
    ),
    "github.com/prometheus-operator/prometheus-operator": tuple(
        f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml"
        for kind in ("prometheusrules", "servicemonitors")
    ),
}


def download_crd_files() -> list[Path]:
    """Returns the CRD files, after downloading the Go modules that contain them if needed."""
    # hack/kubernetes/build.sh searches there, too.
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if not go:
        raise DependencyUnavailable("Go not found; it downloads the CRDs of other operators")
    result = subprocess.run(
        [go, "mod", "download", "-json", *_CRD_FILES],
        cwd=_FOLDER,
        env={**os.environ, "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"go mod download failed: {result.stderr or result.stdout}")
    modules = json.loads("[" + result.stdout.replace("}\n{", "},{") + "]")
    return [Path(each["Dir"]) / name for each in modules for name in _CRD_FILES[each["Path"]]]


def load_crds(files: list[Path]) -> list[dict[str, Any]]:
    """Returns the CRDs without labels (templates of their own charts) and without conversion webhooks."""
    found = []
    for path in files:
        body = yaml.safe_load(path.read_text())
        body["metadata"] = {"name": body["metadata"]["name"]}
        body["spec"].pop("conversion", None)
        found.append(body)
    return found
