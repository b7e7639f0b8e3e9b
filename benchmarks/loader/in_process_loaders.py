"""Loads with tensorizer or Run:ai's streamer, which are libraries for Python programs.

Only the load is timed, because programs that use them import torch anyway. Prints one line of JSON with the wall
seconds, and the CPU seconds of this process and its children.

Usage: in_process_loaders.py tensorizer URL READERS VERIFY | in_process_loaders.py runai S3_URI
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def cpu_seconds() -> float:
    """Returns the user and system time of this process and its reaped children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def tensorizer(url: str, readers: str, verify: str) -> Callable[[], int]:
    """Loads every tensor into memory; verifies the hashes if `verify` is "yes"."""
    from tensorizer import TensorDeserializer

    def load() -> int:
        with TensorDeserializer(url, device="cpu", num_readers=int(readers), verify_hash=verify == "yes") as loaded:
            return sum(tensor.nbytes for tensor in loaded.values())

    return load


def runai(uri: str) -> Callable[[], int]:
    """Streams every tensor into the streamer's buffer in memory."""
    from runai_model_streamer import SafetensorsStreamer

    def load() -> int:
        total = 0
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(uri)
            for _, tensor in streamer.get_tensors():
                total += tensor.nbytes
        return total

    return load


def main() -> None:
    loaders: dict[str, Callable[..., Callable[[], int]]] = {"tensorizer": tensorizer, "runai": runai}
    load = loaders[sys.argv[1]](*sys.argv[2:])
    wall, cpu = time.monotonic(), cpu_seconds()
    loaded = load()
    wall, cpu = time.monotonic() - wall, cpu_seconds() - cpu
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "bytes": loaded}))


if __name__ == "__main__":
    main()
