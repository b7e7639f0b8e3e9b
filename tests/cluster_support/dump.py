"""What a person would look at first after a failure, gathered for the test's report."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from cluster_support.release import NAMESPACE

if TYPE_CHECKING:
    from cluster_support.site import Site

_LINES = 60


def gather(site: Site, namespace: str) -> str:
    """Returns objects, descriptions and logs around a namespace; whatever can't be had is left out."""
    parts = [
        _ask(site, "get", "modelweights,nodecaches,jobs,pods", "-A", "-o", "wide"),
        _ask(site, "get", "modelweights", "-n", namespace, "-o", "yaml"),
        _ask(site, "describe", "pods", "-n", namespace),
        _ask(site, "get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
    ]
    with contextlib.suppress(Exception):
        for place in sorted({namespace, NAMESPACE}):
            parts += [_logs(site, place, pod["metadata"]["name"]) for pod in site.api.list("Pod", place)]
    parts.append(f"S3 server:\n{site.storage.server.tail()}")
    return "\n".join(part for part in parts if part)


def _logs(site: Site, namespace: str, pod: str) -> str:
    return _ask(site, "logs", "-n", namespace, pod, "--all-containers", "--prefix", f"--tail={_LINES}")


def _ask(site: Site, *arguments: str) -> str:
    said = f"$ kubectl {' '.join(arguments)}\n"
    try:
        return said + site.kubectl(*arguments, timeout=20)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"{said}({type(error).__name__}: {error})"
