"""A cache with a capacity: on a machine, loaders count its entries; in a pod, which sees one entry, they ask."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.load_harness import KEY
from support.models import CONFIG
from support.report_server import ReportServer
from support.tonnage_cli import run_tonnage, start_tonnage
from tonnage.cache import Cache
from tonnage.contract import Identity, Limits, Plan, ReportKind, ReservationAnswer, S3Source
from tonnage.errors import InsufficientSpace, Interrupted, Timeout
from tonnage.loading import reservation_request, run_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.load_harness import LoadHarness
    from tonnage.contract import Progress, Report

ENTRY = "r-entry"
GRANTED = ReservationAnswer(granted=True)
NO_ROOM = "n0 has no room in Memory: 2.0 GiB needed, 1.0 GiB of 3.0 GiB left. serving/a has 2.0 GiB."


@pytest.fixture
def two_models(harness: LoadHarness) -> LoadHarness:
    harness.server.put(KEY.replace("/model/", "/other/"), harness.tensors_file)
    harness.server.put("bucket/other/config.json", CONFIG)
    return harness


def arguments(harness: LoadHarness, model: str, *options: str) -> list[str]:
    return [
        *("load", f"s3://bucket/{model}/", "--cache", str(harness.cache), "--anonymous", "--region", "us-east-1"),
        *("--endpoint-url", harness.server.endpoint, "--part-size", "128Ki", "--workers", "2", "--progress", "off"),
        *("--capacity", str(len(harness.tensors_file) * 3 // 2), *options),
    ]


def files_of_loads(harness: LoadHarness) -> list[Path]:
    return [path for path in harness.cache.glob("*/.tonnage/partial/**/*") if path.is_file()]


def test_a_load_beyond_the_capacity_fails_with_the_numbers_and_what_has_the_room(two_models: LoadHarness) -> None:
    first = run_tonnage(*arguments(two_models, "model"))
    second = run_tonnage(*arguments(two_models, "other"))
    assert (second.returncode, second.report["reason"], second.report["downloaded_bytes"]) == (
        27,
        "InsufficientSpace",
        0,
    )
    message = second.report["message"]
    assert "has not enough room" in message
    assert f"left of the {len(two_models.tensors_file) * 3 / 2 / (1 << 20):.1f} MiB" in message
    assert f"Beside it: {first.report['entry']} with" in message
    assert files_of_loads(two_models) == []
    assert run_tonnage(*arguments(two_models, "model")).report["outcome"] == "hit"
    assert run_tonnage("rm", first.report["entry"], "--cache", two_models.cache).returncode == 0
    assert run_tonnage(*arguments(two_models, "other")).report["outcome"] == "loaded"


def test_a_model_larger_than_the_capacity_is_refused_before_anything_is_removed(two_models: LoadHarness) -> None:
    result = run_tonnage(*arguments(two_models, "model", "--capacity", "1Mi"))
    assert result.report["reason"] == "InsufficientSpace"
    assert "the whole cache may have 1.0 MiB" in result.report["message"]


def test_of_two_loads_that_begin_together_one_is_loaded(two_models: LoadHarness) -> None:
    slow = ("--bandwidth-limit", "2MB")
    with (
        start_tonnage(*arguments(two_models, "model", *slow)) as first,
        start_tonnage(*arguments(two_models, "other", *slow)) as second,
    ):
        outputs = [process.communicate(timeout=50) for process in (first, second)]
        assert sorted((first.returncode, second.returncode)) == [0, 27], outputs
    assert files_of_loads(two_models) == []
    assert len(Cache(two_models.cache).entries()) == 1


def test_a_running_load_keeps_its_room_and_a_crashed_one_until_another_needs_it(two_models: LoadHarness) -> None:
    with start_tonnage(
        *arguments(two_models, "model", "--bandwidth-limit", "150KB"), start_new_session=True
    ) as process:
        two_models.server.wait_for_bytes(262_217 + 200_000)
        running = run_tonnage(*arguments(two_models, "other"))
        assert running.report["reason"] == "InsufficientSpace"
        assert "in use" in running.report["message"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert files_of_loads(two_models)
    other = run_tonnage(*arguments(two_models, "other"))
    assert other.report["outcome"] == "loaded", other.output
    assert any("had left in r-" in note for note in other.report["notes"])
    assert files_of_loads(two_models) == []


def test_a_failed_load_reports_what_it_left(two_models: LoadHarness) -> None:
    with pytest.raises(Interrupted) as interrupted:
        two_models.load(canceled=lambda: two_models.server.bytes_sent > len(two_models.tensors_file) * 2 // 3)
    left = interrupted.value.details["bytes"]
    assert isinstance(left, int)
    assert left > len(two_models.tensors_file) // 3
    with pytest.raises(InsufficientSpace) as refused:
        two_models.load(limits=Limits(capacity=1))
    assert refused.value.details["bytes"] == 0


@pytest.fixture
def in_pod(harness: LoadHarness) -> Iterator[LoadHarness]:
    """The folder of one entry is mounted, as in a pod."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    folder = harness.cache / ENTRY
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32M", "none", folder], check=True)
    yield harness
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[ReportServer]:
    with ReportServer(tmp_path) as server:
        yield server


def load_in_pod(
    harness: LoadHarness, operator: ReportServer, *, timeout: float = 0, progress: list[Progress] | None = None
) -> Report:
    plan = Plan(
        sources=(
            S3Source(
                bucket="bucket", prefix="model/", endpoint=harness.server.endpoint, region="us-east-1", anonymous=True
            ),
        ),
        entry=ENTRY,
        limits=Limits(workers=2, connections=4, capacity=64 << 20, timeout=timeout),
        reporting=operator.reporting_config(),
        identity=Identity(namespace="serving", name="model", uid="1", generation=1),
    )
    seen = progress if progress is not None else []
    return run_plan(plan, cache=harness.cache, environment={}, on_progress=seen.append).report


def test_in_a_pod_a_load_begins_when_the_operator_has_reserved_room(
    in_pod: LoadHarness, operator: ReportServer
) -> None:
    waiting = ReservationAnswer(granted=False, wait=True, message=NO_ROOM)
    operator.next_answers = [waiting, waiting, GRANTED]
    progress: list[Progress] = []
    report = load_in_pod(in_pod, operator, progress=progress)
    in_pod.assert_loaded(report)
    asked = [each.report for each in operator.received]
    assert [(each.kind, each.entry, each.bytes) for each in asked] == [
        (ReportKind.RESERVATION, ENTRY, report.bytes)
    ] * 3
    assert [each.token for each in operator.received] == ["first-token"] * 3
    assert f"room. {NO_ROOM}" in [each.waiting_for for each in progress if each.phase == "waiting"]
    assert load_in_pod(in_pod, operator).outcome == "hit"
    assert len(operator.received) == 3, "a hit asks for nothing"


def test_in_a_pod_a_refused_load_fails_with_the_operators_sentence_and_leaves_nothing(
    in_pod: LoadHarness, operator: ReportServer
) -> None:
    operator.next_answers = [ReservationAnswer(granted=False, message=NO_ROOM)]
    with pytest.raises(InsufficientSpace) as refused:
        load_in_pod(in_pod, operator)
    assert refused.value.message == NO_ROOM
    assert refused.value.details["bytes"] == 0
    assert in_pod.server.bytes_sent < len(in_pod.tensors_file)
    assert files_of_loads(in_pod) == []


def test_in_a_pod_a_load_that_waits_too_long_fails_with_the_operators_sentence(
    in_pod: LoadHarness, operator: ReportServer
) -> None:
    operator.next_answers = [ReservationAnswer(granted=False, wait=True, message=NO_ROOM)]
    with pytest.raises((InsufficientSpace, Timeout), match="no room in Memory"):
        load_in_pod(in_pod, operator, timeout=2)


@pytest.mark.parametrize("status", [204, 400, 503])
def test_in_a_pod_a_load_goes_on_if_the_operator_can_not_answer(
    in_pod: LoadHarness, operator: ReportServer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """204 and 400 are those of earlier releases, 503 that of a controller that starts."""
    monkeypatch.setattr(reservation_request, "UNANSWERED_SECONDS", 0.2)
    operator.next_statuses = [status] * 10
    report = load_in_pod(in_pod, operator)
    in_pod.assert_loaded(report)
    assert any("could not be asked for room" in note for note in report.notes)
