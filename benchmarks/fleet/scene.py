"""A fleet in network namespaces: the bucket, the controller's part, and each node's peer and loads, as processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tonnage.contract import HttpSource, Identity, Limits, PeerAccess, Plan, Reporting, encode_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from network import Network

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SERVER_NAME = "tonnage-peer.bench.svc"
KEY = "llama.tensors"
LOAD_SECONDS = 900.0
KINDS = ("head", "index", "headers", "data")
HEADERS_BYTES = 64 << 10
"""A shorter request is for headers only."""

NGINX = """
daemon off; worker_processes 1; pid {run}/nginx.pid; error_log stderr crit; user root;
events {{ worker_connections 1024; }}
http {{
    log_format requests '$request_method $http_range'; access_log {run}/requests.log requests;
    sendfile on; sendfile_max_chunk 512k; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {run}/b; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u;
    scgi_temp_path {run}/s;
    server {{ listen {address}:80; root {root}; }}
}}
"""


@dataclass
class Loads:
    """How loads ended: by node, the report and the seconds since they began. Without those that were given up."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Scene:
    """The processes of one run. Use it as a context manager.

    Args:
        work: An empty folder.
        root: What the bucket serves.
        network: The hosts.
    """

    def __init__(self, work: Path, root: Path, network: Network) -> None:
        self.work = work
        self.network = network
        self.nodes = {name: host for name, host in network.hosts.items() if name.startswith("node")}
        self.secrets = work / "secrets"
        self.shares_headers = True
        self._root = root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        host = self.network.hosts["bucket"]
        run = self.work / "nginx"
        run.mkdir()
        (run / "nginx.conf").write_text(NGINX.format(run=run, root=self._root, address=host.address))
        command = host.command("nginx", "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf"))
        self._processes["bucket"] = _start(command)
        while not (run / "nginx.pid").exists():
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.terminate()
            process.wait(60)

    def count_requests(self) -> dict[str, int]:
        """Returns how many requests the bucket has had, by kind."""
        found = dict.fromkeys(KINDS, 0)
        for line in (self.work / "nginx" / "requests.log").read_text().splitlines():
            method, _, range_ = line.partition(" ")
            found[_kind(method, range_)] += 1
        return found

    # -- the controller and the peers

    def start_controller(self) -> None:
        """Starts what names peers and signs tickets, and makes the peers' secrets."""
        self.secrets.mkdir()
        (self.secrets / "ticket-key").write_bytes(os.urandom(32))
        request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        request += ["-days", "2", "-subj", f"/CN={SERVER_NAME}", "-addext", f"subjectAltName=DNS:{SERVER_NAME}"]
        request += ["-keyout", str(self.secrets / "tls.key"), "-out", str(self.secrets / "tls.crt")]
        subprocess.run(request, check=True, capture_output=True)
        host = self.network.hosts["controller"]
        settings = {
            "address": host.address,
            "key": str(self.secrets / "ticket-key"),
            "certificate": str(self.secrets / "tls.crt"),
            "nodes": {name: node.address for name, node in self.nodes.items()},
            "shares_headers": self.shares_headers,
        }
        (self.work / "controller.json").write_text(json.dumps(settings))
        script = str(HERE / "controller.py")
        self._processes["controller"] = _start(host.command(sys.executable, script, str(self.work / "controller.json")))

    def start_peers(self, names: Sequence[str], *options: str) -> None:
        """Starts the peers of nodes, and waits until they accept connections."""
        for name in names:
            host = self.nodes[name]
            self.cache(name).mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "tonnage", "peer", "serve", "--secrets", str(self.secrets)]
            command += ["--processes", "1", "--media", f"memory={self.cache(name)}", "--address", host.address]
            command += ["--run-dir", str(self.work / name / "run"), *options]
            self._processes[name] = _start(host.command(*command), stderr=subprocess.PIPE)
        for name in names:
            stream = self._processes[name].stderr
            line = stream.readline() if stream is not None else b""
            if not line.startswith(b"serving"):
                raise RuntimeError(f"a peer did not start: {line.decode()}")

    def kill_peer(self, name: str) -> None:
        """Kills a node's peer with its nginx, without a chance to finish anything."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    # -- loads

    def cache(self, name: str) -> Path:
        """Returns the cache of a node."""
        return self.work / name / "memory"

    def entry(self, name: str) -> Path:
        """Returns the entry on a node."""
        (found,) = (path for path in self.cache(name).iterdir() if (path / "model").is_dir())
        return found

    def plan(self, *, with_peers: bool, key: str = KEY) -> Plan:
        """Returns the plan of all nodes."""
        controller = self.network.hosts["controller"].address
        return Plan(
            sources=(HttpSource(urls=(f"http://{self.network.hosts['bucket'].address}/{key}",)),),
            limits=Limits(workers=1),
            reporting=Reporting(url=f"http://{controller}:8080/v1/reports") if with_peers else None,
            peers=PeerAccess(server_name=SERVER_NAME) if with_peers else None,
            identity=Identity(namespace="bench", name="model", uid="model", generation=1) if with_peers else None,
        )

    def load(
        self,
        names: Sequence[str],
        plan: Plan,
        *,
        event: Callable[[], None] | None = None,
        lost: Sequence[str] = (),
    ) -> Loads:
        """Has nodes load at the same time.

        Args:
            names: The nodes.
            plan: What they load.
            event: Called once, when the slowest of them is expected to have about a third.
            lost: Nodes that are not waited for.

        Raises:
            RuntimeError: A load did not end.
        """
        path = self.work / "plan.json"
        path.write_bytes(encode_plan(plan))
        started = time.monotonic()
        running = {name: self._start_load(name, path) for name in names}
        found = Loads()
        try:
            while not found.seconds.keys() >= set(names) - set(lost):
                for name, process in running.items():
                    if name not in found.seconds and process.poll() is not None:
                        found.seconds[name] = time.monotonic() - started
                if event is not None and self._has_begun(names):
                    event()
                    event = None
                if time.monotonic() - started > LOAD_SECONDS:
                    raise RuntimeError(f"loads did not end: {sorted(set(names) - found.seconds.keys())}")
                time.sleep(0.02)
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
        for name in found.seconds:
            text = (self.work / f"{name}.out").read_text().rstrip("\n")
            found.reports[name] = json.loads(text.rpartition("\n")[2])
        return found

    def _start_load(self, name: str, plan: Path) -> subprocess.Popen[bytes]:
        self.cache(name).mkdir(parents=True, exist_ok=True)
        command = ["env", f"TONNAGE_NODE={name}", sys.executable, "-m", "tonnage", "load", "--plan", str(plan)]
        command += ["--cache", str(self.cache(name)), "--progress", "off"]
        with (self.work / f"{name}.out").open("wb") as output:
            return _start(self.nodes[name].command(*command), stdout=output)

    def _has_begun(self, names: Sequence[str]) -> bool:
        """Returns whether each node has written a third of the model."""
        size = (self._root / KEY).stat().st_size
        return all(_allocated(self.cache(name)) > size / 3 for name in names)

    def digests(self, names: Sequence[str]) -> set[str]:
        """Returns the different contents of nodes' entries."""
        return {_digest(self.cache(name)) for name in names}


def _kind(method: str, range_: str) -> str:
    """Returns the kind of a request: of its metadata, of the index, of headers alone, or of data."""
    if method != "GET" or "=" not in range_:
        return "head"
    first, _, last = range_.partition("=")[2].partition("-")
    if first == "0":
        return "index"
    return "headers" if int(last or 1 << 62) - int(first) < HEADERS_BYTES else "data"


def _start(
    command: list[str], *, stdout: IO[bytes] | None = None, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(str(REPOSITORY / each) for each in ("loader", "operator", "tests")),
    }
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
    )


def _allocated(folder: Path) -> int:
    """Returns the bytes that files below a folder take."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


def _digest(cache: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(cache.glob("*/model/**/*")):
        if path.is_file():
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
