"""Runs the pods of the chart's uninstall hooks as local processes, in place of a kubelet."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
from typing import TYPE_CHECKING, Any

from chart_support.helm import NAMESPACE
from operator_support.background_thread import BackgroundThread
from operator_support.control_plane import PYTHONPATH

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

_COMPONENTS = ("release", "wipe")


class HookRunner(BackgroundThread):
    """Runs the pods of hooks. ``finished`` has each pod's arguments, exit code and output."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        super().__init__()
        self.finished: list[tuple[str, int, str]] = []
        self._plane = plane
        self._folder = folder

    def run(self) -> None:
        selector = f"app.kubernetes.io%2Fcomponent%20in%20({'%2C'.join(_COMPONENTS)})"
        handled_uids: set[str] = set()
        while not self.stop_requested.wait(0.1):
            with contextlib.suppress(urllib.error.HTTPError):
                pods = self._plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}")
                for pod in pods["items"]:
                    if pod["metadata"]["uid"] not in handled_uids:
                        handled_uids.add(pod["metadata"]["uid"])
                        self._execute(pod)

    def _execute(self, pod: dict[str, Any]) -> None:
        account = pod["spec"]["serviceAccountName"]
        kubeconfig = self._folder / f"{account}.kubeconfig"
        self._plane.write_account_kubeconfig(kubeconfig, account)
        arguments = pod["spec"]["containers"][0]["args"]
        finished = subprocess.run(
            [sys.executable, "-m", "tonnage_operator", *arguments, "--kubeconfig", kubeconfig],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            check=False,
            capture_output=True,
            text=True,
            timeout=50,
        )
        self.finished.append((" ".join(arguments), finished.returncode, finished.stdout + finished.stderr))
        self._plane.request(
            "PATCH",
            f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}/status",
            {"status": {"phase": "Failed" if finished.returncode else "Succeeded"}},
            content_type="application/merge-patch+json",
        )
