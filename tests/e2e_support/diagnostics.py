"""Collects objects, events and logs after a failure, for the test's report."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from e2e_support.helm_release import NAMESPACE

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster


def collect(e2e: E2ECluster, namespace: str) -> str:
    """Returns objects, events and logs of a namespace and of the operator. Failed commands add their error."""
    parts = [
        _kubectl(e2e, "get", "modelweights,nodecaches,jobs,pods", "-A", "-o", "wide"),
        _kubectl(e2e, "get", "modelweights", "-n", namespace, "-o", "yaml"),
        _kubectl(e2e, "describe", "pods", "-n", namespace),
        _kubectl(e2e, "get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
    ]
    with contextlib.suppress(Exception):
        for place in sorted({namespace, NAMESPACE}):
            for pod in e2e.api.list("Pod", place):
                name = pod["metadata"]["name"]
                parts.append(_kubectl(e2e, "logs", "-n", place, name, "--all-containers", "--prefix", "--tail=60"))
    parts.append(f"S3 server:\n{e2e.storage.server.tail()}")
    return "\n".join(part for part in parts if part)


def _kubectl(e2e: E2ECluster, *arguments: str) -> str:
    header = f"$ kubectl {' '.join(arguments)}\n"
    try:
        return header + e2e.kubectl(*arguments, timeout=20)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"{header}({type(error).__name__}: {error})"
