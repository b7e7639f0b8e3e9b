"""Measures the seconds from a pod's creation to the first token of a real vLLM: cold, streaming, warm, with artifacts.

A real node: containerd, kubelet, the chart, the images. The engine is vLLM on the CPU, with torch.compile, from this
machine's environment of engines (``hack/env/engines.sh``), which is mounted into the pods together with the machine's
compiler. Its plugin is what ``tonnage.dev/vllm-plugin`` injects. The model has several shards. The bucket is as slow as
the engine: the loader's bandwidth is limited so that the download takes as long as a start of the engine with the
weights on the node. Ways are interleaved; each cold start has a model that the node has never seen. It takes about
five minutes, and as long again for each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from e2e_support import images
from e2e_support.e2e_cluster import ensure_prerequisites, start_e2e_cluster
from e2e_support.namespace import Namespace
from e2e_support.pods import Pod
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from e2e_support.e2e_cluster import E2ECluster

ROOT: Final = Path(__file__).parents[2]
CHART: Final = "start-first-token"
WAYS: Final = {
    "cold": "cold: the pod waits until all is loaded",
    "streaming": "cold, tonnage.dev/wait: Streaming",
    "warm": "warm: the weights are on the node",
    "artifacts": "warm, with what the engine compiled at an earlier start",
}
WRITE_MODEL: Final = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
layers, folder = int(sys.argv[1]), sys.argv[2]
config = LlamaConfig(vocab_size=2048, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers,
                     num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256)
torch.manual_seed(11)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="25MB")
"""
START_ENGINE: Final = """
import json, os, time
began = time.clock_gettime(time.CLOCK_BOOTTIME)
from vllm import LLM, SamplingParams
imported = time.clock_gettime(time.CLOCK_BOOTTIME)
engine = LLM(model=os.environ["TONNAGE_MODEL_PATH"], load_format="tonnage", skip_tokenizer_init=True, max_model_len=128,
             max_num_seqs=4, dtype="bfloat16", kv_cache_memory_bytes=64 << 20, disable_log_stats=True)
parameters = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
tokens = engine.generate([{"prompt_token_ids": [1, 5, 9]}], parameters, use_tqdm=False)[0].outputs[0].token_ids
first = time.clock_gettime(time.CLOCK_BOOTTIME)
print("measured", json.dumps({"began": began, "imported": imported, "first": first, "token": tokens[0]}), flush=True)
"""
ENVIRONMENT: Final = {
    "HOME": "/tmp",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def engine_python() -> Path:
    """Returns the Python of the environment of engines, which is installed if it isn't there."""
    found = subprocess.run([ROOT / "hack/env/engines.sh"], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def engine_spec(image: str, python: Path) -> dict[str, Any]:
    """Returns the spec of a pod that starts the engine once. Its file system is this machine's, except the model."""
    environment, interpreter = python.parents[1], python.resolve().parents[1]
    folders = {"usr": Path("/usr"), "engines": environment, "python": interpreter}
    container = {
        "name": "server",
        "image": image,
        "command": [str(python), "-W", "ignore", "-c", START_ENGINE],
        "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
        "resources": {"requests": {"cpu": "10m", "memory": "1Gi"}},
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": name, "mountPath": str(path), "readOnly": True} for name, path in folders.items()),
        ],
    }
    return {
        "containers": [container],
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *({"name": name, "hostPath": {"path": str(path)}} for name, path in folders.items()),
        ],
    }


def first_token(namespace: Namespace, model: str, way: str, python: Path) -> dict[str, float]:
    """Creates a pod, and returns the seconds from its creation to each step, and its first token."""
    annotations = {names.MODEL: model, names.VLLM_PLUGIN: "true", names.SCHEDULING: "Ignore"}
    if way == "streaming":
        annotations[names.WAIT] = "Streaming"
    if way == "artifacts":
        annotations[names.ARTIFACTS] = "true"
    name = f"{model}-{way}-{time.monotonic_ns() % 10**6}"
    metadata = {"name": name, "namespace": namespace.name, "annotations": annotations}
    spec = engine_spec(namespace.e2e.images.loader, python)
    created = time.clock_gettime(time.CLOCK_BOOTTIME)
    namespace.e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    pod = Pod(namespace.e2e, name, namespace.name)
    pod.wait_for(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, timeout=1800)
    logs = pod.logs()
    line = next((each for each in logs.splitlines() if each.startswith("measured ")), "")
    if not line:
        raise SystemExit(f"{WAYS[way]}: the engine failed:\n{logs[-4000:]}")
    pod.delete()
    found: dict[str, float] = json.loads(line.removeprefix("measured "))
    return {
        "started": found["began"] - created,
        "imported": found["imported"] - created,
        "first token": found["first"] - created,
        "token": found["token"],
    }


def measure(
    e2e: E2ECluster, files: Mapping[str, Path], python: Path, *, rounds: int, ways: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """Returns the seconds of each start, by way."""
    namespace = Namespace.create(e2e, "first-token")
    size = sum(path.stat().st_size for path in files.values())
    namespace.create_model("warm", files=files)
    first_token(namespace, "warm", "artifacts", python)  # the node reads the engine from its disk, loads and compiles
    warm = first_token(namespace, "warm", "warm", python)
    engine = warm["first token"] - warm["started"]
    print(f"{size / 1e6:.0f} MB in {len(files)} files; the engine alone: {engine:.1f} s", file=sys.stderr)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways) if number % 2 == 0 else reversed(list(ways)):
            model = "warm"
            if way in {"cold", "streaming"}:
                model = f"{way}-{number}"
                limit = {"loader": {"bandwidthLimit": str(int(size / engine))}}
                namespace.create_model(model, files=files, spec=limit)
            found[way].append(first_token(namespace, model, way, python))
            print(f"round {number + 1}, {WAYS[way]}: {found[way][-1]}", file=sys.stderr)
            if found[way][-1]["token"] != warm["token"]:
                raise SystemExit(f"{way}: another token than of the first pod")
    return found


def seconds(runs: Sequence[Mapping[str, float]], step: str = "first token") -> list[float]:
    """Returns the seconds from the pods' creation to a step."""
    return [run[step] for run in runs]


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Returns the medians as a table in Markdown."""

    def median(runs: Sequence[Mapping[str, float]], step: str) -> str:
        values = seconds(runs, step)
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    steps = {"started": "engine's process starts", "imported": "has imported vLLM", "first token": "first token"}
    lines = ["| seconds from the pod's creation to | " + " | ".join(steps.values()) + " |", "|---" * 4 + "|"]
    lines += [f"| {WAYS[way]} | {' | '.join(median(runs, step) for step in steps)} |" for way, runs in found.items()]
    return "\n".join(lines)


def draw(found: Mapping[str, Sequence[Mapping[str, float]]], target: Path) -> None:
    """Writes a chart of the medians, with a point for each pod."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "tonnage", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7, 2.3))
        for position, (way, runs) in enumerate(found.items()):
            values = seconds(runs)
            axes.barh(position, statistics.median(values), color="#d0d7de" if way == "cold" else "#9ecae9")
            axes.plot(values, [position] * len(values), ".", color="#1f2328", markersize=4)
            axes.text(0.3, position, f"{WAYS[way]}: {statistics.median(values):.0f} s", va="center")
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.set_xlabel("seconds from the pod's creation to vLLM's first token")
        figure.tight_layout()
        figure.savefig(target, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Runs the benchmark, prints a table, and writes all figures and a chart if asked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="pods of each way")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model, 26 MB each, a shard for each")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="in this order")
    parser.add_argument("--out", type=Path, help=f"folder for {CHART}.json and {CHART}.svg")
    options = parser.parse_args()
    ensure_prerequisites()
    python = engine_python()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        subprocess.run([python, "-c", WRITE_MODEL, str(options.layers), str(model)], check=True)
        with start_e2e_cluster(Path(folder), images.build_images()) as e2e:
            files = {path.name: path for path in sorted(model.iterdir())}
            found = measure(e2e, files, python, rounds=options.rounds, ways=options.ways)
    print(table(found))
    if {"cold", "streaming"} <= found.keys():
        cold, streaming = (statistics.median(seconds(found[way])) for way in ("cold", "streaming"))
        print(f"\nStreaming takes {1 - streaming / cold:.0%} less than waiting.")
    if options.out:
        (options.out / f"{CHART}.json").write_text(json.dumps(found, indent=1) + "\n")
        try:
            draw(found, options.out / f"{CHART}.svg")
        except ImportError:
            print("no chart: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
