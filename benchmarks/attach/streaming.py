"""Measures how long after a load the last tensor is on the GPU: if the reader waits for the load, and if it streams.

A real loader loads safetensors files from a server on this machine. The reader is the iterator of vLLM's load format
`tonnage`, in a process whose CUDA context exists before the load begins, as an engine's does. Ways are interleaved, and
each load fills an empty cache. vLLM isn't needed.

    python benchmarks/attach/streaming.py --gib 16.5 --rounds 5 --out docs/performance
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import host_info
import synthetic_models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "loader"))
NAME: Final = "attach-streaming"
WAYS: Final = {"waits": "copies when all is loaded", "streams": "streams while shards arrive"}
TIMEOUT: Final = 300.0


def read(pipe: Connection, device: str) -> None:
    """Prepares the device, then copies the directory that it receives, and answers when the last tensor was there."""
    import torch

    from tonnage.vllm_plugin.checkpoint import iterate_checkpoint

    torch.zeros(1, device=device)
    pipe.send("ready")
    path = Path(pipe.recv())
    kept = {
        name: tensor[:1].clone()
        for name, tensor in iterate_checkpoint(path, torch.device(device), wait_seconds=TIMEOUT)
    }
    if device != "cpu":
        torch.cuda.synchronize()
    pipe.send((time.monotonic(), len(kept)))


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serves a folder; yields the endpoint."""
    server, port = start_server(folder)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a server on a free port, and on another one if another process takes that port first."""
    script = ROOT / "benchmarks/loader/sendfile_server.py"
    processes = str(max(1, len(os.sched_getaffinity(0)) // 2))
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, str(script), str(folder), str(port), processes, str(folder / "server.log")]
        server = subprocess.Popen(command)
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return server, port
            time.sleep(0.02)
    raise SystemExit("the server does not start")


def load(urls: list[str], cache: Path, bandwidth: str) -> subprocess.Popen[bytes]:
    """Starts a loader. The server has no listing, so all files have a URL."""
    more = ["--bandwidth-limit", bandwidth] if bandwidth else []
    command = [sys.executable, "-m", "tonnage", "load", *urls, "--cache", str(cache), "--progress", "off", *more]
    paths = [str(ROOT / "loader"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def measure_one(urls: list[str], cache: Path, entry: str, way: str, options: argparse.Namespace) -> dict[str, float]:
    """Returns the seconds from the loader's start until it ended, and until the last tensor was on the device."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # A daemon, so that a failed load ends it, too.
    reader = context.Process(target=read, args=(theirs, options.device), daemon=True)
    reader.start()
    theirs.close()  # so that a reader that has ended is an EOFError
    ours.recv()
    cache.mkdir()
    began = time.monotonic()
    loader = load(urls, cache, options.bandwidth)
    path = str(cache / entry)
    if way == "streams":
        ours.send(path)
    if loader.wait():
        raise SystemExit("the load failed")
    loaded = time.monotonic()
    if way == "waits":
        ours.send(path)
    ended, _ = ours.recv()
    reader.join()
    shutil.rmtree(cache)
    return {"loaded": loaded - began, "on the device": ended - began, "after the load": ended - loaded}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Writes the model, and returns the seconds of each load, by way."""
    model = folder / "model"
    synthetic_models.make_shards(model, options.gib)
    (model / "config.json").write_text("{}")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with serve(folder) as endpoint:
        urls = [f"{endpoint}/model/{path.name}" for path in sorted(model.iterdir())]
        first = folder / "first"
        if load(urls, first, "").wait():
            raise SystemExit("the first load failed")
        entry = next(path.name for path in first.iterdir() if path.name.startswith("r-"))
        shutil.rmtree(first)
        for number in range(options.rounds):
            for way in list(WAYS) if number % 2 == 0 else reversed(list(WAYS)):
                found[way].append(measure_one(urls, folder / f"{way}-{number}", entry, way, options))
                print(f"round {number + 1}, {WAYS[way]}: {found[way][-1]}", file=sys.stderr)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Returns the medians as a table in Markdown."""

    def median(runs: list[dict[str, float]], step: str) -> str:
        values = [run[step] for run in runs]
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    steps = ("loaded", "on the device", "after the load")
    lines = ["| the reader | " + " | ".join(steps) + " |", "|---" + "|---:" * len(steps) + "|"]
    return "\n".join(
        lines + [f"| {WAYS[way]} | {' | '.join(median(runs, step) for step in steps)} |" for way, runs in found.items()]
    )


def main() -> None:
    """Runs the benchmark and prints a table of seconds."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=16.5, help="size of the model")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each way")
    parser.add_argument("--device", default="cuda", help="cpu tries the benchmark without a GPU")
    parser.add_argument("--bandwidth", default="", help="limit of the loader, in bytes a second, such as 4G")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="tmpfs with twice the model's size")
    parser.add_argument("--out", type=Path, help=f"folder for {NAME}.json")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="tonnage-streaming-") as folder:
        found = measure(options, Path(folder))
    print(table(found))
    if options.out:
        result: dict[str, Any] = {"host": host_info.collect_host_info(), "gib": options.gib, "seconds": found}
        (options.out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
