"""What a pod relies on: files that say how it went, reports to the operator, and an end when it is told to."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.command import Finished, run_tonnage, start_tonnage
from support.faulty_rules import Fault
from support.report_desk import ReportDesk
from tonnage.contract import Identity, Plan, S3Source, decode_report, encode_plan

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from loader.cli.conftest import Model
    from support.faulty_server import FaultyServer
    from support.tls import TestAuthority

IDENTITY = Identity(namespace="serving", name="llama", uid="u-1", generation=3)
ENTRY = "r-0123456789ab"
MOST_RESIDENT_KIB = 12 * 1024


@dataclass
class Pod:
    """What the operator gives a loader: a plan in the environment, folders, an endpoint."""

    folder: Path
    desk: ReportDesk
    plan: Plan
    environment: dict[str, str]

    @property
    def entry(self) -> Path:
        return self.folder / "cache" / ENTRY

    @property
    def ready(self) -> Path:
        return self.folder / "run" / "ready"

    @property
    def status(self) -> Path:
        return self.folder / "run" / "status"

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    def words(self, *more: str | Path) -> list[str | Path]:
        return ["load", "--cache", self.folder / "cache", "--termination-log", self.log, "--progress", "off",
                "--ready-file", self.ready, "--status-file", self.status, *more]  # fmt: skip

    def variables(self, **more: str) -> dict[str, str]:
        plan = encode_plan(self.plan).decode()
        return {
            **self.environment,
            "TONNAGE_PLAN": plan,
            "TONNAGE_NODE": "node-1",
            "TONNAGE_POD": "server-0",
            **more,
        }

    def run(self, *more: str | Path) -> Finished:
        return run_tonnage(*self.words(*more), environment=self.variables())

    @contextlib.contextmanager
    def holding(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """A sidecar whose holder waits for its end."""
        with start_tonnage(*self.words("--hold", *more), environment=self.variables()) as process:
            assert process.stdout is not None
            process.stdout.readline()
            deadline = time.monotonic() + 20
            while b"hold.py" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield process


@pytest.fixture
def pod(tmp_path: Path, model: Model, authority: TestAuthority) -> Iterator[Pod]:
    """A pod as the operator makes it: of the cache it sees only the folder of its own entry."""
    with ReportDesk(tmp_path, authority) as desk:
        plan = Plan(
            sources=(S3Source(bucket=model.bucket, prefix="tiny/"),),
            entry=ENTRY,
            reporting=desk.reporting(),
            identity=IDENTITY,
        )
        made = Pod(tmp_path, desk, plan, model.environment)
        made.entry.mkdir(parents=True)
        made.ready.parent.mkdir()
        made.log.touch()
        yield made


@pytest.fixture
def lost(pod: Pod) -> Pod:
    """A pod whose model does not exist."""
    (source,) = pod.plan.sources
    pod.plan = msgspec.structs.replace(pod.plan, sources=(msgspec.structs.replace(source, prefix="gone/"),))
    return pod


def test_a_load_reports_to_the_operator_whose_it_is_and_where(pod: Pod) -> None:
    finished = pod.run()
    assert (finished.code, finished.err) == (0, "")
    assert set(pod.desk.kinds[:-1]) <= {"progress"}
    report = pod.desk.received[-1].report
    assert (report.kind, report.outcome, report.identity, report.entry) == ("finished", "loaded", IDENTITY, ENTRY)
    assert (report.node, report.pod) == ("node-1", "server-0")
    assert report.medium is not None
    assert report.medium.capacity_bytes >= report.medium.free_bytes > 0
    assert decode_report(finished.out) == report == decode_report(pod.log.read_bytes())


def test_a_hit_says_one_thing(pod: Pod) -> None:
    pod.run()
    pod.desk.received.clear()
    assert pod.run().report["outcome"] == "hit"
    assert pod.desk.kinds == ["finished"]


def test_nothing_is_touched_outside_of_the_folder_of_the_entry(pod: Pod) -> None:
    """In a pod its parent is the container's own, read-only; a claim has a folder of the file system's, too."""
    (pod.entry / "lost+found").mkdir(0o700)
    before = (pod.folder / "cache").stat()
    assert pod.run().code == 0
    after = (pod.folder / "cache").stat()
    assert before.st_mtime_ns == after.st_mtime_ns
    assert {path.name for path in pod.entry.iterdir()} == {"lost+found", ".tonnage", "model"}


def test_a_pod_that_may_go_on_finds_ready_in_both_files(pod: Pod) -> None:
    assert pod.run().code == 0
    assert pod.status.read_text() == "ready\n"
    assert pod.ready.read_text() == f"{ENTRY}\n"
    assert sorted(path.name for path in pod.ready.parent.iterdir()) == ["ready", "status"]


def test_a_ready_file_of_an_earlier_run_is_taken_back_first(lost: Pod) -> None:
    lost.ready.write_text("old")
    assert lost.run().code == 11
    assert not lost.ready.exists()
    status, reason, message = lost.status.read_text().splitlines()
    assert (status, reason) == ("failed", "ObjectNotFound")
    assert "gone/" in message


def test_a_failure_is_in_report_and_termination_message(lost: Pod) -> None:
    finished = lost.run()
    reported = lost.desk.received[-1].report
    assert (reported.outcome, reported.reason, reported.node) == ("failed", "ObjectNotFound", "node-1")
    assert decode_report(lost.log.read_bytes()) == decode_report(finished.out) == reported


def test_a_pod_that_wants_to_can_go_on_without_its_weights(lost: Pod) -> None:
    finished = lost.run("--on-failure", "continue")
    assert finished.code == 0
    assert (finished.report["outcome"], finished.report["reason"]) == ("failed", "ObjectNotFound")
    assert lost.status.read_text().startswith("failed\nObjectNotFound\n")
    assert lost.ready.exists()


def test_a_sidecar_without_weights_stays_until_it_is_told_to_end(lost: Pod) -> None:
    with lost.holding("--on-failure", "continue") as process:
        assert lost.ready.exists()
        assert decode_report(lost.log.read_bytes()).reason == "ObjectNotFound"
        process.terminate()
        assert process.wait(5) == 0
    assert lost.desk.kinds == ["finished"]


def test_a_defect_is_a_failure_like_any_other(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tonnage.loading'] = None\n")
    from support.command import command_environment

    path = f"{tmp_path}:{command_environment()['PYTHONPATH']}"
    words = pod.words("--on-failure", "continue")
    finished = run_tonnage(*words, environment=pod.variables(PYTHONPATH=path))
    assert finished.code == 0
    assert pod.status.read_text().startswith("failed\nInternalError\n")


def test_a_pod_that_ends_while_it_loads_is_not_let_go_on(pod: Pod, faulty: FaultyServer) -> None:
    faulty.put("b/m/x.tensors", b"|TZR|")
    faulty.fault(Fault(stall_before=True))
    source = S3Source(bucket="b", prefix="m/", endpoint=faulty.url, anonymous=True)
    pod.plan = msgspec.structs.replace(pod.plan, sources=(source,))
    with start_tonnage(*pod.words("--hold", "--on-failure", "continue"), environment=pod.variables()) as process:
        faulty.wait_for_requests(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 32
    assert not pod.ready.exists()
    assert pod.desk.received[-1].report.reason == "Interrupted"
    assert decode_report(pod.log.read_bytes()).reason == "Interrupted"


def test_a_holder_reports_its_release_and_is_gone_within_a_second(pod: Pod) -> None:
    with pod.holding() as process:
        assert pod.ready.exists()
        began = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 1.5
    assert pod.desk.kinds[-2:] == ["finished", "released"]
    released = pod.desk.received[-1].report
    assert (released.entry, released.identity, released.pod) == (ENTRY, IDENTITY, "server-0")


def test_an_entry_is_free_before_its_release_is_reported(pod: Pod) -> None:
    with pod.holding() as process:
        pod.desk.silent = True
        began = time.monotonic()
        process.terminate()
        while run_tonnage("rm", ENTRY, "--cache", pod.entry.parent).code == 30:
            assert time.monotonic() - began < 5
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5


def test_a_holder_that_will_report_is_as_small_and_knows_no_secret(pod: Pod) -> None:
    with pod.holding() as process:
        proc = Path(f"/proc/{process.pid}")
        found = re.search(r"^VmRSS:\s+(\d+) kB$", (proc / "status").read_text(), re.MULTILINE)
        assert found is not None
        assert int(found[1]) <= MOST_RESIDENT_KIB
        told = (proc / "cmdline").read_text() + (proc / "environ").read_text()
        assert pod.desk.token_file.read_text().strip() not in told
        assert pod.environment["AWS_SECRET_ACCESS_KEY"] not in told


def test_an_endpoint_that_is_down_delays_a_hit_by_a_bounded_time_and_fails_nothing(pod: Pod) -> None:
    pod.run()
    pod.desk.silent = True
    began = time.monotonic()
    finished = pod.run()
    assert time.monotonic() - began < 5
    assert finished.code == 0
    assert "can't be sent to https://localhost:" in finished.err
    assert "first-token" not in finished.everything


def test_a_sidecar_is_ready_before_anybody_is_told(pod: Pod) -> None:
    pod.run()
    pod.desk.silent = True
    with start_tonnage(*pod.words("--hold"), environment=pod.variables()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert pod.ready.exists()
        process.terminate()
        assert process.wait(10) == 0


def test_arguments_that_make_no_sense_end_up_in_the_termination_message(pod: Pod) -> None:
    finished = run_tonnage(*pod.words("--no-such-option"), environment=pod.variables())
    assert finished.code == 2
    assert "--no-such-option" in decode_report(pod.log.read_bytes()).message


def test_a_resolve_job_reports_what_it_found(pod: Pod, model: Model) -> None:
    words: list[str | Path] = ["resolve", "--termination-log", pod.log]
    finished = run_tonnage(*words, environment=pod.variables())
    assert (finished.code, finished.err) == (0, "")
    (received,) = pod.desk.received
    assert received.report.kind == "resolved"
    assert received.report.resolved is not None
    assert [pin.key for pin in received.report.resolved[0].objects] == ["tiny/config.json", "tiny/model.tensors"]
    assert received.report.resolved[0].place.endswith(f"/{model.bucket}")
    assert decode_report(pod.log.read_bytes()) == received.report


def test_a_resolve_job_that_fails_says_why(lost: Pod) -> None:
    finished = run_tonnage("resolve", "--termination-log", lost.log, environment=lost.variables())
    assert finished.code == 11
    reported = lost.desk.received[-1].report
    assert (reported.kind, reported.outcome, reported.reason) == ("resolved", "failed", "ObjectNotFound")
    assert json.loads(lost.log.read_bytes())["reason"] == "ObjectNotFound"


def test_a_cleanup_job_may_come_twice(pod: Pod) -> None:
    words: list[str | Path] = ["rm", "--cache", pod.entry.parent, "--ignore-not-found", ENTRY]
    assert run_tonnage(*words).code == 0
    pod.run()
    assert run_tonnage(*words).out.startswith(f"removed {ENTRY}, ")
    again = run_tonnage(*words)
    assert (again.code, again.out, again.err) == (0, "", "")
    assert run_tonnage("rm", "--cache", pod.entry.parent, ENTRY).code == 11
