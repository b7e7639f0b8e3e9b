"""What a person would look at first after a failure, gathered for the test's report."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from e2e_support.helm_release import NAMESPACE

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster

_LINES = 60


def collect(e2e: E2ECluster, namespace: str) -> str:
    """Returns objects, descriptions and logs around a namespace; whatever can't be had is left out."""
    parts = [
        _kubectl(e2e, "get", "modelweights,nodecaches,jobs,pods", "-A", "-o", "wide"),
        _kubectl(e2e, "get", "modelweights", "-n", namespace, "-o", "yaml"),
        _kubectl(e2e, "describe", "pods", "-n", namespace),
        _kubectl(e2e, "get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
    ]
    with contextlib.suppress(Exception):
        for place in sorted({namespace, NAMESPACE}):
            parts += [_pod_logs(e2e, place, pod["metadata"]["name"]) for pod in e2e.api.list("Pod", place)]
    parts.append(f"S3 server:\n{e2e.storage.server.tail()}")
    return "\n".join(part for part in parts if part)


def _pod_logs(e2e: E2ECluster, namespace: str, pod: str) -> str:
    return _kubectl(e2e, "logs", "-n", namespace, pod, "--all-containers", "--prefix", f"--tail={_LINES}")


def _kubectl(e2e: E2ECluster, *arguments: str) -> str:
    header = f"$ kubectl {' '.join(arguments)}\n"
    try:
        return header + e2e.kubectl(*arguments, timeout=20)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"{header}({type(error).__name__}: {error})"
