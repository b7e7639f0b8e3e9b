"""Measures how long a fleet takes to get a model, with peers and with the bucket alone, over shaped links.

Each node is a network namespace with one link, shaped in both directions; so is the bucket, which nginx serves. All
loads start at the same time, as processes, and all files are compared afterwards. The limit is the model's size over
one link. `make bench-fleet` runs it with the defaults: 8 nodes, 512 MB, 240 Mb/s, 5 runs of each in turn. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from network import Host, network

from support.tensors_writer import build_tensors_file, raw_tensors
from tonnage.contract import HttpSource, Identity, Limits, PeerAccess, Plan, Reporting, encode_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SERVER_NAME = "tonnage-peer.bench.svc"
TENSOR_BYTES = 8_000_000
KEY = "llama.tensors"
RUN_SECONDS = 900

NGINX = """
daemon off; worker_processes 1; pid {run}/nginx.pid; error_log stderr crit; user root;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; sendfile_max_chunk 512k; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {run}/b; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u;
    scgi_temp_path {run}/s;
    server {{ listen {address}:80; root {root}; }}
}}
"""


@dataclass(frozen=True)
class Run:
    """One run: seconds until each node had the model, and what the bucket's link has sent."""

    seconds: list[float]
    bucket_bytes: int
    peer_bytes: int
    problems: list[str]

    @property
    def all_warm(self) -> float:
        """Seconds until all nodes had the model."""
        return max(self.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rate", type=int, default=240, help="megabits per second of each link")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for fleet.json")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("network namespaces need root")
    with tempfile.TemporaryDirectory(prefix="tonnage-fleet-", dir="/dev/shm") as folder:
        runs = measure(Path(folder), options)
    result = summary(runs, options)
    print(json.dumps(result, indent=1))
    if options.out:
        (options.out / "fleet.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[Run]]:
    """Runs both ways in turn, and returns the runs of each."""
    size = make_model(folder / "bucket", options.megabytes * 1_000_000)
    print(f"model: {size:,} bytes", file=sys.stderr)
    runs: dict[str, list[Run]] = {"peers": [], "bucket": []}
    for _ in range(options.runs):
        for way, found in runs.items():
            names = ["controller", "bucket", *(f"node{number}" for number in range(options.nodes))]
            with network(names, f"{options.rate}mbit") as hosts:
                run = run_once(folder, hosts, with_peers=way == "peers")
            found.append(run)
            print(f"{way}: {run.all_warm:.1f} s, bucket {run.bucket_bytes / size:.2f} models", file=sys.stderr)
            for problem in run.problems:
                print(f"  {problem}", file=sys.stderr)
    return runs


def make_model(root: Path, size: int) -> int:
    """Writes a model of tensors of 8 MB, and returns its size."""
    root.mkdir()
    generator = torch.Generator().manual_seed(1)
    count = max(1, size // TENSOR_BYTES)
    tensors = {
        f"layers.{number}.weight": torch.randint(0, 256, (1000, TENSOR_BYTES // 1000), generator=generator).byte()
        for number in range(count)
    }
    (root / KEY).write_bytes(build_tensors_file(raw_tensors(tensors)).data)
    return (root / KEY).stat().st_size


def run_once(folder: Path, hosts: dict[str, Host], *, with_peers: bool) -> Run:
    """Has all nodes load at the same time, and compares what they have."""
    work = Path(tempfile.mkdtemp(dir=folder))
    nodes = {name: host for name, host in hosts.items() if name.startswith("node")}
    try:
        with contextlib.ExitStack() as running:
            running.enter_context(_bucket(work, folder / "bucket", hosts["bucket"]))
            if with_peers:
                _start_peers(running, work, hosts, nodes)
            before = hosts["bucket"].sent_bytes()
            reports, seconds = _load_all(work, hosts, nodes, with_peers=with_peers)
            sent = hosts["bucket"].sent_bytes() - before
        problems = [json.dumps(each) for each in reports if each.get("outcome") != "loaded" or each["dropped_peers"]]
        digests = {_digest(work / name / "memory") for name in nodes}
        if len(digests) != 1:
            raise RuntimeError("the nodes have different bytes")
        return Run(seconds, sent, sum(each["peer_bytes"] for each in reports), problems)
    finally:
        shutil.rmtree(work)


@contextlib.contextmanager
def _process(command: list[str], *, stderr: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'loader'}:{REPOSITORY / 'tests'}"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def _bucket(work: Path, root: Path, host: Host) -> Iterator[None]:
    run = work / "nginx"
    run.mkdir()
    (run / "nginx.conf").write_text(NGINX.format(run=run, root=root, address=host.address))
    with _process(host.command("nginx", "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf"))):
        while not (run / "nginx.pid").exists():
            time.sleep(0.02)
        yield


def _start_peers(running: contextlib.ExitStack, work: Path, hosts: dict[str, Host], nodes: dict[str, Host]) -> None:
    secrets = work / "secrets"
    secrets.mkdir()
    (secrets / "ticket-key").write_bytes(os.urandom(32))
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request += ["-days", "2", "-subj", f"/CN={SERVER_NAME}", "-addext", f"subjectAltName=DNS:{SERVER_NAME}"]
    request += ["-keyout", str(secrets / "tls.key"), "-out", str(secrets / "tls.crt")]
    subprocess.run(request, check=True, capture_output=True)
    settings = work / "controller.json"
    settings.write_text(
        json.dumps(
            {
                "address": hosts["controller"].address,
                "key": str(secrets / "ticket-key"),
                "certificate": str(secrets / "tls.crt"),
                "nodes": {name: host.address for name, host in nodes.items()},
            }
        )
    )
    controller = hosts["controller"].command(sys.executable, str(HERE / "controller.py"), str(settings))
    running.enter_context(_process(controller))
    servers = []
    for name, host in nodes.items():
        media = work / name / "memory"
        media.mkdir(parents=True)
        command = [sys.executable, "-m", "tonnage", "peer", "serve", "--secrets", str(secrets), "--processes", "1"]
        command += ["--media", f"memory={media}", "--run-dir", str(work / name / "run"), "--address", host.address]
        server = running.enter_context(_process(host.command(*command), stderr=subprocess.PIPE))
        servers.append(server)
    for server in servers:
        assert server.stderr is not None
        line = server.stderr.readline()
        if not line.startswith(b"serving"):
            raise RuntimeError(f"a peer did not start: {line.decode()}")


def _load_all(
    work: Path, hosts: dict[str, Host], nodes: dict[str, Host], *, with_peers: bool
) -> tuple[list[dict[str, Any]], list[float]]:
    plan = Plan(
        sources=(HttpSource(urls=(f"http://{hosts['bucket'].address}/{KEY}",)),),
        limits=Limits(workers=1),
        reporting=Reporting(url=f"http://{hosts['controller'].address}:8080/v1/reports") if with_peers else None,
        peers=PeerAccess(server_name=SERVER_NAME) if with_peers else None,
        identity=Identity(namespace="bench", name="model", uid="model", generation=1) if with_peers else None,
    )
    (work / "plan.json").write_bytes(encode_plan(plan))
    started = time.monotonic()
    processes = {}
    for name, host in nodes.items():
        cache = work / name / "memory"
        command = ["env", f"TONNAGE_NODE={name}", sys.executable, "-m", "tonnage", "load"]
        command += ["--plan", str(work / "plan.json"), "--cache", str(cache), "--progress", "off"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "loader")}
        output = (work / f"{name}.out").open("wb")
        with output:
            processes[name] = subprocess.Popen(
                host.command(*command), env=environment, stdin=subprocess.DEVNULL, stdout=output
            )
    seconds: dict[str, float] = {}
    try:
        while len(seconds) < len(processes):
            for name, process in processes.items():
                if name not in seconds and process.poll() is not None:
                    seconds[name] = time.monotonic() - started
            if time.monotonic() - started > RUN_SECONDS:
                raise RuntimeError("a load did not end")
            time.sleep(0.02)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
    reports = [json.loads((work / f"{name}.out").read_text().rstrip("\n").rpartition("\n")[2]) for name in nodes]
    return reports, list(seconds.values())


def _digest(cache: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(cache.glob("*/model/**/*")):
        if path.is_file():
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def summary(runs: dict[str, list[Run]], options: argparse.Namespace) -> dict[str, Any]:
    """Returns medians and ranges, with the limit."""
    size = options.megabytes * 1_000_000
    limit = size * 8 / (options.rate * 1e6)

    def row(found: list[Run]) -> dict[str, Any]:
        seconds = [run.all_warm for run in found]
        models = [run.bucket_bytes / size for run in found]
        return {
            "all_warm_seconds": round(statistics.median(seconds), 2),
            "range_seconds": [round(min(seconds), 2), round(max(seconds), 2)],
            "times_the_limit": round(statistics.median(seconds) / limit, 2),
            "bucket_models": round(statistics.median(models), 2),
            "bucket_models_range": [round(min(models), 2), round(max(models), 2)],
            "seconds_of_nodes": [[round(each, 2) for each in sorted(run.seconds)] for run in found],
        }

    return {
        "nodes": options.nodes,
        "megabytes": options.megabytes,
        "megabits_per_second": options.rate,
        "runs": options.runs,
        "cores": os.cpu_count(),
        "limit_seconds": round(limit, 2),
        **{way: row(found) for way, found in runs.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
