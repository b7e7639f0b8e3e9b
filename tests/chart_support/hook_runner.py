"""Runs the Jobs around an uninstall as a kubelet would, in processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from chart_support.helm import NAMESPACE
from operator_support.control_plane import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

_COMPONENTS = ("release", "wipe")


@dataclass
class HookRunner:
    """A thread that looks after the pods of hooks. ``finished`` has each one's arguments, exit code and output."""

    plane: ControlPlane
    folder: Path
    finished: list[tuple[str, int, str]] = field(default_factory=list)
    error: BaseException | None = None

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hooks")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        if self.error:
            raise self.error

    def _run(self) -> None:
        selector = f"app.kubernetes.io%2Fcomponent%20in%20({'%2C'.join(_COMPONENTS)})"
        handled_uids: set[str] = set()
        try:
            while not self._stop.wait(0.1):
                with contextlib.suppress(urllib.error.HTTPError):
                    pods = self.plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}")
                    for pod in pods["items"]:
                        if pod["metadata"]["uid"] not in handled_uids:
                            handled_uids.add(pod["metadata"]["uid"])
                            self._execute(pod)
        except BaseException as error:  # noqa: BLE001 - told by the test's thread
            self.error = error

    def _execute(self, pod: dict[str, Any]) -> None:
        account = pod["spec"]["serviceAccountName"]
        token = self.plane.kubectl("create", "token", account, "-n", NAMESPACE).stdout.strip()
        config = json.loads(self.plane.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        kubeconfig = self.folder / f"{account}.kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        arguments = pod["spec"]["containers"][0]["args"]
        finished = subprocess.run(
            [sys.executable, "-m", "tonnage_operator", *arguments, "--kubeconfig", kubeconfig],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), str(ROOT / "loader")])},
            check=False,
            capture_output=True,
            text=True,
            timeout=50,
        )
        self.finished.append((" ".join(arguments), finished.returncode, finished.stdout + finished.stderr))
        self.plane.request(
            "PATCH",
            f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}/status",
            {"status": {"phase": "Failed" if finished.returncode else "Succeeded"}},
            content_type="application/merge-patch+json",
        )
