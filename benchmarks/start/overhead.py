"""Measures what Tonnage adds to the start of a pod on a warm node, beside containers that do nothing.

A real node: containerd, kubelet, the chart, the images. Each figure is from the request that creates the pod to the
start of its serving process. Forms are interleaved, so that a busy moment meets all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from e2e_support import images, processes
from e2e_support.e2e_cluster import ensure_prerequisites, start_e2e_cluster
from e2e_support.namespace import Namespace
from e2e_support.pods import IDLE_SCRIPT, PYTHON, RESTRICTED_SECURITY_CONTEXT, Pod, server_pod
from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster

_ENDS: Final = [PYTHON, "-IBS", "-c", ""]
_STAYS: Final = [PYTHON, "-IBS", "-c", IDLE_SCRIPT]
FORMS: Final = {
    "plain": "no annotation",
    "init": "an init container that does nothing",
    "native": "the same, and a native sidecar that does nothing",
    "beside": "the init container, and a container beside the server that does nothing",
    "hook": "a native sidecar alone, which does nothing, with a postStart hook that ends at once",
    "Init": "`tonnage.dev/form: Init`",
    "Sidecar": "`tonnage.dev/form: Sidecar`, the default",
    "Completes": "the same, in a pod with `restartPolicy: Never`",
}
"""The forms of pods: those of Tonnage, and equal ones that do nothing."""


def make_pod(form: str, name: str, namespace: str, image: str) -> dict[str, Any]:
    """Returns a server's pod in a form."""
    common = {"image": image, "securityContext": RESTRICTED_SECURITY_CONTEXT}
    ends = {"name": "ends", "command": _ENDS, **common}
    stays = {"name": "stays", "command": _STAYS, **common}
    native = {**stays, "restartPolicy": "Always"}
    hook = {"lifecycle": {"postStart": {"exec": {"command": _ENDS}}}}
    annotations: dict[str, str] = {}
    spec: dict[str, Any] = {}
    others: list[dict[str, Any]] = []
    match form:
        case "Init" | "Sidecar" | "Completes":
            annotations = {names.MODEL: "llama", names.FORM: "Init" if form == "Init" else "Sidecar"}
            spec = {"restartPolicy": "Never"} if form == "Completes" else {}
        case "init" | "beside":
            spec, others = {"initContainers": [ends]}, [stays] if form == "beside" else []
        case "native":
            spec = {"initContainers": [ends, native]}
        case "hook":
            spec = {"initContainers": [{**native, **hook}]}
    pod = server_pod(name, namespace, image, annotations=annotations, **spec)
    pod["spec"]["containers"] += others
    return pod


def start_seconds(namespace: Namespace, name: str, form: str) -> float:
    """Creates a pod, and returns the seconds until its server's process started."""
    body = make_pod(form, name, namespace.name, namespace.e2e.images.loader)
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    namespace.e2e.api.create(body)
    pod = Pod(namespace.e2e, name, namespace.name)
    pod.wait_ready()
    seconds = processes.start_time(pod.pids("server")[0]) - began
    pod.delete()
    return seconds


def measure(e2e: E2ECluster, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each form, in the order of the rounds."""
    namespace = Namespace.create(e2e, "start")
    namespace.create_model()
    start_seconds(namespace, "first", "Sidecar")  # the node is warm afterwards
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    for number, form in itertools.product(range(rounds), FORMS):
        found[form].append(start_seconds(namespace, f"{form.lower()}-{'t' * form[0].isupper()}{number}", form))
        print(f"round {number + 1}, {FORMS[form]}: {found[form][-1]:.2f} s", file=sys.stderr)
    return found


def main() -> None:
    """Runs the benchmark and prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="pods of each form")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    ensure_prerequisites()
    with (
        tempfile.TemporaryDirectory() as folder,
        start_e2e_cluster(Path(folder), images.build_images()) as e2e,
    ):
        found = measure(e2e, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    plain = statistics.median(found["plain"])
    print("| form | seconds from creation to the server's start: median (range) | more than without |\n|---|---:|---:|")
    for form, seconds in found.items():
        median = statistics.median(seconds)
        print(f"| {FORMS[form]} | {median:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {median - plain:.2f} |")


if __name__ == "__main__":
    main()
