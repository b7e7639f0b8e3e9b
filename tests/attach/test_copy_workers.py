"""Copy workers with the CPU as the device: real reads and copies, each deferred until it is waited for."""

# ruff: noqa: ARG001, ARG002, ARG005  # protocols and callbacks have arguments that a test doesn't use

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from support.cpu_engine import CpuEngine, CpuQueue
from tonnage.attach import CopyOptions, DeviceFailed
from tonnage.attach.copy.chunks import pack_groups
from tonnage.attach.copy.workers import CopyWorkers
from tonnage.attach.copy_options import MAX_PINNED_BYTES
from tonnage.errors import CacheDamaged, InvalidPlan

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypedDict

    from support.attach_fixture_types import Attach, LoadWithWorkers, TensorsEqual
    from support.tensors_corpus import CorpusFile
    from tonnage.attach.copy.chunks import Group

    class Numbers(TypedDict, total=False):
        threads: int
        slots: int
        slot_bytes: int
        register_bytes: int
        group_bytes: int
        ring_slots: int
        ring_slot_bytes: int
        piece_bytes: int


KIB, MIB = 1 << 10, 1 << 20
WAYS = {
    "ring": CopyOptions(threads=3, slots=2, slot_bytes=64 * KIB, group_bytes=MIB),
    "one thread, one slot": CopyOptions(threads=1, slots=1, slot_bytes=64 * KIB),
    "many slots": CopyOptions(threads=2, slots=7, slot_bytes=128 * KIB, group_bytes=MIB),
    "large buffers": CopyOptions(threads=2),
    "registered": CopyOptions(threads=2, way="register", register_bytes=2 * MIB),
    "past the page cache": CopyOptions(threads=2, slot_bytes=MIB + 64 * KIB, direct="always"),
    "never past it": CopyOptions(threads=2, slot_bytes=128 * KIB, direct="never"),
    "plain": CopyOptions(way="plain"),
}


@pytest.fixture(params=["safetensors", "tensors"])
def path(request: pytest.FixtureRequest, shard: Path, tensors_file: Path) -> Path:
    return shard if request.param == "safetensors" else tensors_file


@pytest.mark.parametrize("way", WAYS)
def test_every_way_copies_all_bytes(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    path: Path,
    tensors: dict[str, torch.Tensor],
    way: str,
    tensors_equal: TensorsEqual,
) -> None:
    weights = attach(path, options=WAYS[way])
    found = load_with_workers(weights)
    assert list(found) == list(weights)
    for name, tensor in tensors.items():
        assert tensors_equal(found[name], tensor), name
        assert found[name].data_ptr() % 64 == 0 or not tensor.numel()
    assert weights.last_copy is not None
    assert weights.last_copy.tensor_bytes == weights.nbytes


@pytest.mark.parametrize(
    "name", ["dtypes-safetensors", "dtypes-other", "mixed-large", "many", "module-bfloat16", "meta"]
)
def test_tensorizers_files_arrive_aligned_and_bit_for_bit(
    corpus: dict[str, CorpusFile],
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    name: str,
    tensors_equal: TensorsEqual,
) -> None:
    file = corpus[name]
    found = load_with_workers(attach(file.path))
    for keys, tensor in file.tensors.items():
        expected = torch.zeros(tensor.shape).to(tensor.dtype) if tensor.is_meta else tensor
        arrived = found[file.flat_names[keys]]
        assert tensors_equal(arrived, expected), keys
        assert arrived.is_contiguous()


@pytest.mark.parametrize("way", ["ring", "registered", "plain"])
def test_conversion_on_the_device(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    path: Path,
    tensors: dict[str, torch.Tensor],
    way: str,
    tensors_equal: TensorsEqual,
) -> None:
    found = load_with_workers(attach(path, options=WAYS[way]), dtype=torch.float32)
    for name, tensor in tensors.items():
        changes = tensor.dtype in {torch.float16, torch.bfloat16}
        assert tensors_equal(found[name], tensor.float() if changes else tensor), name


def test_tensors_of_a_group_share_one_allocation(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    found = load_with_workers(attach(shard, options=CopyOptions(threads=1)))
    storages = {tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()}
    assert len(storages) == 1


def test_progress_ends_at_the_total(attach: Attach, load_with_workers: LoadWithWorkers, path: Path) -> None:
    weights = attach(path)
    seen: list[tuple[int, int]] = []
    load_with_workers(weights, dtype=torch.float32, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {weights.nbytes}
    assert seen[-1] == (weights.nbytes, weights.nbytes)


class CountingEngine(CpuEngine):
    """Counts pinned bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned = 0
        self.most_pinned = 0
        self._lock = threading.Lock()

    def queue(self, slots: int, *, streams: int) -> CpuQueue:
        return CpuQueue(self._pin)

    def _pin(self, size: int) -> None:
        with self._lock:
            self.pinned += size
            self.most_pinned = max(self.most_pinned, self.pinned)


def all_unpinned(engine: CountingEngine) -> bool:
    for thread in threading.enumerate():
        if thread.name.startswith("tonnage-copy"):
            thread.join(10)
    return engine.pinned == 0


def test_pinned_bytes_match_the_options_and_are_unpinned(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    engine = CountingEngine()
    weights = attach(shard, engine=engine)
    load_with_workers(weights)
    assert weights.last_copy is not None
    assert 0 < engine.most_pinned <= weights.last_copy.pinned_bytes == 3 * 2 * 64 * KIB
    assert all_unpinned(engine)


def test_a_hint_allocates_buffers_and_closing_frees_them(attach: Attach, shard: Path) -> None:
    engine = CountingEngine()
    weights = attach(shard, engine=engine)
    weights._copier.warm_up(torch.device("cpu"))
    weights.close()
    assert all_unpinned(engine)


def test_no_options_pin_more_than_a_gibibyte() -> None:
    for options in (
        CopyOptions(),
        CopyOptions(threads=256, slots=8),
        CopyOptions(slot_bytes=256 * MIB, threads=64),
        CopyOptions(way="register", threads=256),
        CopyOptions(ring_slots=64, ring_slot_bytes=MAX_PINNED_BYTES // 8),
        CopyOptions(ring_slot_bytes=2 * MAX_PINNED_BYTES),
    ):
        for threads in (1, 24, 256):
            each = options.ring_buffer_bytes(threads=threads, active=min(threads, 16), devices=8)
            assert 0 < threads * options.ring_slots * each <= MAX_PINNED_BYTES
        each = options.register_bytes if options.way == "register" else options.slot_bytes
        assert options.threads_for(1000) * options.slots * each <= MAX_PINNED_BYTES
    assert CopyOptions().threads_for(64) == 12
    assert CopyOptions().threads_for(3) == 3


def test_the_rings_buffers_become_smaller_the_more_gpus_may_copy_at_once() -> None:
    sizes = [CopyOptions().ring_buffer_bytes(threads=16, active=16, devices=devices) for devices in (1, 2, 4, 8)]
    assert sizes == [MIB * 5 // 2, MIB * 5 // 4, MIB, MIB]
    assert CopyOptions(ring_slot_bytes=4 * MIB).ring_buffer_bytes(threads=16, active=16, devices=8) == 4 * MIB


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": -1},
        {"slots": 0},
        {"slot_bytes": 5000},
        {"register_bytes": 1},
        {"group_bytes": 1},
        {"ring_slots": 0},
        {"ring_slot_bytes": 70_000},
        {"ring_slot_bytes": -4096},
        {"ring_slot_bytes": 4096},
        {"piece_bytes": 0},
    ],
)
def test_options_out_of_range_are_refused(wrong: Numbers) -> None:
    with pytest.raises(InvalidPlan, match=next(iter(wrong))):
        CopyOptions(**wrong)


class Unpinnable(CpuQueue):
    def pin(self, address: int, length: int, *, read_only: bool) -> bool:
        return False


def test_memory_that_can_not_be_pinned_makes_it_slower_not_wrong(
    attach: Attach,
    load_with_workers: LoadWithWorkers,
    shard: Path,
    tensors: dict[str, torch.Tensor],
    tensors_equal: TensorsEqual,
) -> None:
    class Engine(CpuEngine):
        def queue(self, slots: int, *, streams: int) -> CpuQueue:
            return Unpinnable(lambda size: None)

    weights = attach(shard, engine=Engine())
    assert all(tensors_equal(tensor, tensors[name]) for name, tensor in load_with_workers(weights).items())
    assert weights.last_copy is not None
    assert weights.last_copy.pinned_bytes == 0


def test_pages_that_can_not_be_registered_are_an_error(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    class Engine(CpuEngine):
        def queue(self, slots: int, *, streams: int) -> CpuQueue:
            return Unpinnable(lambda size: None)

    with pytest.raises(DeviceFailed, match="can't pin pages"):
        load_with_workers(attach(shard, engine=Engine(), options=WAYS["registered"]))


class FailingQueue(CpuQueue):
    """Fails at its fourth copy."""

    copies = 0

    def copy(self, target: int, source: int, length: int) -> None:
        type(self).copies += 1
        if self.copies > 3:
            raise DeviceFailed("cuMemcpyHtoDAsync failed: CUDA_ERROR_ECC_UNCORRECTABLE (214).")
        super().copy(target, source, length)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_device_that_fails_midway_ends_the_load_with_its_error(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path, dtype: torch.dtype | None
) -> None:
    FailingQueue.copies = 0

    class Engine(CountingEngine):
        def queue(self, slots: int, *, streams: int) -> CpuQueue:
            return FailingQueue(self._pin)

    engine = Engine()
    with pytest.raises(DeviceFailed, match="ECC"):
        load_with_workers(attach(shard, engine=engine), dtype=dtype)
    assert all_unpinned(engine)


def test_a_device_that_does_not_start_ends_the_load_with_its_error(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    class Engine(CpuEngine):
        def start(self) -> None:
            raise DeviceFailed("cuInit failed.")

    with pytest.raises(DeviceFailed, match="cuInit"):
        load_with_workers(attach(shard, engine=Engine()))


@pytest.mark.parametrize("way", ["ring", "registered", "past the page cache"])
def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_signal(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path, way: str
) -> None:
    weights = attach(shard, options=WAYS[way])
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(CacheDamaged, match=r"ended at byte|is truncated"):
        load_with_workers(weights)


def test_a_file_that_shrank_before_it_was_mapped_is_an_error_and_no_signal(attach: Attach, shard: Path) -> None:
    weights = attach(shard)
    with shard.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CacheDamaged, match="is truncated"):
        weights["embed"]


def test_an_error_of_the_progress_callback_ends_the_load(
    attach: Attach, load_with_workers: LoadWithWorkers, shard: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    engine = CountingEngine()
    with pytest.raises(Stop):
        load_with_workers(attach(shard, engine=engine), progress=stop)
    assert all_unpinned(engine)


def test_a_window_bounds_what_is_allocated_at_once(attach: Attach, shard: Path) -> None:
    """Temporary groups: never more bytes than the window, and each group is complete when it is passed on."""

    class Engine(CpuEngine):
        live = 0
        most = 0

        def empty(self, size: int) -> torch.Tensor:
            type(self).live += size
            type(self).most = max(self.most, self.live)
            return super().empty(size)

    weights = attach(shard)
    groups = pack_groups((r for r in weights.records.values() if r.length), group_bytes=64 * KIB)
    largest = max(group.size for group in groups)
    assert sum(group.size for group in groups) > 2 * largest
    workers = CopyWorkers(Engine(), CopyOptions(threads=2, slots=2, slot_bytes=64 * KIB))
    workers.start()
    expected = {name: tensor.contiguous().reshape(-1).view(torch.uint8) for name, tensor in weights.items()}

    def check(group: Group, base: torch.Tensor) -> None:
        for record, offset in group.tensors:
            assert torch.equal(base[offset : offset + record.length], expected[record.name])
        Engine.live -= group.size

    workers.run(weights.files, groups, on_group=check, window=largest)
    workers.close()
    assert Engine.live == 0
    assert Engine.most <= largest
