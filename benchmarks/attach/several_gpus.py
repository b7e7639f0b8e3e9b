"""The stages with one process for each GPU, all at the same time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import children
import synthetic_models

if TYPE_CHECKING:
    import argparse
    import subprocess

MIN_PROCESSES = 16
PROCESSES_PER_CORE = 5 / 8
"""How many processes start together and wait for their release; each imports PyTorch and has a CUDA context."""


class Bench(Protocol):
    """What a stage needs of the run."""

    arguments: argparse.Namespace
    records: list[dict[str, Any]]

    def seconds_left(self) -> float: ...
    def select(self, specs: list[dict[str, Any]]) -> list[dict[str, Any]]: ...
    def model(self, name: str = ..., *, rank: int | None = ..., parent: Path | None = ...) -> Path: ...
    def model_bytes(self) -> int: ...


CASES: list[dict[str, Any]] = [
    {"label": "pinned limit", "contender": "limit", "ranked": False},
    {"label": "host memory", "contender": "host-memory", "ranked": True},
    {"label": "tonnage, own rank", "contender": "tonnage", "ranked": True},
    {"label": "tonnage, one model for all", "contender": "tonnage", "ranked": False},
    {"label": "tonnage, pure Python, own rank", "contender": "tonnage", "ranked": True, "options": {"native": False}},
    {"label": "one model for all, each reads a part and sends it", "contender": "exchange", "ranked": False},
    {"label": "InstantTensor, own rank", "contender": "instanttensor", "ranked": True},
    {"label": "InstantTensor, one model for all", "contender": "instanttensor", "ranked": False},
    {"label": "fastsafetensors, own rank", "contender": "fastsafetensors", "ranked": True},
    {"label": "fastsafetensors, one model for all", "contender": "fastsafetensors", "ranked": False},
]
"""The contenders, and whether each of their processes has files of its own (``ranked``) or all have one model."""


def measure(bench: Bench, stage: str, device_count: int, *, parent: Path | None = None, fresh: bool = False) -> None:
    """Measures all cases with 2, 4 and 8 GPUs, as far as the machine has them, and the files below ``parent``.

    Processes start together for a few cases, which takes most of the time, and are then released case by case. If
    ``fresh``, each case finds files that were not read since they were written.
    """
    counts = [count for count in (2, 4, 8) if count <= device_count]
    one_model = bench.model(parent=parent)
    ranked = one_model.parent / "ranked"
    for rank in range(max(counts, default=0)):
        bench.model("ranked", rank=rank, parent=parent)
    cases = bench.select(CASES)
    together = max(MIN_PROCESSES, int(PROCESSES_PER_CORE * len(os.sched_getaffinity(0))))
    for number in range(bench.arguments.rounds):
        turn = number % len(cases)
        for count in counts:
            ordered, size = [*cases[turn:], *cases[:turn]], max(1, together // count)
            for start in range(0, len(ordered), size):
                if bench.seconds_left() < 0:
                    children.log(f"{stage}: out of time in round {number + 1}")
                    return
                common = {"stage": stage, "round": number, "gpus": count}
                _measure_cases(
                    bench, common, ordered[start : start + size], {True: ranked, False: one_model}, fresh=fresh
                )


def _measure_cases(
    bench: Bench, common: dict[str, Any], cases: list[dict[str, Any]], folders: dict[bool, Path], *, fresh: bool
) -> None:
    """Starts the processes of all cases, and releases them case by case.

    Files are in the folder for ``ranked``. Processes that form a group meet at a file.
    """
    with tempfile.TemporaryDirectory() as meeting:
        prepared = []
        for case in cases:
            specs = _specs(bench, {**common, **case, "path": str(folders[case["ranked"]])})
            rendezvous = str(Path(meeting) / case["contender"])
            prepared.append((specs, [children.spawn({**spec, "rendezvous": rendezvous}) for spec in specs]))
        for _, processes in prepared:
            for process in processes:
                children.wait_until_ready(process)
        for specs, processes in prepared:
            if fresh:
                ranks = {spec["rank"] for spec in specs}
                synthetic_models.replace_shards(Path(specs[0]["path"]), bench.arguments.gib, ranks=ranks)
            bench.records.append(_measure_together(specs, processes))
            children.log_record(bench.records[-1])


def _specs(bench: Bench, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what each process of a case measures."""
    gpus = case["gpus"]
    common = {
        **case, "label": f"{gpus} GPUs: {case['label']}", "bytes": bench.model_bytes(), "gate": True,
        "device": bench.arguments.device,
    }  # fmt: skip
    return [{**common, "gpu": gpu, "rank": gpu if case["ranked"] else None} for gpu in range(gpus)]


def _measure_together(specs: list[dict[str, Any]], processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """Releases processes together, and measures from the first start to the last end."""
    for process in processes:
        children.release(process)
    found = [children.collect(process, spec) for process, spec in zip(processes, specs, strict=True)]
    errors = [each["error"] for each in found if "error" in each]
    if errors:
        return {**specs[0], "error": errors[0]}
    calls = []
    for at in range(min(len(each["calls"]) for each in found)):
        same = [each["calls"][at] for each in found]
        # Later calls do not start together, so their time is that of the slowest.
        together = max(call["ended"] for call in same) - min(call["began"] for call in same)
        seconds = together if at == 0 else max(call["seconds"] for call in same)
        calls.append({"seconds": seconds, "cpu_seconds": sum(call["cpu_seconds"] for call in same)})
    stats = [each["stats"][0] for each in found if each.get("stats")]
    return {**specs[0], "bytes": sum(each["bytes"] for each in found), "calls": calls, "stats": stats}
