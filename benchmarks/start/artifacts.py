"""Measures how much sooner an engine starts when it finds what it compiled at its last start.

A real vLLM on the CPU, with torch.compile. Each start is a new process with the variables that `tonnage.dev/artifacts`
sets: once with an empty folder, once with the one that a start before has filled. Runs are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.domain.specs.artifacts import artifacts_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[2]
WRITE_MODEL: Final = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
layers, folder = int(sys.argv[1]), sys.argv[2]
config = LlamaConfig(vocab_size=2048, hidden_size=512, intermediate_size=1024, num_hidden_layers=layers,
                     num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256)
torch.manual_seed(11)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
"""
START_ENGINE: Final = """
import json, resource, sys, time
from vllm import LLM, SamplingParams
imported = time.time()
engine = LLM(model=sys.argv[1], skip_tokenizer_init=True, enforce_eager=sys.argv[2] == "eager", max_model_len=128,
             max_num_seqs=4, dtype="bfloat16", kv_cache_memory_bytes=64 << 20, disable_log_stats=True)
ready = time.time()
parameters = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
tokens = engine.generate([{"prompt_token_ids": [1, 5, 9]}], parameters, use_tqdm=False)[0].outputs[0].token_ids
first = time.time()
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
processor = sum(each.ru_utime + each.ru_stime for each in usage)
found = {"imported": imported, "ready": ready, "first": first, "token": tokens[0], "processor": processor}
print("RESULT", json.dumps(found), flush=True)
"""
CASES: Final = {
    "eager": "without compilation (`--enforce-eager`)",
    "cold": "compiled, with an empty folder: the first pod",
    "warm": "compiled, with what the first pod left: the second pod",
}


def _engine_python() -> str:
    found = subprocess.run([ROOT / "hack/env/engines.sh"], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def start(python: str, model: Path, case: str, folder: Path) -> dict[str, Any]:
    """Starts an engine until its first token, and returns the seconds of each step."""
    environment = os.environ | artifacts_environment(str(folder)) | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    began = time.time()
    command = [python, "-c", START_ENGINE, str(model), case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    line = next((each for each in done.stdout.splitlines() if each.startswith("RESULT ")), "")
    if not line:
        raise SystemExit(f"The engine failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found = json.loads(line.removeprefix("RESULT "))
    return {
        "imports": found["imported"] - began,
        "start": found["ready"] - found["imported"],
        "first token": found["first"] - found["ready"],
        "total": found["first"] - began,
        "processor time": found["processor"],
        "token": found["token"],
    }


def measure(rounds: int, layers: int, cases: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the seconds of each start, by case."""
    python = _engine_python()
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as parent:
        model, folder = Path(parent, "model"), Path(parent, "artifacts")
        subprocess.run([python, "-c", WRITE_MODEL, str(layers), str(model)], check=True)
        for number in range(rounds):
            for case in cases:
                if case != "warm":
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                found[case].append(start(python, model, case, folder))
                print(f"round {number + 1}, {case}: {found[case][-1]}", file=sys.stderr)
        size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        print(f"the folder has {size / 1e6:.1f} MB", file=sys.stderr)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the medians as a table in Markdown."""

    def median(runs: Sequence[dict[str, Any]], step: str) -> str:
        seconds = [run[step] for run in runs]
        return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"

    steps = ("imports", "start", "first token", "total", "processor time")
    lines = ["| vLLM | " + " | ".join(steps) + " |", "|---" + "|---:" * len(steps) + "|"]
    lines += [f"| {CASES[case]} | {' | '.join(median(runs, step) for step in steps)} |" for case, runs in found.items()]
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark and prints a table of seconds, or JSON."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="starts of each case")
    parser.add_argument("--layers", type=int, default=16, help="layers of the model, which has 512 units")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="in this order")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    found = measure(options.rounds, options.layers, options.cases)
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
