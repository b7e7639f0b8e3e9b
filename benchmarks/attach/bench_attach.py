"""Compares Tonnage and other libraries that load a cached model onto a GPU, on one machine, in one run.

Each measurement has a new process, and the order rotates. Stages run in the order in which they are given; each writes
its results, or its error, to the JSON file:

  peers    all contenders on a tmpfs of ordinary pages, and the bus's limit: first call and best call
  iterator the iterators of vLLM's load formats, without vLLM: alone, and with a model that copies each tensor
  tune     different copy options of this library
  fresh    files in shared memory that were not read since they were written
  huge     a tmpfs of huge pages (mounts one: needs root), through buffers and from registered pages
  gpus     one process per GPU, all at the same time: each with its own rank's files, and all with one model
  gpus-fresh  the same with files that were not read since they were written
  gpus-huge  the same on a tmpfs of huge pages
  cold     from a disk with an empty page cache (drops it: needs root)
  correct  every dtype and the whole model, compared on the GPU bit for bit; also misaligned sources
  report   writes table and chart from JSON files of earlier runs (--in); needs no GPU

Example: bench_attach.py peers correct --out results --rounds 5 --seconds 560
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "loader"), str(HERE)]

import host_info  # noqa: E402
import several_gpus  # noqa: E402
import summary  # noqa: E402
import synthetic_models  # noqa: E402
from children import (  # noqa: E402
    child_environment,
    collect,
    log,
    log_record,
    release,
    spawn,
    wait_until_ready,
    with_library,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
MIB = 1 << 20

PEERS: list[dict[str, Any]] = [
    {"label": "tonnage", "contender": "tonnage", "memory": True},
    {"label": "InstantTensor", "contender": "instanttensor", "memory": True},
    {"label": "tonnage, iterator", "contender": "tonnage-stream", "memory": True},
    {"label": "pinned limit", "contender": "limit", "calls": 3},
    {"label": "tonnage, pure Python", "contender": "tonnage", "options": {"native": False}},
    {"label": "tonnage, .tensors", "contender": "tonnage", "source": "tensors", "memory": True},
    {"label": "fastsafetensors, tuned", "contender": "fastsafetensors", "memory": True},
    {"label": "tensorizer, 8 readers", "contender": "tensorizer", "source": "tensors", "readers": 8, "calls": 1},
    {"label": "tensorizer, 16 readers", "contender": "tensorizer", "source": "tensors", "readers": 16},
    {"label": "runai-model-streamer", "contender": "runai", "calls": 1},
    {"label": "safetensors", "contender": "safetensors", "calls": 1},
    {"label": "tensorizer, 8 readers, verified", "contender": "tensorizer", "source": "tensors", "readers": 8,
     "verify": True, "calls": 1},
    {"label": "tensorizer, 16 readers, verified", "contender": "tensorizer", "source": "tensors", "readers": 16,
     "verify": True, "calls": 1},
]  # fmt: skip

ITERATORS: list[dict[str, Any]] = [
    {"label": "tonnage, alone", "contender": "iterate-tonnage", "use": "drop", "memory": True},
    {"label": "InstantTensor, alone", "contender": "iterate-instanttensor", "use": "drop", "memory": True},
    {"label": "tonnage", "contender": "iterate-tonnage", "check": True},
    {"label": "InstantTensor", "contender": "iterate-instanttensor", "check": True},
    {"label": "pinned limit", "contender": "limit", "calls": 3},
    {"label": "fastsafetensors", "contender": "iterate-fastsafetensors"},
    {"label": "safetensors, vLLM's default", "contender": "iterate-safetensors", "calls": 1},
]
TUNE: list[dict[str, Any]] = [
    {"threads": 8},
    {"threads": 12},
    {"threads": 14},
    {"threads": 16},
    {"ring_slot_bytes": 1 * MIB},
    {"ring_slot_bytes": 5 * MIB // 4},
    {"ring_slot_bytes": 4 * MIB},
    {"ring_slots": 3},
    {"piece_bytes": 128 << 10},
    {"piece_bytes": 1 * MIB},
    {"native": False},
]

HUGE: list[dict[str, Any]] = [
    {"label": "tonnage", "contender": "tonnage", "memory": True},
    {"label": "InstantTensor", "contender": "instanttensor"},
    {"label": "tonnage, pure Python", "contender": "tonnage", "options": {"native": False}},
    {"label": "tonnage, registered pages", "contender": "tonnage", "options": {"way": "register"}},
    {"label": "pinned limit", "contender": "limit", "calls": 3},
    {"label": "fastsafetensors, tuned", "contender": "fastsafetensors"},
]  # fmt: skip


class Bench:
    """One run of the benchmark: its folders, its deadline and its results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.root = Path(arguments.root)
        self.deadline: float = time.monotonic() + arguments.seconds
        self.records: list[dict[str, Any]] = []
        self.metadata: dict[str, Any] = {"command": " ".join(sys.argv), "facts": host_info.collect_host_info()}
        self._bytes = 0

    def seconds_left(self) -> float:
        """Seconds until no new measurement is started."""
        return self.deadline - time.monotonic()

    def select(self, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns those of the contenders that were asked for, and those of Tonnage by another release, too."""
        only = self.arguments.only
        return with_library([spec for spec in specs if not only or spec["contender"] in only], self.arguments.library)

    def model(self, name: str = "model", *, rank: int | None = None, parent: Path | None = None) -> Path:
        """Returns the folder of the synthetic model, which is created if it does not exist."""
        folder = (parent or self.root) / name
        probe = "*.safetensors" if rank is None else f"model-rank-{rank}-*.safetensors"
        if not any(folder.glob(probe)):
            began = time.monotonic()
            self._bytes = synthetic_models.make_shards(folder, self.arguments.gib, rank=rank)
            synthetic_models.read_through(folder.glob(probe))
            log(f"created {folder} ({self._bytes / 1e9:.1f} GB) in {time.monotonic() - began:.1f} s")
        self._bytes = self._bytes or sum(path.stat().st_size for path in folder.glob(probe))
        return folder

    def tensors_file(self) -> Path | None:
        """Returns the same model as one ``.tensors`` file; None without tensorizer or with too little space."""
        path = self.root / "model.tensors"
        if not path.exists():
            began = time.monotonic()
            try:
                synthetic_models.write_tensors_file(self.model(), path)
            except Exception:  # noqa: BLE001  # the other contenders can still be measured
                path.unlink(missing_ok=True)
                self.metadata["tensors_file"] = traceback.format_exc(limit=3)
                log(self.metadata["tensors_file"])
                return None
            synthetic_models.read_through([path])
            log(f"created {path} in {time.monotonic() - began:.1f} s")
        return path

    def model_bytes(self) -> int:
        """Returns the bytes of the model that was created or found last."""
        return self._bytes

    def prepare(self, spec: dict[str, Any]) -> tuple[dict[str, Any], subprocess.Popen[str]]:
        """Starts a contender's process, which imports and creates its CUDA context, and waits to be released."""
        spec = {"bytes": self._bytes, "device": self.arguments.device, "gate": True, **spec}
        return spec, spawn(spec)

    def measure(self, stage: str, number: int, spec: dict[str, Any], process: subprocess.Popen[str]) -> None:
        """Releases a contender that is ready, and records its result or error."""
        release(process)
        self.records.append({"stage": stage, "round": number, **spec, **collect(process, spec)})
        log_record(self.records[-1])

    def run_contender(self, stage: str, number: int, spec: dict[str, Any]) -> None:
        """Measures one contender in a process of its own."""
        spec, process = self.prepare(spec)
        wait_until_ready(process)
        self.measure(stage, number, spec, process)

    def run_rounds(self, stage: str, specs: list[dict[str, Any]]) -> None:
        """Measures all contenders until the deadline, with the order shifted by a third in each round.

        A round's processes start together, which takes most of the time, and are then released one after the other.
        """
        for number in range(self.arguments.rounds):
            shift = number * max(1, len(specs) // 3)
            ordered = [*specs[shift % len(specs) :], *specs[: shift % len(specs)]]
            if self.seconds_left() < 0:
                log(f"{stage}: out of time in round {number + 1}")
                return
            untimed = {"memory": False, "check": False} if number else {}
            prepared = [self.prepare({**spec, **untimed}) for spec in ordered]
            for _, process in prepared:
                wait_until_ready(process)
            for spec, process in prepared:
                self.measure(stage, number, spec, process)

    def stage_peers(self) -> None:
        """Measures all contenders on ordinary pages."""
        shards, tensors = self.model(), self.tensors_file()
        specs = []
        for spec in self.select(PEERS):
            path = tensors if spec.get("source") == "tensors" else shards
            if path is not None:
                specs.append({**spec, "path": str(path)})
        self.run_rounds("peers", specs)

    def stage_iterator(self) -> None:
        """Measures iterators, from which an engine's model takes tensors one by one."""
        common = {"path": str(self.model()), "use": "parameters"}
        self.run_rounds("iterator", [{**common, **spec} for spec in self.select(ITERATORS)])

    def stage_tune(self) -> None:
        """Measures different copy options."""
        path = str(self.model())
        specs: list[dict[str, Any]] = [{"label": "pinned limit", "contender": "limit", "path": path, "calls": 3}]
        for options in TUNE:
            label = ", ".join(f"{key} {_short(value)}" for key, value in options.items())
            specs.append({"label": label, "contender": "tonnage", "path": path, "options": options, "calls": 3})
        specs.append({"label": "no hint", "contender": "tonnage", "path": path, "hint": False, "calls": 3})
        self.run_rounds("tune", specs)

    def stage_huge(self) -> None:
        """Measures on a tmpfs of huge pages."""
        with self._huge_pages(models=1) as mount:
            if mount is not None:
                before = host_info.huge_pages_in_use()
                path = self.model(parent=mount)
                self.metadata["huge_pages_bytes"] = host_info.huge_pages_in_use() - before
                log(f"huge pages in use: {self.metadata['huge_pages_bytes'] / GIB:.1f} GiB")
                self.run_rounds("huge", [{**spec, "path": str(path)} for spec in self.select(HUGE)])

    @contextlib.contextmanager
    def _huge_pages(self, *, models: int) -> Iterator[Path | None]:
        """Mounts a tmpfs of huge pages with room for some models. None: it can't be mounted."""
        mount = Path(self.arguments.huge_root)
        gib = int(self.arguments.gib * models * 1.25) + 2
        if problem := synthetic_models.mount_tmpfs(mount, gib=gib, huge=True):
            self.metadata["huge"] = problem
            log(f"huge: can't mount: {problem}")
            yield None
            return
        try:
            yield mount
        finally:
            synthetic_models.unmount(mount)

    def stage_fresh(self) -> None:
        """Measures with files that were not read since they were written, as for the first pod on a node."""
        folder = self.root / "fresh"
        specs: list[dict[str, Any]] = [
            {"label": "tonnage", "contender": "tonnage"},
            {"label": "InstantTensor", "contender": "instanttensor"},
            {"label": "tonnage, pure Python", "contender": "tonnage", "options": {"native": False}},
            {"label": "fastsafetensors, tuned", "contender": "fastsafetensors"},
        ]
        specs = self.select(specs)
        try:
            for number in range(self.arguments.rounds):
                if self.seconds_left() < 0:
                    return
                self._bytes = synthetic_models.make_shards(folder, self.arguments.gib)
                turn = number % len(specs)
                prepared = [self.prepare({**spec, "path": str(folder)}) for spec in [*specs[turn:], *specs[:turn]]]
                for _, process in prepared:
                    wait_until_ready(process)
                for spec, process in prepared:  # each finds new files of the same names
                    synthetic_models.replace_shards(folder, self.arguments.gib)
                    self.measure("fresh", number, spec, process)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stage_gpus(self) -> None:
        """Measures several GPUs at the same time, with one process each."""
        several_gpus.measure(self, "gpus", self._device_count())

    def stage_gpus_fresh(self) -> None:
        """The same, with files that were not read since they were written."""
        several_gpus.measure(self, "gpus-fresh", self._device_count(), fresh=True)

    def stage_gpus_huge(self) -> None:
        """The same, on a tmpfs of huge pages."""
        device_count = self._device_count()
        with self._huge_pages(models=1 + device_count) as mount:
            if mount is not None:
                several_gpus.measure(self, "gpus-huge", device_count, parent=mount)

    def _device_count(self) -> int:
        if self.arguments.device == "cpu":
            return 2
        import torch

        return torch.cuda.device_count()

    def stage_cold(self) -> None:
        """Measures from a disk with an empty page cache."""
        folder = Path(self.arguments.disk_root) / "tonnage-cold"
        shards = self.model()
        size = synthetic_models.copy_shards(shards, folder, self.arguments.cold_gib)
        os.sync()
        self._bytes, model_bytes = size, self._bytes
        cases: list[dict[str, Any]] = [
            {"label": "tonnage", "contender": "tonnage"},
            {"label": "tonnage, through the page cache", "contender": "tonnage", "options": {"direct": "never"}},
            {"label": "InstantTensor", "contender": "instanttensor"},
            {"label": "fastsafetensors, tuned", "contender": "fastsafetensors"},
            {"label": "safetensors", "contender": "safetensors"},
        ]
        cases = self.select(cases)
        try:
            for number in range(self.arguments.rounds):
                turn = number % len(cases)
                for spec in [*cases[turn:], *cases[:turn]]:
                    if self.seconds_left() < 0:
                        return
                    try:
                        Path("/proc/sys/vm/drop_caches").write_text("1\n")
                    except OSError as error:
                        self.metadata["cold"] = f"the page cache can't be dropped: {error}"
                        return
                    self.run_contender("cold", number, {**spec, "path": str(folder), "calls": 1})
        finally:
            self._bytes = model_bytes
            shutil.rmtree(folder, ignore_errors=True)

    def stage_correct(self) -> None:
        """Compares copied tensors with the originals bit for bit."""
        command = [sys.executable, str(HERE / "verify_copies.py"), str(self.model())]
        tensors = self.tensors_file()
        command += [str(tensors)] if tensors is not None else []
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=400, env=child_environment()
        )
        log(done.stdout[-3000:] + done.stderr[-2000:])
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        self.metadata["correct"] = json.loads(lines[-1][7:]) if lines else {"error": done.stderr[-1500:]}

    def write(self, out: Path, name: str) -> None:
        """Writes the results so far."""
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps({**self.metadata, "records": self.records}, indent=1))


def _short(value: object) -> str:
    return f"{value // MIB} MiB" if isinstance(value, int) and value >= MIB else str(value)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = [
        "peers",
        "iterator",
        "tune",
        "fresh",
        "huge",
        "gpus",
        "gpus-fresh",
        "gpus-huge",
        "cold",
        "correct",
        "report",
    ]
    parser.add_argument("stages", nargs="+", choices=stages)
    parser.add_argument("--out", type=Path, required=True, help="directory for JSON, table and chart")
    parser.add_argument("--in", dest="inputs", type=Path, nargs="*", default=[], help="for report: JSON files")
    parser.add_argument("--name", default="attach", help="name of the files written")
    parser.add_argument("--root", default="/dev/shm/tonnage-bench", help="a directory in shared memory")
    parser.add_argument("--mount-gib", type=int, default=0, help="mount a tmpfs of this size on --root first (root)")
    parser.add_argument("--huge-root", default="/mnt/tonnage-huge", help="where the tmpfs of huge pages is mounted")
    parser.add_argument("--disk-root", default="/var/tmp", help="a directory on a disk")
    parser.add_argument("--gib", type=float, default=16.5, help="size of the model")
    parser.add_argument("--cold-gib", type=float, default=8.0, help="size of the model on the disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=540, help="no new measurement is started after this time")
    parser.add_argument("--device", default="", help="cpu: without a GPU, to test the script")
    parser.add_argument("--only", nargs="*", default=[], help="only these contenders; not for tune")
    parser.add_argument("--library", default="", help="measure another release beside this one: its folder loader/")
    return parser.parse_args()


def main() -> int:
    """Runs the stages."""
    args = parse_arguments()
    if args.stages == ["report"]:
        summary.write_report([json.loads(path.read_text()) for path in args.inputs], args.out, args.name)
        return 0
    if args.mount_gib:
        problem = synthetic_models.mount_tmpfs(Path(args.root), gib=args.mount_gib, huge=False)
        log(f"mount: {problem or 'done'}")
    bench = Bench(args)
    log(json.dumps(bench.metadata["facts"], indent=1))
    for stage in args.stages:
        if stage == "report":
            continue
        try:
            getattr(bench, f"stage_{stage.replace('-', '_')}")()
        except Exception:  # noqa: BLE001  # the other stages still run
            bench.metadata[f"{stage}_error"] = traceback.format_exc()
            log(bench.metadata[f"{stage}_error"])
        bench.write(args.out, args.name)
    summary.write_report([{**bench.metadata, "records": bench.records}], args.out, args.name)
    log((args.out / f"{args.name}.md").read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
