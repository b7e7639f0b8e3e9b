"""Weights that are read while they are loaded: ``tonnage.open(path, wait=True)``, and ``tonnage load --stream``."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from safetensors.torch import save

import tonnage
from support.child_processes import UNPRIVILEGED_UID, run_in_child
from support.faults import Fault
from support.load_harness import KEY, KIB, LoadHarness
from support.models import CONFIG, make_tensors, to_tensors_file
from support.tonnage_cli import run_tonnage, start_tonnage
from support.waiting import eventually
from tonnage.attach.errors import EntryIncomplete, LoadRestarted, NotLoadedInTime
from tonnage.cache import stream
from tonnage.cache.entry import Entry
from tonnage.cache.eviction import evict
from tonnage.contract import Layout, Limits, encode_plan
from tonnage.errors import AccessDenied, CacheInUse, ChecksumMismatch
from tonnage.loading import run_plan
from tonnage.loading.api import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from support.attach_fixture_types import TensorsEqual
    from support.faulty_server import FaultyServer
    from tonnage.contract import Plan, Report

LIMITS = Limits(workers=2, connections=2, part_size=128 * KIB, segment_size=512 * KIB)
ENTRY = "r-0123456789ab"
DENIED = Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")
HELD_BACK = Fault(stall_before=True)
CONFIG_KEY = "bucket/model/config.json"


class StreamHarness(LoadHarness):
    """A model of several shards, of which the store sends only the first half until it is released."""

    def hold_back(self, fault: Fault = HELD_BACK) -> None:
        half = len(self.tensors_file) // 2
        self.server.add_fault(
            fault, when=lambda each: each.method == "GET" and each.key == KEY and (each.range or (0,))[0] > half
        )

    def deny(self) -> None:
        """From now on the store refuses the second half."""
        self.server.clear_faults()
        self.hold_back(DENIED)
        self.server.release_stalled()

    def release(self) -> None:
        self.server.clear_faults()
        self.server.release_stalled()

    @property
    def entry(self) -> Entry:
        return Entry(self.cache / ENTRY)

    def stream(self, on_readable: Callable[[str], None], **options: Any) -> Report:
        """Loads as a pod's loader does."""
        plan = self.plan(**options)
        return run_plan(
            plan, cache=self.cache, environment={"TONNAGE_STALL_SECONDS": "30"}, on_readable=on_readable
        ).report

    def plan(self, **options: Any) -> Any:
        made = make_plan(
            "s3://bucket/model/",
            limits=options.pop("limits", LIMITS),
            endpoint_url=self.server.endpoint,
            region="us-east-1",
            anonymous=True,
            **options,
        )
        return msgspec.structs.replace(made, entry=ENTRY)


@pytest.fixture
def harness(faulty_server: FaultyServer, tmp_path: Path) -> Iterator[StreamHarness]:
    tensors = make_tensors(count=12)
    weights = to_tensors_file(tensors)
    faulty_server.put(KEY, weights)
    faulty_server.put(CONFIG_KEY, CONFIG)
    made = StreamHarness(faulty_server, tmp_path / "cache", tensors, weights)
    yield made
    made.release()


@contextlib.contextmanager
def loading(harness: StreamHarness, **options: Any) -> Iterator[Future[Report]]:
    """A load in the background, from which readers can read when the context begins."""
    readable = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(harness.stream, lambda _: readable.set(), **options)
        future.add_done_callback(lambda _: readable.set())
        assert readable.wait(30)
        try:
            yield future
        finally:
            harness.release()
            future.exception(60)


@pytest.mark.parametrize("layout", list(Layout))
def test_tensors_are_there_when_the_engine_asks_although_the_load_has_not_ended(
    harness: StreamHarness, layout: Layout, tensors_equal: TensorsEqual
) -> None:
    harness.hold_back()
    with loading(harness, layout=layout) as load, tonnage.open(harness.entry.path, wait=True) as weights:
        assert set(weights) == set(harness.tensors)
        assert (harness.entry.stream_dir / "config.json").read_bytes() == CONFIG
        found: dict[str, torch.Tensor] = {}
        if layout is Layout.TENSORIZER:  # its one file is complete when the load has ended
            harness.release()
        for name, tensor in weights.stream():
            if not found and layout is Layout.SAFETENSORS:
                assert not load.done()
                harness.assert_nothing_visible()
                harness.release()
            found[name] = tensor
        assert found.keys() == harness.tensors.keys()
        assert all(tensors_equal(found[name], tensor) for name, tensor in harness.tensors.items())
        report = load.result(30)
        if layout is Layout.SAFETENSORS:
            harness.assert_loaded(report)
        assert "tonnage.verified" not in weights.metadata


def test_a_module_is_filled_and_a_state_dict_returned_once_all_shards_are_there(
    harness: StreamHarness, tensors_equal: TensorsEqual
) -> None:
    harness.hold_back()
    with loading(harness), tonnage.open(harness.entry.path, wait=True) as weights:
        threading.Timer(0.3, harness.release).start()
        state = weights.state_dict("cpu")
        assert list(state) == list(weights)
        assert all(tensors_equal(state[name], tensor) for name, tensor in harness.tensors.items())


def test_a_module_is_filled_while_the_load_has_not_ended(harness: StreamHarness, tensors_equal: TensorsEqual) -> None:
    name, tensor = next(iter(harness.tensors.items()))
    module: torch.nn.Module = torch.nn.Module()
    module.register_buffer("weight", torch.empty_like(tensor, device="meta"))
    for part in reversed(name.split(".")[:-1]):
        outer = torch.nn.Module()
        outer.add_module(part, module)
        module = outer
    harness.hold_back()
    with loading(harness) as load, tonnage.open(harness.entry.path, wait=True) as weights:
        weights.load_into(module, strict=False)
        assert tensors_equal(module.state_dict()[name], tensor)
        assert not load.done()


def test_a_reader_alone_makes_a_load_show_its_shards(harness: StreamHarness) -> None:
    """Also a load that was not asked to show them, such as one that warms a node."""
    harness.hold_back()
    harness.cache.mkdir()
    harness.entry.create()
    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(tonnage.open, harness.entry.path, wait=True)
        load = pool.submit(run_plan, harness.plan(), cache=harness.cache, environment={"TONNAGE_STALL_SECONDS": "30"})
        with reader.result(30) as weights:
            first = next(weights.stream())
            assert first[0] in harness.tensors
            assert not load.done()
            harness.release()
            assert len(dict(weights.stream())) == len(harness.tensors)
        harness.assert_loaded(load.result(30).report)


@pytest.mark.parametrize("read", [True, False], ids=["with a reader", "without"])
def test_workers_begin_with_the_first_shards_while_readers_wait(harness: StreamHarness, *, read: bool) -> None:
    shard, workers = 256 * KIB, 6
    limits = Limits(workers=workers, connections=workers, part_size=32 * KIB, segment_size=shard)
    harness.server.add_fault(HELD_BACK, when=lambda each: each.key == KEY and bool(each.range and each.range[0]))

    def starts(server: FaultyServer) -> list[int]:
        return [each.range[0] for each in server.find_requests(method="GET", key=KEY) if each.range and each.range[0]]

    def load() -> Report:
        if read:
            return harness.stream(lambda _: None, limits=limits)
        return harness.load(limits=limits, environment={"TONNAGE_STALL_SECONDS": "30"}, anonymous=True)

    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(load)
        try:
            harness.server.wait_for(lambda server: len(starts(server)) == workers)
            first = starts(harness.server)
        finally:
            harness.release()
        harness.assert_loaded(report.result(60))
    apart = max(first) - min(first)
    assert apart < 2 * shard if read else apart > (workers - 2) * shard


def test_a_load_without_readers_makes_no_stream(harness: StreamHarness) -> None:
    report = harness.load()
    assert not (harness.cache / report.entry / "stream").exists()


def test_a_failed_load_ends_the_reader_with_the_loaders_error(harness: StreamHarness) -> None:
    harness.hold_back()
    with loading(harness), tonnage.open(harness.entry.path, wait=True) as weights:
        harness.deny()
        with pytest.raises(AccessDenied) as caught:
            weights.state_dict()
        assert caught.value.remedy
        assert len(list(harness.entry.stream_dir.rglob("*.safetensors"))) < 6


def test_the_failure_of_an_earlier_load_does_not_end_a_reader(harness: StreamHarness) -> None:
    harness.hold_back(DENIED)
    with pytest.raises(AccessDenied):
        harness.stream(lambda _: None)
    harness.server.clear_faults()
    time.sleep(0.01)  # the failure is older than the wait, on the file system's clock
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(tonnage.open, harness.entry.path, wait=True, timeout=30)
        harness.stream(lambda _: None)
        with reader.result(30) as weights:
            assert len(weights.state_dict()) == len(harness.tensors)


def test_a_timeout_ends_the_wait_and_names_what_is_missing(harness: StreamHarness) -> None:
    with pytest.raises(NotLoadedInTime, match=r"does not exist after 0\.1 seconds"):
        tonnage.open(harness.entry.path, wait=True, timeout=0.1)
    harness.hold_back()
    with (
        loading(harness),
        tonnage.open(harness.entry.path, wait=True, timeout=1) as weights,
        pytest.raises(TimeoutError, match=r"\d of \d files with tensors are missing after 1 seconds"),
    ):
        weights.state_dict()


def test_without_wait_an_unfinished_load_is_an_error_as_before(harness: StreamHarness) -> None:
    harness.hold_back()
    with loading(harness):
        with pytest.raises(EntryIncomplete):
            tonnage.open(harness.entry.path)
        with pytest.raises(EntryIncomplete):
            tonnage.open(harness.entry.stream_dir)
    with tonnage.open(harness.entry.stream_dir) as weights:
        assert len(weights.state_dict()) == len(harness.tensors)


def test_a_reader_keeps_the_entry_from_eviction_while_it_waits(harness: StreamHarness) -> None:
    harness.stream(lambda _: None)
    with tonnage.open(harness.entry.path, wait=True), pytest.raises(CacheInUse):
        evict(harness.entry)
    assert evict(harness.entry) > 0
    assert list(harness.entry.stream_dir.rglob("*.*")) == []


def test_a_hit_is_readable_at_once_with_links_that_need_no_space(harness: StreamHarness) -> None:
    report = harness.stream(lambda _: None)
    shutil.rmtree(harness.entry.stream_dir)
    readable: list[str] = []
    assert harness.stream(readable.append).outcome == "hit"
    assert readable == [ENTRY]
    for shard in harness.entry.model_dir.glob("*.safetensors"):
        shown = harness.entry.stream_dir / "tonnage-shards" / shard.name
        assert shown.stat().st_ino == shard.stat().st_ino
    assert harness.stream(readable.append).entry == report.entry
    assert readable == [ENTRY, ENTRY]


def test_engines_that_do_not_wait_find_no_weights_in_the_directory_at_any_time(harness: StreamHarness) -> None:
    harness.stream(lambda _: None)
    assert {path.name for path in harness.entry.stream_dir.iterdir()} == {
        "config.json", "tonnage-stream.json", "tonnage-shards",
    }  # fmt: skip


def test_a_second_load_reads_what_the_first_one_shows(harness: StreamHarness) -> None:
    harness.hold_back()
    readable = threading.Event()
    with loading(harness) as first, ThreadPoolExecutor(1) as pool:
        second = pool.submit(harness.stream, lambda _: readable.set())
        assert readable.wait(30)
        assert not first.done()
        harness.release()
        assert second.result(60).outcome == "hit"


def test_a_killed_loader_is_followed_by_another_one_and_the_reader_goes_on(
    harness: StreamHarness, tensors_equal: TensorsEqual
) -> None:
    harness.hold_back()
    environment = {"TONNAGE_PLAN": encode_plan(harness.plan()).decode(), "TONNAGE_STALL_SECONDS": "30"}
    command: list[str | Path] = ["load", "--cache", harness.cache, "--stream", "--progress", "off"]
    with (
        start_tonnage(*command, environment=environment, start_new_session=True) as loader,
        tonnage.open(harness.entry.path, wait=True, timeout=60) as weights,
    ):
        tensors = weights.stream()
        found = dict([next(tensors)])
        os.killpg(loader.pid, signal.SIGKILL)
        loader.wait()
        harness.release()
        finished = run_tonnage(*command, environment=environment)
        assert finished.report["resumed_bytes"] > 0
        found |= dict(tensors)
        assert all(tensors_equal(found[name], tensor) for name, tensor in harness.tensors.items())


def test_a_load_that_starts_over_with_other_shards_ends_the_reader(harness: StreamHarness) -> None:
    harness.hold_back()
    with loading(harness), tonnage.open(harness.entry.path, wait=True) as weights:
        table = stream.read_stream_table(harness.entry.stream_dir)
        assert table is not None
        files = table.manifest.files
        other = msgspec.structs.replace(
            table,
            manifest=msgspec.structs.replace(
                table.manifest, files=tuple(msgspec.structs.replace(each, path=f"other-{each.path}") for each in files)
            ),
        )
        stream.write_stream_table(harness.entry, other)
        with pytest.raises(LoadRestarted):
            weights.state_dict()


def test_a_table_of_another_boot_of_the_machine_is_ignored(harness: StreamHarness) -> None:
    """After a crash, files of an unfinished load may lack their bytes."""
    harness.hold_back()
    with loading(harness):
        table = stream.read_stream_table(harness.entry.stream_dir)
        assert table is not None
        stream.write_stream_table(harness.entry, msgspec.structs.replace(table, boot_id="another"))
        assert stream.read_stream_table(harness.entry.stream_dir) is None
        with pytest.raises(NotLoadedInTime):
            tonnage.open(harness.entry.path, wait=True, timeout=0.2)
    assert stream.read_stream_table(harness.entry.stream_dir) is not None


def test_a_load_begins_without_the_shards_that_an_earlier_one_has_shown(harness: StreamHarness) -> None:
    """Their bytes are verified again first."""
    harness.hold_back()
    with loading(harness) as load, tonnage.open(harness.entry.path, wait=True) as weights:
        next(weights.stream())
        harness.deny()
        assert isinstance(load.exception(30), AccessDenied)
    shown = list(harness.entry.stream_dir.rglob("*.safetensors"))
    (damaged,) = harness.entry.partial_dir.glob(f"*/model/{shown[0].name}")
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    harness.server.clear_faults()
    harness.assert_loaded(harness.stream(lambda _: None))


def test_each_rank_is_read_while_it_is_loaded_and_those_that_were_there_stay(
    harness: StreamHarness, tensors_equal: TensorsEqual
) -> None:
    ranks = {rank: make_tensors(seed=rank, count=2, rows=8) for rank in (0, 1)}
    for rank, tensors in ranks.items():
        harness.server.put(f"bucket/ranks/model-rank-{rank:03}.tensors", to_tensors_file(tensors))

    def plan(*wanted: int) -> Plan:
        made = make_plan(
            "s3://bucket/ranks/", ranks=wanted, endpoint_url=harness.server.endpoint, region="eu", anonymous=True
        )
        return msgspec.structs.replace(made, entry=ENTRY)

    def load(*wanted: int) -> Report:
        return run_plan(plan(*wanted), cache=harness.cache, environment={}, on_readable=lambda _: None).report

    load(0)
    with tonnage.open(harness.entry.path, wait=True, rank=0) as first:
        load(1)
        for rank, tensors in ranks.items():
            with tonnage.open(harness.entry.stream_dir, wait=True, rank=rank) as weights:
                state = weights.state_dict()
                assert all(tensors_equal(state[name], tensor) for name, tensor in tensors.items())
        assert all(tensors_equal(first[name], tensor) for name, tensor in ranks[0].items())


def test_a_shard_whose_object_does_not_match_its_checksum_is_never_shown(harness: StreamHarness) -> None:
    """Safetensors files have no hashes of their own: the object is verified at its end, as a whole."""
    names = sorted(harness.tensors)
    parts = {"a": names[:6], "b": names[6:]}
    for part, members in parts.items():
        data = save({name: harness.tensors[name] for name in members})
        stated = zlib.crc32(data) if part == "a" else 1
        checksum = base64.b64encode(stated.to_bytes(4, "big")).decode()
        harness.server.put(
            f"bucket/plain/{part}.safetensors", data, headers={"x-amz-checksum-crc32": checksum}, etag='"0-opaque"'
        )
    plan = make_plan(
        "s3://bucket/plain/", limits=LIMITS, endpoint_url=harness.server.endpoint, region="eu", anonymous=True
    )
    harness.cache.mkdir()
    harness.entry.create()
    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(tonnage.open, harness.entry.path, wait=True, timeout=60)
        load = pool.submit(run_plan, msgspec.structs.replace(plan, entry=ENTRY), cache=harness.cache, environment={})
        seen: set[str] = set()
        with reader.result(60) as weights, pytest.raises(ChecksumMismatch):
            seen.update(name for name, _ in weights.stream())
        assert isinstance(load.exception(60), ChecksumMismatch)
    assert seen <= set(parts["a"])
    shown = {path.name for path in harness.entry.stream_dir.rglob("*.safetensors")}
    assert not any("b" in name.removesuffix(".safetensors").split("-") for name in shown)
    harness.assert_nothing_visible()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to load as another user")
def test_an_entry_of_another_user_is_refused_for_streaming_with_the_remedy(harness: StreamHarness) -> None:
    def load() -> None:
        with pytest.raises(stream.StreamNotPossible) as caught:
            harness.stream(lambda _: None)
        assert "tonnage.dev/wait" in caught.value.remedy
        assert run_plan(harness.plan(), cache=harness.cache, environment={}).report.outcome == "hit"

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        Path(folder).chmod(0o755)
        harness.cache = Path(folder)
        run_plan(harness.plan(), cache=harness.cache, environment={})
        assert run_in_child(load, uid=UNPRIVILEGED_UID) == 0


class TestPod:
    """The files that the loader's probes and the serving container see."""

    @staticmethod
    def command(harness: StreamHarness, run: Path) -> tuple[list[Any], dict[str, str]]:
        arguments = ["load", "--cache", harness.cache, "--stream", "--hold", "--progress", "off"]
        arguments += ["--ready-file", run / "ready", "--loaded-file", run / "loaded", "--status-file", run / "status"]
        return arguments, {"TONNAGE_PLAN": encode_plan(harness.plan()).decode(), "TONNAGE_STALL_SECONDS": "30"}

    @staticmethod
    def mounts(harness: StreamHarness, folder: Path) -> tuple[Path, Path]:
        """Returns the model's directory in a serving container, and the loader's folder of its own."""
        run = folder / "models" / ".tonnage" / "llama"
        run.mkdir(parents=True)
        return harness.entry.stream_dir, run

    def test_the_pod_starts_before_the_load_has_ended_and_has_files_for_both(
        self, harness: StreamHarness, tmp_path: Path, tensors_equal: TensorsEqual
    ) -> None:
        directory, run = self.mounts(harness, tmp_path)
        harness.hold_back()
        arguments, environment = self.command(harness, run)
        with start_tonnage(*arguments, environment=environment) as loader:
            eventually((run / "ready").exists, timeout=30)
            assert not (run / "loaded").exists()
            assert (run / "status").read_text() == "loading\n"
            (tmp_path / "models" / "llama").symlink_to(directory)
            with tonnage.open(tmp_path / "models" / "llama", wait=True) as weights:
                harness.release()
                state = weights.state_dict()
                assert all(tensors_equal(state[name], tensor) for name, tensor in harness.tensors.items())
            eventually((run / "loaded").exists, timeout=30)
            assert (run / "status").read_text() == "ready\n"
            loader.terminate()
            assert loader.wait(20) == 0

    def test_the_engine_ends_with_the_reason_of_its_own_loader(self, harness: StreamHarness, tmp_path: Path) -> None:
        directory, run = self.mounts(harness, tmp_path)
        harness.hold_back(DENIED)
        arguments, environment = self.command(harness, run)
        finished = run_tonnage(*arguments, environment=environment)
        assert finished.report["reason"] == "AccessDenied"
        assert not (run / "loaded").exists()
        (tmp_path / "models" / "llama").symlink_to(directory)
        with tonnage.open(tmp_path / "models" / "llama", wait=True) as weights, pytest.raises(AccessDenied) as caught:
            weights.state_dict()
        assert caught.value.message == finished.report["message"]
