"""Loads as real processes: killed at any moment, started together, held, and without enough space."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.load_harness import BOTH_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faults import Request
    from support.load_harness import IsPartRequest, LoadHarness

LOADER = Path(__file__).parents[3] / "loader"
INTERRUPTED = 32
IN_USE = 30


def command(harness: LoadHarness, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tonnage", "load", "s3://bucket/model/", "--cache", str(harness.cache), "--anonymous"),
        *("--endpoint-url", harness.server.endpoint, "--region", "us-east-1", "--part-size", "128Ki", "--workers", "2"),
        *("--connections", "4", "--progress", "off", *options),
    ]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(LOADER), "HOME": "/nonexistent"}


def start(harness: LoadHarness, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(harness, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def length_of(request: Request) -> int:
    assert request.range is not None
    first, last = request.range
    assert last is not None
    return last + 1 - first


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=50)
    assert out, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@BOTH_KINDS
@pytest.mark.parametrize("moment", [0.05, 0.3, 0.6, 0.95])
def test_after_sigkill_nothing_is_visible_and_the_next_load_resumes(harness: LoadHarness, moment: float) -> None:
    with ended(start(harness, "--bandwidth-limit", "2MB")) as process:
        harness.server.wait_for_bytes(int(harness.body + moment * (len(harness.tensors_file) - harness.body)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    visible = [path for path in harness.cache.glob("*/model/**/*") if path.is_file()]
    if visible:
        assert moment > 0.9
    report = harness.load()
    harness.assert_loaded(report)
    if moment > 0.2:
        assert report.resumed_bytes > 0 or report.outcome == "hit"
    assert report.downloaded_bytes <= (1.05 - moment) * len(harness.tensors_file) + 1_200_000


@BOTH_KINDS
def test_a_load_killed_many_times_still_ends_with_the_right_bytes(harness: LoadHarness) -> None:
    chance = random.Random(4)
    for _ in range(6):
        with ended(start(harness, "--bandwidth-limit", "4MB")) as process:
            harness.server.wait_for_bytes(harness.server.bytes_sent + chance.randrange(50_000, 500_000))
            process.kill()
            process.wait()
        visible = [path for path in harness.cache.glob("*/model/**/*") if path.is_file()]
        if visible:
            break
    harness.assert_loaded(harness.load())


@BOTH_KINDS
def test_a_killed_worker_is_replaced(harness: LoadHarness) -> None:
    with ended(start(harness, "--bandwidth-limit", "1MB")) as process:
        harness.server.wait_for_bytes(600_000)
        (host,) = children_of(process.pid)
        workers = children_of(host)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        report = report_of(process)
    assert (report["outcome"], report["reason"]) == ("loaded", "")
    assert report["retries"] >= 1
    harness.assert_loaded(harness.load())


def test_workers_go_on_without_the_killed_process_that_forked_them_and_are_replaced(harness: LoadHarness) -> None:
    with ended(start(harness, "--bandwidth-limit", "1MB")) as process:
        harness.server.wait_for_bytes(500_000)
        (host,) = children_of(process.pid)
        workers = children_of(host)
        os.kill(host, signal.SIGKILL)
        harness.server.wait_for_bytes(harness.server.bytes_sent + 200_000)
        assert any(map(is_running, workers))
        os.kill(workers[0], signal.SIGKILL)
        report = report_of(process)
        assert not any(map(is_running, workers))
    assert (report["outcome"], report["reason"]) == ("loaded", "")
    assert report["retries"] >= 1
    harness.assert_loaded(harness.load())


def test_workers_do_not_outlive_a_killed_loader(harness: LoadHarness) -> None:
    with ended(start(harness, "--bandwidth-limit", "500KB")) as process:
        harness.server.wait_for_bytes(500_000)
        (host,) = children_of(process.pid)
        below = [host, *children_of(host)]
        process.kill()
        process.wait()
    assert len(below) == 3
    deadline = time.monotonic() + 10
    while any(map(is_running, below)) and time.monotonic() < deadline:
        time.sleep(0.02)  # it is not a child, so it can't be awaited
    assert not any(map(is_running, below))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@BOTH_KINDS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_load_soon_with_its_reason_and_keeps_the_data(
    harness: LoadHarness, number: signal.Signals
) -> None:
    with ended(start(harness, "--bandwidth-limit", "1MB")) as process:
        harness.server.wait_for_bytes(800_000)
        process.send_signal(number)
        sent = time.monotonic()
        report = report_of(process)
        assert time.monotonic() - sent < 5
        assert process.returncode == INTERRUPTED
    assert (report["outcome"], report["reason"]) == ("failed", "Interrupted")
    harness.assert_nothing_visible()
    again = harness.load()
    assert again.resumed_bytes > 0
    harness.assert_loaded(again)


@BOTH_KINDS
def test_loads_started_together_download_the_bytes_once(harness: LoadHarness, is_part_request: IsPartRequest) -> None:
    processes = [start(harness) for _ in range(5)]
    reports = [report_of(process) for process in processes]
    assert sorted(report["outcome"] for report in reports) == ["hit"] * 4 + ["loaded"]
    assert len({report["path"] for report in reports}) == 1
    fetched = sum(length_of(request) for request in harness.server.find_requests() if is_part_request(request))
    assert fetched == len(harness.tensors_file) - harness.body
    assert sum(report["downloaded_bytes"] for report in reports) < len(harness.tensors_file) + 10_000


def test_a_held_entry_is_in_use_until_the_signal_and_the_holder_is_small(harness: LoadHarness) -> None:
    with ended(start(harness, "--hold")) as process:
        assert process.stdout is not None
        report = json.loads(process.stdout.readline())
        assert report["outcome"] == "loaded"
        wait_until_small(process.pid)
        refused = subprocess.run(
            [sys.executable, "-m", "tonnage", "rm", report["entry"], "--cache", str(harness.cache)],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert refused.returncode == IN_USE
        assert str(process.pid) in refused.stderr
        harness.assert_loaded(harness.load())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=1.0) == 0
    removed = subprocess.run(
        [sys.executable, "-m", "tonnage", "rm", report["entry"], "--cache", str(harness.cache)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert removed.returncode == 0, removed.stderr
    harness.assert_nothing_visible()


def wait_until_small(pid: int) -> None:
    """The program reduces its memory after its report; then it must use at most 12 MiB."""
    deadline = time.monotonic() + 5
    while resident_kib(pid) > 12 << 10 and time.monotonic() < deadline:
        time.sleep(0.01)  # an exec sends no event
    assert resident_kib(pid) <= 12 << 10


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def damage_shard(entry: Path) -> None:
    shard = next((entry / "model").glob("*.safetensors"))
    shard.chmod(0o644)
    os.truncate(shard, 1000)


def damage_manifest(entry: Path) -> None:
    (entry / ".tonnage" / "manifest.json").write_text("{garbage")


@BOTH_KINDS
@pytest.mark.parametrize("damage", [damage_shard, damage_manifest])
def test_a_damaged_entry_is_reported_by_verify_and_reloaded_by_load(harness: LoadHarness, damage: Any) -> None:
    entry = harness.cache / harness.load().entry
    damage(entry)
    checked = subprocess.run(
        [sys.executable, "-m", "tonnage", "verify", entry.name, "--cache", str(harness.cache)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert checked.returncode == 29
    assert "CacheDamaged" in checked.stderr
    report = harness.load()
    assert report.outcome == "loaded"
    assert any("damaged" in note for note in report.notes)
    harness.assert_loaded(report)


def test_no_secret_is_in_any_output_or_argument(harness: LoadHarness) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIsecret", "AWS_SESSION_TOKEN": "FwoGZXIvYXdzTOKEN"}
    options = [option for option in command(harness, "--bandwidth-limit", "1MB") if option != "--anonymous"]
    process = subprocess.Popen(
        options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | secrets | {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"},
    )
    with ended(process):
        harness.server.wait_for_bytes(500_000)
        (host,) = children_of(process.pid)
        pids = [process.pid, host, *children_of(host)]
        arguments = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
        workers = b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in pids[1:])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    tokens = {request.headers.get("x-amz-security-token") for request in harness.server.find_requests()}
    assert tokens == {secrets["AWS_SESSION_TOKEN"]}
    for secret in (*secrets.values(), "Signature="):
        assert secret not in out + err
        assert secret.encode() not in arguments + workers
