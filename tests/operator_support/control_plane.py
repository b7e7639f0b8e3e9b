"""A real Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler. No node, no root.

The programs are built once by ``hack/kubernetes/build.sh``, or come from ``KUBEBUILDER_ASSETS``. Each runs in a process
group of its own and is ended by its id.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


_AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:tonnage-system"]
- level: None
"""
"""Just what service accounts of the operator's namespace do: tests compare it with their roles."""


class Unavailable(Exception):
    """This machine lacks what a control plane needs; the text says what."""


def find_programs() -> dict[str, Path]:
    """Returns the path of each program, building those that are missing."""
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/nonexistent")
    found = {name: assets / name for name in PROGRAMS if (assets / name).exists()}
    if missing := [name for name in PROGRAMS if name not in found]:
        script = ROOT / "hack" / "kubernetes" / "build.sh"
        done = subprocess.run([script, *missing], check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode == 3:
            raise Unavailable(f"{', '.join(missing)}: neither in KUBEBUILDER_ASSETS nor buildable (there is no Go)")
        if done.returncode:
            raise RuntimeError(f"hack/kubernetes/build.sh failed with {done.returncode}")
        folder = Path(done.stdout.strip())
        found |= {name: folder / name for name in missing}
    found["etcd"] = _find_etcd(assets)
    return found


def _find_etcd(assets: Path) -> Path:
    if (assets / "etcd").exists():
        return assets / "etcd"
    if path := shutil.which("etcd"):
        return Path(path)
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "-y", "--no-install-recommends", "etcd-server"]
        for arguments in (install, ["update"], install):
            done = subprocess.run(["apt-get", *arguments], env=environment, check=False, capture_output=True)
            if arguments is install and not done.returncode:
                break
        if path := shutil.which("etcd"):
            return Path(path)
    raise Unavailable("etcd: neither in KUBEBUILDER_ASSETS nor on PATH (Debian: apt-get install etcd-server)")


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass
class ControlPlane:
    """A running control plane.

    ``tokens`` are static bearer tokens by user; ``admin`` is in ``system:masters``.
    """

    folder: Path
    programs: dict[str, Path]
    url: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _apiserver: tuple[list[str | Path], str] | None = None

    @property
    def ca_file(self) -> Path:
        """The certificate that signs the API server's (itself: it is self-signed)."""
        return self.folder / "serving" / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of the administrator."""
        return self.folder / "admin.kubeconfig"

    def start(self) -> None:
        """Starts everything and returns when the API server is ready."""
        client_port, peer_port, api_port, manager_port, scheduler_port = free_ports(5)
        self.url = f"https://127.0.0.1:{api_port}"
        self._make_keys()
        (self.folder / "audit.yaml").write_text(_AUDIT_POLICY)
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        self._write_kubeconfig()
        etcd = f"http://127.0.0.1:{client_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self._run(
            "etcd",
            [
                "--name=one",
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=one={peer}",
                "--unsafe-no-fsync",
            ],
        )
        key = self.folder / "service-account.key"
        self._run(
            "kube-apiserver",
            [
                f"--etcd-servers={etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={api_port}",
                f"--cert-dir={self.folder / 'serving'}",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--allow-privileged=true",
                "--enable-aggregator-routing=true",
                "--api-audiences=https://kubernetes.default.svc",
                "--profiling=false",
                f"--audit-policy-file={self.folder / 'audit.yaml'}",
                f"--audit-log-path={self.folder / 'audit.log'}",
                "--feature-gates=WatchList=false",
                "--advertise-address=10.255.255.254",
                "--endpoint-reconciler-type=none",
            ],
        )
        self._await_ready()
        common = [
            f"--kubeconfig={self.kubeconfig}",
            f"--authentication-kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
        ]
        common += [f"--authorization-kubeconfig={self.kubeconfig}", "--bind-address=127.0.0.1", "--profiling=false"]
        self._run(
            "kube-controller-manager",
            [
                *common,
                f"--service-account-private-key-file={key}",
                "--use-service-account-credentials=true",
                f"--root-ca-file={self.ca_file}",
                f"--secure-port={manager_port}",
                # Nodes of these tests are objects without a kubelet, so nobody renews their leases.
                "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,-cloud-node-lifecycle-controller",
                "--kube-api-qps=200",
                "--kube-api-burst=400",
            ],
        )
        self._run(
            "kube-scheduler", [*common, f"--secure-port={scheduler_port}", "--kube-api-qps=200", "--kube-api-burst=400"]
        )

    def stop(self) -> None:
        """Ends everything that was started, the last first."""
        for process in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in reversed(self._running):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()

    def pids(self) -> dict[str, int]:
        """Returns the process of each program."""
        return {Path(str(process.args[0])).name: process.pid for process in self._running}  # type: ignore[index]

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the administrator."""
        return subprocess.run(
            [
                self.programs["kubectl"],
                f"--kubeconfig={self.kubeconfig}",
                f"--cache-dir={self.folder / 'cache'}",
                *arguments,
            ],
            input=stdin,
            check=check,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def install_crds(self, folder: Path) -> None:
        """Installs the CRDs and returns when they are served."""
        for path in sorted(folder.iterdir()):
            crd = yaml.safe_load(path.read_text())
            self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        deadline = time.monotonic() + 30
        for plural in ("modelweights", "nodecaches"):
            while True:
                try:
                    self.request("GET", f"/apis/tonnage.dev/v1alpha1/{plural}")
                    break
                except urllib.error.HTTPError as error:
                    error.close()
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    def audited(self, user: str) -> list[dict[str, Any]]:
        """Returns what a service account of the operator's namespace did, from the audit log."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        wanted = f"system:serviceaccount:tonnage-system:{user}"
        return [event for event in map(json.loads, lines) if event["user"]["username"] == wanted]

    def request(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Any:
        """Sends one request as the administrator and returns the answer's JSON.

        Raises:
            urllib.error.HTTPError: The server refused; its body is in ``fp``.
        """
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", content_type)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return json.loads(answer.read() or b"null")

    def _run(self, program: str, arguments: list[str]) -> None:
        log = (self.folder / f"{program}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [self.programs[program], *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._running.append(process)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            if self._running[-1].poll() is not None:
                raise RuntimeError(f"The API server ended:\n{(self.folder / 'kube-apiserver.log').read_text()[-4000:]}")
            try:
                self.request("GET", "/readyz?verbose=0")
            except json.JSONDecodeError:
                return
            except (OSError, urllib.error.URLError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _make_keys(self) -> None:
        subprocess.run(
            ["openssl", "genrsa", "-out", self.folder / "service-account.key", "2048"], check=True, capture_output=True
        )

    def _write_kubeconfig(self) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        }
        self.kubeconfig.write_text(json.dumps(config))
