"""Measures the start of an engine's pod on a node without its weights: waiting for them, and streaming them.

A real node: containerd, kubelet, the chart, the images. The engine is transformers on the CPU, which opens the weights
with ``tonnage.open``. The bucket is as slow as the engine: the loader's bandwidth is limited so that the download takes
as long as the engine's own start. Each figure is from the request that creates the pod to the first token. Both ways
are interleaved, each time with a model that the node has never seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import charts

from e2e_support import images
from e2e_support.e2e_cluster import ensure_prerequisites, start_e2e_cluster
from e2e_support.model_files import PROMPT
from e2e_support.namespace import Namespace
from e2e_support.pods import Pod
from e2e_support.torch_pods import engine_spec
from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster

WAYS: Final = {"Loaded": "the pod waits until all is loaded", "Streaming": "tonnage.dev/wait: Streaming"}
CHART: Final = "start-streaming"

ENGINE: Final = f"""
import os, sys, time
sys.path.insert(0, "/opt/tonnage/lib/python3.11/site-packages")
import torch, transformers
torch.set_num_threads(1)
path = os.environ["TONNAGE_MODEL_PATH"]
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
config = transformers.AutoConfig.from_pretrained(path)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
import tonnage
started = time.clock_gettime(time.CLOCK_BOOTTIME)
with tonnage.open(path, wait=True) as weights:
    weights.load_into(model, strict=False)
inputs = tokenizer({PROMPT!r}, return_tensors="pt")
token = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1].item()
print("measured", started, time.clock_gettime(time.CLOCK_BOOTTIME), token, flush=True)
"""


def first_token(namespace: Namespace, model: str, way: str) -> tuple[float, int]:
    """Creates a pod, and returns the seconds until its first token, and that token."""
    name = f"{model}-{way.lower()}"
    annotations = {names.MODEL: model, names.WAIT: way, names.SCHEDULING: "Ignore"}
    metadata = {"name": name, "namespace": namespace.name, "annotations": annotations}
    spec = engine_spec(namespace.e2e.images.loader, ENGINE)
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    namespace.e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    pod = Pod(namespace.e2e, name, namespace.name)
    pod.wait_for(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, timeout=600)
    line = next(each for each in pod.logs().splitlines() if each.startswith("measured "))
    pod.delete()
    return float(line.split()[2]) - began, int(line.split()[3])


def measure(e2e: E2ECluster, rounds: int) -> tuple[float, dict[str, list[float]]]:
    """Returns the seconds of a start with the weights on the node, and those of each way without."""
    namespace = Namespace.create(e2e, "streaming")
    files = e2e.model_files.llama
    size = sum(path.stat().st_size for path in files.values())
    namespace.create_model("warm", files=files)
    first_token(namespace, "warm", "Streaming")  # the first pod reads PyTorch from the disk, and loads
    warm, expected = first_token(namespace, "warm", "Loaded")
    print(f"the node has the weights: {warm:.1f} s to the first token", file=sys.stderr)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS) if number % 2 == 0 else reversed(list(WAYS)):
            model = f"cold-{number}-{way.lower()}"
            namespace.create_model(model, files=files, spec={"loader": {"bandwidthLimit": str(int(size / warm))}})
            seconds, token = first_token(namespace, model, way)
            if token != expected:
                raise SystemExit(f"{way}: another token, {token} instead of {expected}")
            found[way].append(seconds)
            print(f"round {number + 1}, {WAYS[way]}: {seconds:.1f} s", file=sys.stderr)
    return warm, found


def main() -> None:
    """Runs the benchmark, prints a table, and writes all figures and a chart if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="pods of each way")
    parser.add_argument("--out", type=Path, help=f"folder for {CHART}.json and {CHART}.svg")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    ensure_prerequisites()
    with (
        tempfile.TemporaryDirectory() as folder,
        start_e2e_cluster(Path(folder), images.build_images()) as e2e,
    ):
        warm, found = measure(e2e, options.rounds)
    medians = {way: statistics.median(seconds) for way, seconds in found.items()}
    print("| node without the weights | seconds to the first token: median (range) |\n|---|---:|")
    for way, seconds in found.items():
        print(f"| {WAYS[way]} | {medians[way]:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) |")
    saved = 1 - medians["Streaming"] / medians["Loaded"]
    print(f"\nWith the weights on the node: {warm:.1f} s; the download is limited to the same. Less: {saved:.0%}.")
    if options.out:
        result = {"warm": warm, "seconds": found}
        (options.out / f"{CHART}.json").write_text(json.dumps(result, indent=1) + "\n")
        rows = {"weights on the node": [warm], **{WAYS[way]: seconds for way, seconds in found.items()}}
        target, label = options.out / f"{CHART}.svg", "seconds from the pod's creation to the first token"
        charts.try_drawing(lambda: charts.bars(rows, label, target, gray=WAYS["Loaded"]))


if __name__ == "__main__":
    main()
