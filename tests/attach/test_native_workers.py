"""The compiled ring, with the machine's own memory as the device."""

# ruff: noqa: ARG001, ARG002, ARG005  # callbacks have arguments that a test doesn't use

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.native_engine import HostEngine, HostQueue, LateQueue
from tonnage.attach import CopyOptions, DeviceFailed
from tonnage.attach.copy import native_workers, worker_choice
from tonnage.attach.copy.chunks import pack_groups
from tonnage.attach.copy.native_workers import NativeWorkers
from tonnage.attach.copy.thread_count import FIRST_THREADS, STEP, WINDOW_BYTES
from tonnage.attach.files.tensor_info import TensorInfo
from tonnage.attach.native import library as native
from tonnage.errors import CacheDamaged, InternalError

if TYPE_CHECKING:
    from pathlib import Path

    from support.attach_fixture_types import Attach, LoadWithWorkers, TensorsEqual
    from support.tensors_corpus import CorpusFile
    from tonnage.attach.copy.chunks import Group
    from tonnage.attach.files.source_file import SourceFile

KIB, MIB = 1 << 10, 1 << 20
SMALL = CopyOptions(
    threads=3, ring_slots=2, ring_slot_bytes=64 * KIB, piece_bytes=16 * KIB, group_bytes=MIB, direct="never"
)
OPTIONS = {
    "small": SMALL,
    "one thread, one buffer": CopyOptions(threads=1, ring_slots=1, ring_slot_bytes=64 * KIB, direct="never"),
    "many buffers": CopyOptions(threads=7, ring_slots=9, ring_slot_bytes=96 * KIB, piece_bytes=4 * KIB, direct="never"),
    "defaults": CopyOptions(direct="never"),
}


@pytest.fixture(autouse=True)
def _compiled(native_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_choice, "native_library", lambda: native_library)


def ended() -> None:
    """Waits until the background threads of all runs have released their buffers."""
    for thread in threading.enumerate():
        if thread.name.startswith("tonnage-copy"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("source", ["safetensors", "tensors"])
def test_all_bytes_arrive(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    shard: Path,
    tensors_file: Path,
    tensors: dict[str, torch.Tensor],
    tensors_equal: TensorsEqual,
    options: str,
    dtype: torch.dtype | None,
    source: str,
) -> None:
    path = shard if source == "safetensors" else tensors_file
    weights = attach(path, options=OPTIONS[options], engine=HostEngine())
    found = load_with_workers(weights, dtype=dtype)
    assert list(found) == list(weights)
    for name, tensor in tensors.items():
        converted = dtype is not None and tensor.dtype in {torch.float16, torch.bfloat16}
        assert tensors_equal(found[name], tensor.to(dtype) if converted else tensor), name
    assert weights.last_copy is not None
    assert weights.last_copy.native


@pytest.mark.parametrize("name", ["dtypes-safetensors", "dtypes-other", "mixed-large", "many"])
def test_tensorizers_files_arrive_bit_for_bit(
    corpus: dict[str, CorpusFile],
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    tensors_equal: TensorsEqual,
    name: str,
) -> None:
    file = corpus[name]
    found = load_with_workers(attach(file.path, options=SMALL, engine=HostEngine()))
    for keys, tensor in file.tensors.items():
        assert tensors_equal(found[file.flat_names[keys]], tensor), keys


def run(
    library: ctypes.CDLL,
    file: SourceFile,
    records: list[TensorInfo],
    options: CopyOptions,
    *,
    window: int = 0,
    queue: HostQueue | None = None,
) -> dict[str, bytes]:
    """Copies records and returns their bytes; with a window, as they are when the group is passed on."""
    kept: list[tuple[Group, torch.Tensor]] = []
    found: dict[str, bytes] = {}

    def keep(group: Group, base: torch.Tensor) -> None:
        if window:
            collect(group, base)
        else:
            kept.append((group, base))

    def collect(group: Group, base: torch.Tensor) -> None:
        for record, offset in group.tensors:
            found[record.name] = bytes(base[offset : offset + record.length].numpy())

    workers = NativeWorkers(library, HostEngine(queue), options)
    workers.start()
    try:
        workers.run([file], pack_groups(records, group_bytes=options.group_bytes), on_group=keep, window=window)
    finally:
        workers.close()
    for group, base in kept:
        collect(group, base)
    return found


@given(
    layout=st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 60_000)), min_size=1, max_size=25),
    threads=st.integers(1, 6),
    slots=st.integers(1, 4),
    slot_bytes=st.sampled_from([64 * KIB, 256 * KIB, MIB]),
    piece_bytes=st.sampled_from([4 * KIB, 60 * KIB, MIB]),
    window=st.sampled_from([0, 64 * KIB, MIB]),
    is_late=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_extents_at_any_offset_arrive_whatever_the_sizes(
    native_library: ctypes.CDLL,
    file: SourceFile,
    data: bytes,
    layout: list[tuple[int, int]],
    threads: int,
    slots: int,
    slot_bytes: int,
    piece_bytes: int,
    window: int,
    is_late: bool,
) -> None:
    records: list[TensorInfo] = []
    at = 0
    for number, (gap, length) in enumerate(layout):
        at += gap
        records.append(TensorInfo(str(number), (str(number),), "uint8", 1, (length,), 0, at, length))
        at += length
    options = CopyOptions(
        threads=threads, ring_slots=slots, ring_slot_bytes=slot_bytes, piece_bytes=piece_bytes, group_bytes=MIB
    )
    found = run(native_library, file, records, options, window=window, queue=LateQueue() if is_late else None)
    assert found == {record.name: data[record.offset : record.offset + record.length] for record in records}


@pytest.mark.parametrize("queue", ["with batches", "of an old driver", "of a device without batches"])
def test_buffers_are_copied_in_batches_where_the_device_can(
    native_library: ctypes.CDLL, file: SourceFile, data: bytes, queue: str
) -> None:
    late = LateQueue(
        copies_a_query=0,
        has_batches=queue != "of an old driver",
        supports_batches=queue != "of a device without batches",
    )
    options = CopyOptions(threads=1, ring_slots=8, ring_slot_bytes=64 * KIB, group_bytes=len(data))
    record = TensorInfo("all", ("all",), "uint8", 1, (len(data),), 0, 0, len(data))
    assert run(native_library, file, [record], options, queue=late) == {"all": data}
    # The first buffer is copied at once; while it is, the next four become a batch.
    assert late.batches[:1] == ([4] if queue == "with batches" else [])
    assert late.refused == (queue == "of a device without batches")


class CountingEngine(HostEngine):
    """Counts pinned bytes; copies fail from a number of copies on."""

    def __init__(self, *, fail_after: int | None = None, pins: bool = True) -> None:
        super().__init__()
        self.pinned = 0
        self.ever_pinned = 0
        self.copies = 0
        self._fail_after = fail_after
        self._pins = pins
        self._lock = threading.Lock()

    def native_queue(self, slots: int) -> HostQueue:
        if self._fail_after is None:
            return HostQueue(self._pin, pins=self._pins)
        return HostQueue(self._pin, self._copy)

    def _pin(self, size: int) -> None:
        with self._lock:
            self.pinned += size
            self.ever_pinned += max(size, 0)

    def _copy(self, target: int, source: int, length: int, stream: int) -> int:
        with self._lock:
            self.copies += 1
            if self._fail_after is not None and self.copies > self._fail_after:
                return 214
        ctypes.memmove(target, source, length)
        return 0


def test_pinned_bytes_match_the_options_and_are_unpinned(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    engine = CountingEngine()
    weights = attach(shard, options=SMALL, engine=engine)
    load_with_workers(weights)
    assert weights.last_copy is not None
    ended()
    assert 0 < engine.ever_pinned == weights.last_copy.pinned_bytes <= 3 * 2 * 64 * KIB
    assert engine.pinned == 0


def test_a_hint_allocates_buffers_and_closing_frees_them(attach: Attach, shard: Path) -> None:
    engine = CountingEngine()
    weights = attach(shard, options=SMALL, engine=engine)
    weights._copier.warm_up(torch.device("cpu"))
    weights.close()
    ended()
    assert engine.pinned == 0


def test_memory_that_can_not_be_pinned_makes_it_slower_not_wrong(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    shard: Path,
    tensors: dict[str, torch.Tensor],
    tensors_equal: TensorsEqual,
) -> None:
    weights = attach(shard, options=SMALL, engine=CountingEngine(pins=False))
    assert all(tensors_equal(tensor, tensors[name]) for name, tensor in load_with_workers(weights).items())
    assert weights.last_copy is not None
    assert weights.last_copy.pinned_bytes == 0


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_device_that_fails_midway_ends_the_load_with_its_error(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path, dtype: torch.dtype | None, after: int
) -> None:
    engine = CountingEngine(fail_after=after)
    with pytest.raises(DeviceFailed, match="214"):
        load_with_workers(attach(shard, options=SMALL, engine=engine), dtype=dtype)
    ended()
    assert engine.pinned == 0


def test_a_device_that_does_not_start_ends_the_load_with_its_error(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    class Engine(HostEngine):
        def start(self) -> None:
            raise DeviceFailed("cuInit failed.")

    with pytest.raises(DeviceFailed, match="cuInit"):
        load_with_workers(attach(shard, options=SMALL, engine=Engine()))


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_signal(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    weights = attach(shard, options=SMALL, engine=HostEngine())
    with shard.open("r+b") as opened:
        opened.truncate(shard.stat().st_size // 2)
    with pytest.raises(CacheDamaged, match=r"model\.safetensors ended at byte [\d,]+; it had [\d,]+ bytes"):
        load_with_workers(weights)


def test_a_file_that_can_not_be_read_is_named_with_the_offset(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path, tmp_path: Path
) -> None:
    import os

    weights = attach(shard, options=SMALL, engine=HostEngine())
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, weights.files[0].descriptor)
    os.close(folder)
    with pytest.raises(CacheDamaged, match=r"Reading .*model\.safetensors at byte [\d,]+ failed: Is a directory"):
        load_with_workers(weights)


def test_an_error_of_the_progress_callback_ends_the_load(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    engine = CountingEngine()
    with pytest.raises(Stop):
        load_with_workers(attach(shard, options=SMALL, engine=engine), progress=stop)
    ended()
    assert engine.pinned == 0


def test_more_threads_are_judged_when_all_of_them_have_their_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    clock = itertools.count(1.0)
    library: Any = SimpleNamespace(
        prepared=FIRST_THREADS,
        ring_prepared=lambda _: library.prepared,
        ring_set_active=lambda _, active: chosen.append(active),
    )
    monkeypatch.setattr(native_workers, "usable_cores", lambda: FIRST_THREADS + 2 * STEP)
    monkeypatch.setattr(native_workers, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    workers = NativeWorkers(library, HostEngine(), CopyOptions())
    stats = native.Stats()

    def read_a_window() -> None:
        stats.bytes[0] += WINDOW_BYTES
        stats.nanoseconds[0] += 10**9
        workers._decide_threads(0, stats)

    read_a_window()
    assert chosen == [FIRST_THREADS + STEP]  # no thread waited
    for _ in range(3):
        read_a_window()
    assert len(chosen) == 1
    library.prepared += STEP
    read_a_window()
    assert chosen[1:] == [FIRST_THREADS]  # they read no more than those before


def test_a_window_bounds_what_is_allocated_at_once(native_library: ctypes.CDLL, attach: Attach, shard: Path) -> None:
    class Engine(HostEngine):
        live = 0
        most = 0

        def empty(self, size: int) -> torch.Tensor:
            type(self).live += size
            type(self).most = max(self.most, self.live)
            return super().empty(size)

    weights = attach(shard)
    groups = pack_groups((r for r in weights.records.values() if r.length), group_bytes=64 * KIB)
    largest = max(group.size for group in groups)
    workers = NativeWorkers(native_library, Engine(), SMALL)
    workers.start()

    def drop(group: Group, base: torch.Tensor) -> None:
        Engine.live -= group.size

    workers.run(weights.files, groups, on_group=drop, window=largest)
    workers.close()
    assert Engine.live == 0
    assert Engine.most <= largest


def test_a_ring_is_run_once(native_library: ctypes.CDLL, file: SourceFile) -> None:
    workers = NativeWorkers(native_library, HostEngine(), SMALL)
    workers.start()
    workers.run([file], [], on_group=lambda group, base: None)
    with pytest.raises(InternalError, match="twice"):
        workers.run([file], [], on_group=lambda group, base: None)
    workers.close()


def test_files_on_disk_and_an_installation_without_the_library_use_pythons_threads(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    shard: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always = CopyOptions(threads=2, slot_bytes=MIB + 64 * KIB, direct="always")
    weights = attach(shard, options=always, engine=HostEngine())
    weights._copier.warm_up(torch.device("cpu"))
    load_with_workers(weights)
    assert weights.last_copy is not None
    assert not weights.last_copy.native
    monkeypatch.setattr(worker_choice, "native_library", lambda: None)
    weights = attach(shard, options=SMALL, engine=HostEngine())
    load_with_workers(weights)
    assert weights.last_copy is not None
    assert not weights.last_copy.native


def test_a_library_that_is_missing_foreign_or_of_another_version_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native_path: Path
) -> None:
    assert native.load_library(tmp_path / "missing.so") is None
    (tmp_path / "text.so").write_text("not a library")
    assert native.load_library(tmp_path / "text.so") is None
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert native.load_library(native_path) is None


def test_a_program_that_ends_without_closing_its_weights_ends(shard: Path, native_path: Path, tmp_path: Path) -> None:
    import subprocess

    program = (
        "import sys, torch; from tonnage.attach.native.library import load_library\n"
        "from support.native_engine import HostEngine; from tonnage.attach import CopyOptions\n"
        "from tonnage.attach.copy.native_workers import NativeWorkers\n"
        "workers = NativeWorkers(load_library(sys.argv[1]), HostEngine(), CopyOptions(threads=2))\n"
        "workers.start(); print('started', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(native_path)],
        capture_output=True, text=True, check=False, timeout=50,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
