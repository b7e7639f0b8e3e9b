"""Runs containers of rendered pods as local processes, with the same arguments, files and permissions."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chart_support.helm import Object, find_one, pod_template
from operator_support.control_plane import PYTHONPATH
from support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane


def write_volumes(objects: list[Object], pod: Object, root: Path) -> None:
    """Writes the files of the pod's volumes below ``root``, at the container's mount paths."""
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    for mount in pod["spec"]["containers"][0]["volumeMounts"]:
        volume = volumes[mount["name"]]
        folder = root / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        if "secret" in volume:
            secret = find_one(objects, "Secret", volume["secret"]["secretName"])
            content = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        else:
            content = find_one(objects, "ConfigMap", volume["configMap"]["name"])["data"]
        for item in (volume.get("secret") or volume["configMap"])["items"]:
            staged = folder / f".{item['path']}"
            staged.write_text(content[item["key"]].replace("/etc/tonnage/", f"{root}/etc/tonnage/"))
            staged.rename(folder / item["path"])


@dataclass
class ComponentProcess:
    """The only container of a rendered pod, as a process."""

    plane: ControlPlane
    root: Path
    pod: Object
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls, plane: ControlPlane, root: Path, objects: list[Object], kind: str, name: str) -> ComponentProcess:
        """Writes the volumes' files and selects free ports; doesn't start the process."""
        pod = pod_template(find_one(objects, kind, name))
        assert pod
        write_volumes(objects, pod, root)
        ports: list[dict[str, Any]] = pod["spec"]["containers"][0].get("ports", [])
        return cls(plane, root, pod, dict(zip([each["name"] for each in ports], free_ports(len(ports)), strict=True)))

    @property
    def log(self) -> str:
        """The output so far."""
        return (self.root / "log").read_text()

    def command(self) -> list[str]:
        """Returns the command with local paths and ports."""
        (container,) = self.pod["spec"]["containers"]
        arguments = [each.replace("=/etc/tonnage/", f"={self.root}/etc/tonnage/") for each in container["args"]]
        for port in container.get("ports", ()):
            flag = "--health-port" if port["name"] == "health" else "--port"
            arguments[arguments.index(f"{flag}={port['containerPort']}")] = f"{flag}={self.ports[port['name']]}"
        if container["args"][0] != "check":
            kubeconfig = self.root / "kubeconfig"
            self.plane.write_account_kubeconfig(kubeconfig, self.pod["spec"]["serviceAccountName"])
            arguments += ["--kubeconfig", str(kubeconfig), "--host", "127.0.0.1"]
        return [sys.executable, "-m", "tonnage_operator", *arguments]

    def start(self) -> None:
        with (self.root / "log").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
            self.process = subprocess.Popen(self.command(), env=environment, stdout=log, stderr=log)

    def stop(self) -> int:
        """Sends SIGTERM as a kubelet does, and returns the exit code."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
