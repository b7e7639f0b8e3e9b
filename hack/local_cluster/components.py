"""The programs of a cluster, and the order in which they are started."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_cluster import credentials, dns, http_probe, images, network, node, object_storage, programs
from local_cluster.clients import Clients
from local_cluster.control_plane import ENVIRONMENT, ControlPlaneSettings, Ports, is_api_server_ready
from local_cluster.control_plane import program_arguments as control_plane_commands
from local_cluster.errors import CommandFailed, StartFailed
from local_cluster.object_storage import ObjectStorage
from local_cluster.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from local_cluster.credentials import User
    from local_cluster.machine import Machine

_USERS: dict[str, User] = {
    credentials.ADMIN: ("admin", ("system:masters",)),
    "kube-controller-manager": ("system:kube-controller-manager", ()),
    "kube-scheduler": ("system:kube-scheduler", ()),
    "kube-proxy": ("system:kube-proxy", ()),
    "kubelet": (f"system:node:{network.NODE_NAME}", ("system:nodes",)),
    "coredns": (dns.USER, ()),
}
"""The users of the API server, by program."""
_OF_MACHINE = ("etcd", "containerd", "ctr", "weed")
_READY_TIMEOUT = 90


def find_programs() -> dict[str, Path]:
    """Returns the path of every program. Builds missing ones, which takes minutes the first time.

    Programs of Debian packages must be installed already (see ``preflight``).
    """
    found = programs.find_or_build([*programs.CONTROL_PLANE, *programs.NODE, *programs.CLIENTS])
    for name in (*_OF_MACHINE, "cni"):
        path = programs.find_cni_plugins() if name == "cni" else programs.find_on_host(name)
        assert path
        found[name] = path
    return found


def preserved_folders(found: Mapping[str, Path]) -> list[Path]:
    """Returns the folders that the node's programs need at their paths on this machine."""
    folders = {path if path.is_dir() else path.parent for path in found.values()}
    return sorted({*folders, Path(sys.prefix), Path(sys.base_prefix), programs.ROOT})


class Components:
    """All programs of a cluster, running or not. ``folder`` holds their files."""

    def __init__(self, folder: Path, program_paths: Mapping[str, Path], machine: Machine, *, audited: bool) -> None:
        self._folder = folder
        self._program_paths = program_paths
        self._machine = machine
        self._net = machine.network
        self._node = node.NodeFiles(folder / "node")
        self._storage = folder / "object-storage"
        self._settings = self._control_plane_settings(audited=audited)
        self._corefile = folder / "node" / "Corefile"
        self.clients = Clients(
            program_paths["kubectl"], program_paths["helm"], folder / "admin.kubeconfig", folder / "clients"
        )
        self.processes = self._processes()
        server, proxy = self.processes[object_storage.SERVER], self.processes[object_storage.PROXY]
        self.object_storage = ObjectStorage(self._storage, self._net.node_address, server, proxy)
        self._set_readiness_probes()

    @property
    def audit_log(self) -> Path:
        """The API server's audit log; it exists only with an audit policy."""
        return self._settings.audit_log

    def make_files(self, audit_policy: str, kubelet: Mapping[str, Any]) -> None:
        """Writes keys and configuration files. Called once for each cluster."""
        for name in ("control-plane", "node", "logs", "clients"):
            (self._folder / name).mkdir()
        if self._settings.audit_policy:
            self._settings.audit_policy.write_text(audit_policy)
        object_storage.write_files(self._storage)
        credentials.make_service_account_key(self._settings.service_account_key)
        authority, key = self._kubelet_client
        credentials.make_client_certificate(authority, key, name="kube-apiserver", groups=["system:masters"])
        tokens = credentials.make_tokens(_USERS, self._settings.tokens_file)
        for name, token in tokens.items():
            file = self.clients.kubeconfig if name == credentials.ADMIN else self._node.kubeconfig(name)
            credentials.write_kubeconfig(file, url=self._settings.url, ca_file=self._settings.ca_file, token=token)
        credentials.write_private(self._token_file, tokens[credentials.ADMIN])
        cni = self._program_paths["cni"]
        node.write_files(self._node, self._net, cni_programs=cni, kubelet_client_ca=authority, kubelet=kubelet)
        self._corefile.write_text(dns.corefile(self._node.kubeconfig("coredns"), self._net.node_address))
        images.write_image(self._pause_archive, self._program_paths["pause"], node.PAUSE_IMAGE)

    def start(self, step: Callable[[str], AbstractContextManager[None]]) -> None:
        """Starts all programs on the machine, which must be on. Returns when pods can run.

        Raises:
            StartFailed: A program exited or did not become ready; the message ends with its log.
        """
        with step("etcd, API server"):
            for name in ("etcd", "kube-apiserver", "containerd", object_storage.SERVER, object_storage.PROXY):
                self.processes[name].start()
            self.processes["kube-apiserver"].wait_until_ready()
        with step("containerd with its pause image"):
            self.processes["containerd"].wait_until_ready()
            self.import_image(self._pause_archive)
        with step("DNS, controllers, scheduler, kubelet and kube-proxy"):
            self.clients.kubectl("apply", "--server-side", "-f", "-", stdin=dns.RBAC_MANIFESTS)
            for name in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns"):
                self.processes[name].start()
        with step("S3 server"):
            self.processes[object_storage.PROXY].wait_until_ready()
        with step("node ready"):
            for name in ("kubelet", "kube-proxy", "coredns"):
                self.processes[name].wait_until_ready()
            self._wait_for_node()

    def import_image(self, archive: Path) -> None:
        """Imports the images of a docker-archive into containerd."""
        command = [
            *self._machine.nsenter_command(),
            str(self._program_paths["ctr"]),
            "--namespace=k8s.io",
            "images",
            "import",
            "-",
        ]
        with archive.open("rb") as content:
            done = subprocess.run(command, stdin=content, check=False, capture_output=True, text=True)
        if done.returncode:
            raise CommandFailed(["ctr", "images", "import", str(archive)], done.returncode, done.stderr)

    def stop_processes(self) -> None:
        """Stops programs that still run, and reaps those that ended with their machine."""
        for process in self.processes.values():
            process.stop()

    def _processes(self) -> dict[str, Process]:
        commands = {
            **control_plane_commands(self._settings),
            **node.program_arguments(self._node, self._net),
            **object_storage.program_arguments(self._storage, self._net.node_address),
            "coredns": [f"-conf={self._corefile}"],
        }
        environment = {"PATH": programs.search_path(), **ENVIRONMENT}
        return {
            name: Process(
                name,
                [self._program_paths.get("weed" if name == object_storage.SERVER else name, Path(name)), *arguments],
                self._folder / "logs" / f"{name}.log",
                command_prefix=self._machine.nsenter_command,
                environment=environment,
            )
            for name, arguments in commands.items()
        }

    def _control_plane_settings(self, *, audited: bool) -> ControlPlaneSettings:
        certificate, key = self._kubelet_client
        return ControlPlaneSettings(
            folder=self._folder / "control-plane",
            address=self._net.node_address,
            service_range=network.SERVICE_RANGE,
            ports=Ports(api=network.API_PORT),
            authorization="Node,RBAC",
            kubeconfigs={name: self._node.kubeconfig(name) for name in _USERS},
            audit_policy=self._folder / "control-plane" / "audit-policy.yaml" if audited else None,
            extra_args={
                "kube-apiserver": [
                    "--enable-admission-plugins=NodeRestriction",
                    f"--advertise-address={self._net.node_address}",
                    "--kubelet-preferred-address-types=InternalIP",
                    f"--kubelet-client-certificate={certificate}",
                    f"--kubelet-client-key={key}",
                ]
            },
        )

    @property
    def _kubelet_client(self) -> tuple[Path, Path]:
        folder = self._folder / "control-plane"
        return folder / "kubelet-client.crt", folder / "kubelet-client.key"

    @property
    def _token_file(self) -> Path:
        return self._folder / "control-plane" / "admin-token"

    @property
    def _pause_archive(self) -> Path:
        return self._folder / "node" / "pause.tar"

    def _set_readiness_probes(self) -> None:
        """Sets the readiness probes of programs."""
        urls = {**node.health_urls(self._net), "coredns": dns.ready_url(self._net.node_address)}
        for name, url in urls.items():
            self.processes[name].readiness_probe = partial(http_probe.ok, url)
        self.processes["containerd"].readiness_probe = self._is_containerd_ready
        self.processes["kube-apiserver"].readiness_probe = self._is_api_server_ready
        self.processes[object_storage.PROXY].readiness_probe = self.object_storage.is_ready

    def _is_api_server_ready(self) -> bool:
        return is_api_server_ready(self._settings, self._token_file.read_text())

    def _is_containerd_ready(self) -> bool:
        return not self._machine.run(self._program_paths["ctr"], "--connect-timeout=1s", "version").returncode

    def _wait_for_node(self) -> None:
        name, boot = f"node/{network.NODE_NAME}", self._machine.boot_id
        waits = [
            [name, "--for=create"],
            [name, f"--for=jsonpath={{.status.nodeInfo.bootID}}={boot}"],
            [name, "--for=condition=Ready"],
            ["serviceaccount/default", "--for=create"],
        ]
        for wait in waits:
            try:
                self.clients.kubectl("wait", f"--timeout={_READY_TIMEOUT}s", *wait, timeout=_READY_TIMEOUT + 30)
            except CommandFailed as error:
                raise StartFailed(f"{error}\n{self._log_tails()}") from error

    def _log_tails(self) -> str:
        ended = [process for process in self.processes.values() if not process.is_running]
        return "\n".join(f"{each.name}:\n{each.tail()}" for each in ended or [self.processes["kubelet"]])
