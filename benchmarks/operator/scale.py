"""Measures the controller with many objects and nodes: 20 ModelWeights on 1,000 nodes with peers, on one machine.

    make bench-operator BENCH_ARGS='--models 20 --nodes 1000 --idle 600 --out docs/performance'
    make bench-operator BENCH_ARGS='--recorded --idle 30'

The control plane is real, the nodes are only Node objects with the pod of a peer each, and their loaders end at once.
The controller runs as in production, in its own process. When all objects have converged, it is observed, restarted and
observed again. Then one more model is loaded on all nodes, whose loaders stay, report their progress and ask for peers.
With --recorded the first models are not loaded: their records are written, which takes a minute instead of forty.
Prints a line of JSON: the time to converge, the controller's peak memory and requests, writes for each load, while
nothing happens and after the restart, the times of answers to loaders, and the processor time of every process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
from records import write_records

from operator_support.control_plane import ControlPlane, find_programs
from operator_support.harness import WITH_PEERS, ControllerProcess, OperatorHarness
from support.ports import free_ports
from support.repository import ROOT
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMESPACE = "scale"
_TICKS = os.sysconf("SC_CLK_TCK")
_TEMPLATE = """\
# The controller with many nodes

`make bench-operator`: {models} objects on {nodes:,} nodes with a ready peer each, `maxConcurrentNodes: {concurrent}`.
The control plane is real and shares {host} with all else; the nodes' loaders end at once. Each of
{loaders:,} loaders sends its reports over TLS with its pod's token, from an address of its own: progress every 2
seconds on one connection, the question for peers every 5 on another.

| | measured | asked for |
|---|---:|---:|
{rows}

A load can't do with less than three writes: its Job is created and deleted, and its result is recorded in the node's
`NodeCache`. Measured for each load: {kinds}.
"""
_LEAST_WRITES = {"create jobs": 1, "update nodecaches/status": 1, "delete jobs": 1}
"""What a load can't do without: its Job is created and deleted, and its result is recorded."""


def _scrape_requests(controller: ControllerProcess) -> dict[str, int]:
    """Returns the controller's requests to the API server, by verb, resource and code."""
    counts: dict[str, int] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{controller.health_port}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            name, brace, remainder = line.partition("{")
            if name == "tonnage_api_requests_total" and brace:
                labels, _, value = remainder.partition("} ")
                found = dict(part.split("=", 1) for part in labels.replace('"', "").split(","))
                counts[f"{found['verb']} {found['resource']} {found['code']}"] = int(float(value))
    return dict(sorted(counts.items()))


def _writes(requests: dict[str, int]) -> int:
    """Returns the number of writes. Reviews of tokens are created, too, but nothing is stored."""
    verbs = ("create", "apply", "update", "patch", "delete")
    return sum(count for what, count in requests.items() if what.startswith(verbs) and "reviews" not in what)


def _writes_for_each_load(requests: dict[str, int], loads: int) -> dict[str, float]:
    """Returns the writes for each load: all, the least possible, and by verb and resource."""
    found: dict[str, float] = {"sum": _writes(requests), "least": loads * sum(_LEAST_WRITES.values())}
    for what, count in requests.items():
        verb, resource, _code = what.split(" ")
        if _writes({what: count}):
            found[f"{verb} {resource}"] = found.get(f"{verb} {resource}", 0) + count
    return {what: round(count / loads, 3) for what, count in found.items()}


def _count_warm(control_plane: ControlPlane) -> tuple[int, int]:
    """Returns the numbers of warm nodes, summed over objects, and of converged objects."""
    items = control_plane.request("GET", f"/apis/tonnage.dev/v1alpha1/namespaces/{_NAMESPACE}/modelweights")["items"]
    warm = sum(each.get("status", {}).get("nodes", {}).get("warm", 0) for each in items)
    done = [each for each in items if (_condition(each, "Progressing"), _condition(each, "Warm")) == ("False", "True")]
    return warm, len(done)


def _condition(item: dict[str, Any], kind: str) -> str:
    found = [each["status"] for each in item.get("status", {}).get("conditions") or () if each["type"] == kind]
    return found[0] if found else ""


def _processor_seconds(pids: dict[str, int]) -> dict[str, float]:
    """Returns the CPU seconds that processes have used, by name."""
    seconds = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds[name] = round((int(fields[11]) + int(fields[12])) / _TICKS, 1)
    return seconds


def _used(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: round(after[name] - seconds, 1) for name, seconds in before.items()}


def _peak_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


@contextlib.contextmanager
def _kubelets(control_plane: ControlPlane) -> Iterator[int]:
    command = [sys.executable, str(Path(__file__).parent / "fake_kubelets.py"), str(control_plane.kubeconfig)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])})
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _cluster(nodes: int) -> Iterator[tuple[ControlPlane, OperatorHarness, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        control_plane = ControlPlane(Path(folder), find_programs())
        try:
            control_plane.start()
            control_plane.install_crds(ROOT / "crds")
            for name in ("tonnage-system", _NAMESPACE):
                control_plane.kubectl("create", "namespace", name)
            fleet = OperatorHarness(control_plane, _NAMESPACE)
            for node in fleet.add_nodes(*(f"n{index:04d}" for index in range(nodes))):
                _add_peer(control_plane, node)
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": WITH_PEERS["peers"]["secret"]}}
            control_plane.request("POST", "/api/v1/namespaces/tonnage-system/secrets", secret)
            yield control_plane, fleet, Path(folder)
        finally:
            control_plane.stop()


def _add_peer(control_plane: ControlPlane, node: str) -> None:
    """Creates the pod of a node's peer, as the DaemonSet would; the simulated kubelet makes it ready."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"peer-{node}", "labels": {names.ROLE: names.ROLE_PEER}},
        "spec": {"nodeName": node, "containers": [{"name": "peer", "image": "peer"}]},
    }
    control_plane.request("POST", "/api/v1/namespaces/tonnage-system/pods", pod)


def _converge(control_plane: ControlPlane, fleet: OperatorHarness, options: argparse.Namespace) -> tuple[float, int]:
    """Creates the objects. Returns the seconds until all have converged, and the number of those that have."""
    started = time.monotonic()
    for index in range(options.models):
        source = {"s3": {"bucket": f"models-{index}"}}
        fleet.create({"source": source, "placement": {"maxConcurrentNodes": options.concurrent}}, name=f"m{index}")
    done = 0
    while done < options.models and time.monotonic() - started < options.limit:
        time.sleep(5)
        warm, done = _count_warm(control_plane)
        print(f"{time.monotonic() - started:.0f} s: {warm} loads, {done} objects converged", file=sys.stderr)
    return time.monotonic() - started, done


def _record(control_plane: ControlPlane, fleet: OperatorHarness, options: argparse.Namespace) -> tuple[float, int]:
    """Creates the objects as ``_converge`` does, on nodes that have them. Returns the same."""
    started = time.monotonic()
    names_of_models = [f"m{index}" for index in range(options.models)]
    for index, name in enumerate(names_of_models):
        source = {"s3": {"bucket": f"models-{index}"}}
        fleet.create({"source": source, "placement": {"prewarm": "None"}}, name=name)
    for name in names_of_models:
        fleet.wait_for_condition("Resolved", name=name, timeout=120)
    write_records(control_plane.kubeconfig, [fleet.get(name) for name in names_of_models], "2026-01-01T00:00:00Z")
    print(f"{time.monotonic() - started:.0f} s: the records are written", file=sys.stderr)
    for name in names_of_models:
        fleet.patch({"placement": {"prewarm": "AllMatching"}}, name=name)
    for name in names_of_models:
        fleet.wait_for_condition("Warm", "True", "AllNodesWarm", name=name, timeout=options.limit)
    return time.monotonic() - started, len(names_of_models)


def _count_running(control_plane: ControlPlane) -> int:
    selector = f"labelSelector={names.ROLE}%3D{names.ROLE_LOAD}&fieldSelector=status.phase%3DRunning"
    return len(control_plane.request("GET", f"/api/v1/namespaces/{_NAMESPACE}/pods?{selector}")["items"])


def _measure_answers(
    control_plane: ControlPlane,
    fleet: OperatorHarness,
    controller: ControllerProcess,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Loads one more model on all nodes at the same time, and measures how its loaders are answered."""
    placement = {"maxConcurrentNodes": options.nodes}
    fleet.create({"source": {"s3": {"bucket": "held"}}, "placement": placement}, name="held")
    deadline = time.monotonic() + options.limit
    while (running := _count_running(control_plane)) < options.nodes and time.monotonic() < deadline:
        print(f"{running} loaders run", file=sys.stderr)
        time.sleep(5)
    before = _scrape_requests(controller)
    command = [sys.executable, str(Path(__file__).parent / "fake_loaders.py"), str(control_plane.kubeconfig)]
    command += [_NAMESPACE, str(controller.report_port), str(folder / "ca.crt"), str(options.report_seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    used = _processor_seconds({"controller": controller.pid})
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds = _used(used, _processor_seconds({"controller": controller.pid}))["controller"]
    writes = _writes(_scrape_requests(controller)) - _writes(before)
    return {**json.loads(output), "controller_processor_seconds": seconds, "writes": writes}


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    """Writes a certificate for localhost and its key, and the CA as ca.crt."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    return folder / "tls.crt", folder / "tls.key"


def _observe(controller: ControllerProcess, seconds: float) -> dict[str, Any]:
    """Returns the controller's writes and processor time while nothing happens."""
    used, before = _processor_seconds({"controller": controller.pid}), _writes(_scrape_requests(controller))
    time.sleep(seconds)
    after = _writes(_scrape_requests(controller))
    spent = _used(used, _processor_seconds({"controller": controller.pid}))["controller"]
    return {"seconds": seconds, "writes": after - before, "processor_seconds": spent}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    with _cluster(options.nodes) as (control_plane, fleet, folder), _kubelets(control_plane) as kubelets:
        health_port, report_port = free_ports(2)
        controller = ControllerProcess(
            control_plane,
            folder,
            health_port=health_port,
            report_port=report_port,
            certificate=_make_certificate(folder),
            **WITH_PEERS,
        )
        with controller:
            pids = {**control_plane.pids(), "kubelets": kubelets, "controller": controller.pid}
            before = _processor_seconds(pids)
            seconds, done = (_record if options.recorded else _converge)(control_plane, fleet, options)
            used = _used(before, _processor_seconds(pids))
            requests = _scrape_requests(controller)
            time.sleep(15)  # the last counts of statuses
            idle = _observe(controller, options.idle)
            peak = _peak_mib(controller.pid)
        with controller:
            time.sleep(min(90.0, options.idle))
            again = _writes(_scrape_requests(controller))
            answers = (
                _measure_answers(control_plane, fleet, controller, folder, options) if options.report_seconds else None
            )
            peak = max(peak, _peak_mib(controller.pid))
    loads = options.models * options.nodes
    counted = not options.recorded
    return {
        "host": f"{os.cpu_count()} cores with a load of {os.getloadavg()[0]:.0f}",
        "models": options.models,
        "nodes": options.nodes,
        "max_concurrent_nodes": options.concurrent,
        "models_done": done,
        "seconds": round(seconds, 1),
        "loads_a_second": round(loads / seconds, 1) if counted and done == options.models else None,
        "controller_peak_mib": peak,
        "processor_seconds": used,
        "writes": _writes(requests),
        "writes_a_load": _writes_for_each_load(requests, loads) if counted else None,
        "requests": requests,
        "idle": idle,
        "answers": answers,
        "writes_of_a_restarted_controller": again,
    }


def page(result: dict[str, Any]) -> str:
    """Returns the text of the page in docs/performance."""
    writes, answers = result["writes_a_load"], result["answers"] or {"loaders": 0, "milliseconds": {}, "writes": 0}
    kinds = ", ".join(f"{count} `{what}`" for what, count in writes.items() if what not in {"sum", "least"})
    rows = [
        (f"time until all {result['models'] * result['nodes']:,} loads are done", f"{result['seconds']:,.0f} s", ""),
        ("the controller's peak memory", f"{result['controller_peak_mib']} MiB", "≤ 512 MiB"),
        ("the controller's processor time", f"{result['processor_seconds']['controller']} s", ""),
        ("writes for each load", writes["sum"], f"{writes['least']} at least"),
        (f"writes in {result['idle']['seconds']:.0f} s without changes", result["idle"]["writes"], "0"),
        ("processor time in these", f"{result['idle']['processor_seconds']} s", ""),
        ("writes of a restarted controller", result["writes_of_a_restarted_controller"], "0"),
    ]
    for kind, times in answers["milliseconds"].items():
        what = f"answers to `{kind}`: p50, p99, slowest"
        rows.append((what, f"{times['p50']}, {times['p99']}, {times['p100']} ms", "p99 ≤ 50 ms"))
    rows.append(("writes meanwhile", answers["writes"], ""))
    return _TEMPLATE.format(
        models=result["models"],
        nodes=result["nodes"],
        concurrent=result["max_concurrent_nodes"],
        host=result["host"],
        loaders=answers["loaders"],
        rows="\n".join(f"| {what} | {value} | {bound} |" for what, value, bound in rows),
        kinds=kinds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__.splitlines()[0]} The default takes about 45 minutes on 2 cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", type=int, default=20, help="number of ModelWeights")
    parser.add_argument("--nodes", type=int, default=1000, help="number of nodes; every node loads all models")
    parser.add_argument("--concurrent", type=int, default=4, help="maxConcurrentNodes of each ModelWeights")
    parser.add_argument("--limit", type=float, default=3600, help="timeout of a stage in seconds")
    parser.add_argument("--recorded", action="store_true", help="write the models' records instead of loading them")
    parser.add_argument("--idle", type=float, default=600, help="seconds for which an idle controller is observed")
    parser.add_argument("--report-seconds", type=float, default=60, help="seconds of reports of loaders; 0: none")
    parser.add_argument("--out", type=Path, help="folder for the file operator-scale.json")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.recorded and options.out:
        parser.error("the page shows loads: leave out --recorded or --out")
    result = run(options)
    print(json.dumps(result))
    if options.out:
        (options.out / "operator-scale.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "operator-scale.md").write_text(page(result))


if __name__ == "__main__":
    main()
