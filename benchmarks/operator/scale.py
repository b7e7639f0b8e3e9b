"""How the controller does with many objects and nodes: 100 ModelWeights on 200 nodes, on one machine.

    PYTHONPATH=operator:loader:tests python benchmarks/operator/scale.py --models 100 --nodes 200

A real control plane; nodes are objects, and their loaders end at once. Writes a JSON line with the time to converge,
the peak memory, the controller's requests by verb and resource, and what it writes when nothing happens.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from operator_support.control_plane import ROOT, ControlPlane, find_programs
from operator_support.fleet import ControllerThread, Fleet, admin_access, installation
from operator_support.kubelet import Kubelet, Loaders


def _requests(controller: ControllerThread) -> dict[str, int]:
    counts: dict[str, int] = {}
    for metric in controller.controller.metrics.requests.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                key = f"{sample.labels['verb']} {sample.labels['resource']} {sample.labels['code']}"
                counts[key] = int(sample.value)
    return counts


def _warm(fleet: Fleet, plane: ControlPlane) -> tuple[int, int]:
    items = plane.request("GET", f"/apis/tonnage.dev/v1alpha1/namespaces/{fleet.namespace}/modelweights")["items"]
    nodes = [each.get("status", {}).get("nodes", {}).get("warm", 0) for each in items]
    done = [each for each in items if _condition(each, "Progressing") == "False" and _condition(each, "Warm") == "True"]
    return sum(nodes), len(done)


def _condition(item: dict[str, Any], kind: str) -> str:
    found = [each["status"] for each in item.get("status", {}).get("conditions") or () if each["type"] == kind]
    return found[0] if found else ""


def run(models: int, nodes: int, limit: float, concurrent: int) -> dict[str, Any]:
    """Runs one convergence and returns what it took."""
    with tempfile.TemporaryDirectory() as folder:
        plane = ControlPlane(Path(folder), find_programs())
        try:
            plane.start()
            plane.install_crds(ROOT / "crds")
            for name in ("tonnage-system", "scale"):
                plane.kubectl("create", "namespace", name)
            fleet = Fleet(plane, "scale")
            fleet.add_nodes(*(f"n{index:03d}" for index in range(nodes)))
            loaders = Loaders()
            with Kubelet(plane, loaders, every=0.5), ControllerThread(admin_access(plane), installation()) as running:
                started = time.monotonic()
                for index in range(models):
                    source = {"s3": {"bucket": f"models-{index}"}}
                    fleet.create({"source": source, "placement": {"maxConcurrentNodes": concurrent}}, name=f"m{index}")
                warm, done = 0, 0
                while done < models and time.monotonic() - started < limit:
                    time.sleep(5)
                    warm, done = _warm(fleet, plane)
                    print(f"{time.monotonic() - started:.0f} s: {warm} warm, {done} done", file=sys.stderr)
                seconds = time.monotonic() - started
                requests = _requests(running)
                time.sleep(10)
                before = running.writes()
                running.loop.call_soon_threadsafe(running.wake_all)
                time.sleep(15)
                idle = running.writes() - before
                return {
                    "models": models,
                    "nodes": nodes,
                    "max_concurrent_nodes": concurrent,
                    "models_done": done,
                    "loads": sum(role == "load" for role, _ in loaders.ended),
                    "seconds": round(seconds, 1),
                    "peak_memory_mib_of_controller_and_harness": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    // 1024,
                    "requests": requests,
                    "writes_when_everything_is_looked_at_again": idle,
                }
        finally:
            plane.stop()


def main() -> None:
    """Parses the command line and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=50, help="maxConcurrentNodes of each object")
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which it is given up")
    options = parser.parse_args()
    print(json.dumps(run(options.models, options.nodes, options.limit, options.concurrent)))


if __name__ == "__main__":
    main()
