"""The libraries that are compared: each function returns a loader, which returns all tensors on the GPU.

``bench_attach.py`` runs this file in a new process for each measurement.
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exchange import exchange
from iterators import ITERATORS, Consumer
from synthetic_models import read_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    Loader = Callable[[], dict[str, Any]]

MIB = 1 << 20


def tonnage(path: Path, device: str, spec: dict[str, Any], extra_results: dict[str, Any]) -> Loader:
    """This library. The spec's ``options`` are copy options; with ``hint`` the device is passed to ``open`` too."""
    from tonnage.attach import CopyOptions, open_weights, weights  # noqa: F401  # imported before the clock starts

    options = CopyOptions(**spec.get("options", {}))

    def load() -> dict[str, Any]:
        hint = device if spec.get("hint", True) else None
        with open_weights(path, rank=spec.get("rank"), device=hint, options=options) as opened:
            tensors: dict[str, Any] = opened.state_dict(device, progress="off")
            stats = opened.last_copy
            if stats is None:
                return tensors
            extra_results.setdefault("stats", []).append(
                {
                    "way": stats.way,
                    "threads": stats.threads,
                    "pinned_bytes": stats.pinned_bytes,
                    "seconds": stats.seconds,
                    "allocate_seconds": stats.allocate_seconds,
                }
            )
            return tensors

    return load


def tonnage_stream(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """This library's iterator, from which vLLM takes tensors with ``--load-format tonnage``."""
    from tonnage.attach import open_weights, weights  # noqa: F401  # imported before the clock starts

    def load() -> dict[str, Any]:
        with open_weights(path, rank=spec.get("rank"), device=device) as opened:
            return dict(opened.stream(device, progress="off"))

    return load


def instanttensor(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """InstantTensor with its defaults, which use a mapping for tmpfs. Tensors own their memory."""
    from instanttensor import safe_open

    files = shard_files(path, spec)

    def load() -> dict[str, Any]:
        with safe_open(list(files), framework="pt", device=device) as file:
            return dict(file.tensors())

    return load


def fastsafetensors(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """The fastsafetensors library without GPUDirect, tuned: blocks of 160 MiB keep its 16 threads busy."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    files = shard_files(path, spec)

    def load() -> dict[str, Any]:
        loader = SafeTensorsFileLoader(SingleGroup(), device=device, nogds=True, max_threads=16)
        loader.add_filenames({0: files})
        buffer = loader.copy_files_to_device(max_copy_block_size=160 * MIB)
        tensors = {key: buffer.get_tensor(key) for key in loader.get_keys()}
        buffer.close()
        loader.close()
        return tensors

    return load


def tensorizer(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """The tensorizer library, from the ``.tensors`` file; ``readers`` and ``verify`` come from the spec."""
    from tensorizer import TensorDeserializer

    def load() -> dict[str, Any]:
        deserializer = TensorDeserializer(
            str(path), device=device, num_readers=spec["readers"], verify_hash=spec.get("verify", False)
        )
        tensors = dict(deserializer)
        deserializer.close()
        return tensors

    return load


def runai(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """The runai-model-streamer with 16 threads. It yields views of a buffer that it reuses, so they are cloned."""
    import os

    os.environ["RUNAI_STREAMER_CONCURRENCY"] = "16"
    from runai_model_streamer import SafetensorsStreamer

    files = shard_files(path, spec)

    def load() -> dict[str, Any]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(list(files), device=device)
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}

    return load


def safetensors(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """The safetensors library."""
    from safetensors.torch import load_file

    files = shard_files(path, spec)

    def load() -> dict[str, Any]:
        return {name: tensor for file in files for name, tensor in load_file(file, device=device).items()}

    return load


def host_memory(path: Path, _device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Loader:
    """No library: what every one has to do at least. Threads read the files into small buffers of the host."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import torch

    files = shard_files(path, spec)
    threads = max(1, len(os.sched_getaffinity(0)) // spec["gpus"])

    def read(start: int) -> int:
        buffer = bytearray(2 * MIB)
        return sum(read_whole(Path(name), buffer) for name in files[start::threads])

    def load() -> dict[str, Any]:
        with ThreadPoolExecutor(threads) as pool:
            size = sum(pool.map(read, range(threads)))
        return {"read": torch.empty(size, dtype=torch.uint8, device="meta")}

    return load


def iterator(path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]) -> Consumer:
    """One of the iterators of vLLM's load formats, and what ``use`` of the spec does with its tensors."""
    name = spec["contender"].removeprefix("iterate-")
    importlib.import_module("tonnage.vllm_plugin.checkpoint" if name == "tonnage" else name)  # before the clock starts
    return Consumer(ITERATORS[name], shard_files(path, spec), device, spec["use"])


CONTENDERS: dict[str, Callable[[Path, str, dict[str, Any], dict[str, Any]], Loader]] = {
    "tonnage": tonnage,
    "tonnage-stream": tonnage_stream,
    "instanttensor": instanttensor,
    "fastsafetensors": fastsafetensors,
    "tensorizer": tensorizer,
    "runai": runai,
    "safetensors": safetensors,
    "exchange": exchange,
    "host-memory": host_memory,
    **{f"iterate-{name}": iterator for name in ITERATORS},
}


def shard_files(path: Path, spec: dict[str, Any]) -> list[str]:
    """Returns the safetensors files of a folder; those of one rank if the spec has a rank."""
    rank = spec.get("rank")
    pattern = "*.safetensors" if rank is None else f"model-rank-{rank}-part-*.safetensors"
    return sorted(map(str, path.glob(pattern)))


def run_child(spec: dict[str, Any]) -> dict[str, Any]:
    """Measures one contender in this process: ``calls`` loads, and one more to measure memory if requested."""
    import torch

    device = spec.get("device") or f"cuda:{spec.get('gpu', 0)}"
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.ones(1, device=device).add_(1)
    synchronize(device)
    if spec["contender"] == "limit":
        return measure_pinned_limit(device, spec)
    extra_results: dict[str, Any] = {}
    load = CONTENDERS[spec["contender"]](Path(spec["path"]), device, spec, extra_results)
    calls = []
    size = 0
    if spec.get("gate"):
        print("ready", flush=True)
        sys.stdin.readline()
    if isinstance(load, Consumer):
        load.prepare()
    for _ in range(spec.get("calls", 2)):
        gc.collect()
        synchronize(device)
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.monotonic()
        tensors = load()
        synchronize(device)
        ended = time.monotonic()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        calls.append({"seconds": ended - began, "began": began, "ended": ended, "cpu_seconds": cpu})
        del tensors
    if isinstance(load, Consumer):
        size = load.nbytes
        if spec.get("check"):
            extra_results["checked"] = load.check()
    result: dict[str, Any] = {"bytes": size, "calls": calls}
    if spec.get("memory") and device != "cpu":
        kept = 0 if spec.get("use") == "drop" else size
        result["peak_extra_bytes"] = measure_peak_memory(load, kept, device)
    return result | extra_results | {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def synchronize(device: str) -> None:
    """Waits for all operations on the device."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def measure_peak_memory(load: Loader, size: int, device: str) -> int:
    """Returns the peak of GPU memory during a load, less the weights, in bytes. Includes all allocators. Not timed."""
    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    min_free = free
    done = threading.Event()

    def watch() -> None:
        nonlocal min_free
        while not done.is_set():
            min_free = min(min_free, torch.cuda.mem_get_info(device)[0])
            done.wait(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    tensors = load()
    torch.cuda.synchronize()
    done.set()
    watcher.join()
    min_free = min(min_free, torch.cuda.mem_get_info(device)[0])
    del tensors
    return free - min_free - size


def measure_pinned_limit(device: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Measures the bus: copies of 1 GiB from one pinned buffer, as many bytes as the model has."""
    import torch

    block = min(1024 * MIB, spec["bytes"])
    host = torch.empty(block, dtype=torch.uint8, pin_memory=device != "cpu")
    host.random_(0, 255)
    target = torch.empty(block, dtype=torch.uint8, device=device)
    count = max(4, round(spec["bytes"] / block))
    target.copy_(host, non_blocking=True)
    synchronize(device)
    if spec.get("gate"):
        print("ready", flush=True)
        sys.stdin.readline()
    calls = []
    for _ in range(spec.get("calls", 3)):
        began = time.monotonic()
        for _ in range(count):
            target.copy_(host, non_blocking=True)
        synchronize(device)
        ended = time.monotonic()
        calls.append({"seconds": ended - began, "began": began, "ended": ended, "cpu_seconds": 0.0})
    return {"bytes": count * block, "calls": calls}


if __name__ == "__main__":
    print("RESULT " + json.dumps(run_child(json.loads(sys.argv[1]))), flush=True)
