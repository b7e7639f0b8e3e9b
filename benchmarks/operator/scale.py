"""Measures the controller with many objects and nodes: 100 ModelWeights on 200 nodes, on one machine.

    make bench-operator BENCH_ARGS='--models 100 --nodes 200'

The control plane is real, the nodes are only Node objects, and their loaders end immediately. The controller runs as in
production, in its own process. Prints a line of JSON: the time to converge, the controller's peak memory and requests,
the CPU time of every process, and the number of writes of a restarted controller after convergence.
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

from operator_support.control_plane import ControlPlane, find_programs
from operator_support.harness import ControllerProcess, OperatorHarness
from support.ports import free_ports
from support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMESPACE = "scale"
_QUIET = 20.0
"""Seconds for which a restarted controller is observed."""
_TICKS = os.sysconf("SC_CLK_TCK")


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
    verbs = ("create", "apply", "update", "patch", "delete")
    return sum(count for what, count in requests.items() if what.startswith(verbs))


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
            fleet.add_nodes(*(f"n{index:03d}" for index in range(nodes)))
            yield control_plane, fleet, Path(folder)
        finally:
            control_plane.stop()


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


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    with _cluster(options.nodes) as (control_plane, fleet, folder), _kubelets(control_plane) as kubelets:
        controller = ControllerProcess(control_plane, folder, health_port=free_ports(1)[0])
        with controller:
            pids = {**control_plane.pids(), "kubelets": kubelets, "controller": controller.pid}
            before = _processor_seconds(pids)
            seconds, done = _converge(control_plane, fleet, options)
            after = _processor_seconds(pids)
            peak, requests = _peak_mib(controller.pid), _scrape_requests(controller)
        with controller:
            time.sleep(_QUIET)
            again = _writes(_scrape_requests(controller))
    return {
        "models": options.models,
        "nodes": options.nodes,
        "max_concurrent_nodes": options.concurrent,
        "models_done": done,
        "seconds": round(seconds, 1),
        "loads_a_second": round(options.models * options.nodes / seconds, 1) if done == options.models else None,
        "controller_peak_mib": peak,
        "processor_seconds": {name: round(after[name] - before[name], 1) for name in pids},
        "writes": _writes(requests),
        "requests": requests,
        "writes_of_a_restarted_controller": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__.splitlines()[0]} The default takes 25 minutes on 2 cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", type=int, default=100, help="number of ModelWeights")
    parser.add_argument("--nodes", type=int, default=200, help="number of nodes; every node loads all models")
    parser.add_argument("--concurrent", type=int, default=4, help="maxConcurrentNodes of each ModelWeights")
    parser.add_argument("--limit", type=float, default=3600, help="timeout in seconds")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
