"""Loads in a pod: ready and status files, reports to the operator, and the exit on SIGTERM."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.faults import Fault
from support.preload_shims import REFUSES_TO_END, build_shim
from support.report_server import ReportServer
from support.tonnage_cli import CommandResult, run_tonnage, start_tonnage
from tonnage.contract import Identity, Plan, S3Source, decode_report, encode_plan

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from loader.cli.conftest import Model
    from support.faulty_server import FaultyServer
    from support.tls import CertificateAuthority

IDENTITY = Identity(namespace="serving", name="llama", uid="u-1", generation=3)
ENTRY = "r-0123456789ab"
MOST_RESIDENT_KIB = 12 * 1024
COMPILER = shutil.which("cc")


@dataclass
class PodEnvironment:
    """The loader's environment in a pod: a plan in a variable, folders, a report endpoint."""

    folder: Path
    report_server: ReportServer
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

    def load_arguments(self, *more: str | Path) -> list[str | Path]:
        return ["load", "--cache", self.folder / "cache", "--termination-log", self.log, "--progress", "off",
                "--ready-file", self.ready, "--status-file", self.status, *more]  # fmt: skip

    def env(self, **more: str) -> dict[str, str]:
        plan = encode_plan(self.plan).decode()
        return {
            **self.environment,
            "TONNAGE_PLAN": plan,
            "TONNAGE_NODE": "node-1",
            "TONNAGE_POD": "server-0",
            **more,
        }

    def run(self, *more: str | Path, **environment: str) -> CommandResult:
        return run_tonnage(*self.load_arguments(*more), environment=self.env(**environment))

    @contextlib.contextmanager
    def holding(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """A sidecar with a running holder."""
        with start_tonnage(*self.load_arguments("--hold", *more), environment=self.env()) as process:
            assert process.stdout is not None
            process.stdout.readline()
            deadline = time.monotonic() + 20
            while b"hold.py" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield process


@pytest.fixture
def pod(tmp_path: Path, model: Model, authority: CertificateAuthority) -> Iterator[PodEnvironment]:
    """A pod like the operator's: of the cache it has only the folder of its entry."""
    with ReportServer(tmp_path, authority) as report_server:
        plan = Plan(
            sources=(S3Source(bucket=model.bucket, prefix="tiny/"),),
            entry=ENTRY,
            reporting=report_server.reporting_config(),
            identity=IDENTITY,
        )
        made = PodEnvironment(tmp_path, report_server, plan, model.environment)
        made.entry.mkdir(parents=True)
        made.ready.parent.mkdir()
        made.log.touch()
        yield made


@pytest.fixture
def pod_without_model(pod: PodEnvironment) -> PodEnvironment:
    """A pod whose model does not exist."""
    (source,) = pod.plan.sources
    pod.plan = msgspec.structs.replace(pod.plan, sources=(msgspec.structs.replace(source, prefix="gone/"),))
    return pod


def test_reports_to_the_operator_have_identity_node_and_pod(pod: PodEnvironment) -> None:
    finished = pod.run()
    assert (finished.returncode, finished.stderr) == (0, "")
    assert set(pod.report_server.report_kinds[:-1]) <= {"progress"}
    report = pod.report_server.received[-1].report
    assert (report.kind, report.outcome, report.identity, report.entry) == ("finished", "loaded", IDENTITY, ENTRY)
    assert (report.node, report.pod) == ("node-1", "server-0")
    assert report.medium is not None
    assert report.medium.capacity_bytes >= report.medium.free_bytes > 0
    assert decode_report(finished.stdout) == report == decode_report(pod.log.read_bytes())


def test_a_hit_sends_one_report(pod: PodEnvironment) -> None:
    pod.run()
    pod.report_server.received.clear()
    assert pod.run().report["outcome"] == "hit"
    assert pod.report_server.report_kinds == ["finished"]


def test_nothing_is_written_outside_the_folder_of_the_entry(pod: PodEnvironment) -> None:
    """In a pod the parent folder is read-only, and in a claim it has a folder of the file system."""
    (pod.entry / "lost+found").mkdir(0o700)
    before = (pod.folder / "cache").stat()
    assert pod.run().returncode == 0
    after = (pod.folder / "cache").stat()
    assert before.st_mtime_ns == after.st_mtime_ns
    assert {path.name for path in pod.entry.iterdir()} == {"lost+found", ".tonnage", "model"}


def test_after_a_load_both_files_are_written(pod: PodEnvironment) -> None:
    assert pod.run().returncode == 0
    assert pod.status.read_text() == "ready\n"
    assert pod.ready.read_text() == f"{ENTRY}\n"
    assert sorted(path.name for path in pod.ready.parent.iterdir()) == ["ready", "status"]


def test_a_ready_file_of_an_earlier_run_is_removed_first(pod_without_model: PodEnvironment) -> None:
    pod_without_model.ready.write_text("old")
    assert pod_without_model.run().returncode == 11
    assert not pod_without_model.ready.exists()
    status, reason, message = pod_without_model.status.read_text().splitlines()
    assert (status, reason) == ("failed", "ObjectNotFound")
    assert "gone/" in message


def test_a_failure_is_in_report_and_termination_message(pod_without_model: PodEnvironment) -> None:
    finished = pod_without_model.run()
    reported = pod_without_model.report_server.received[-1].report
    assert (reported.outcome, reported.reason, reported.node) == ("failed", "ObjectNotFound", "node-1")
    assert decode_report(pod_without_model.log.read_bytes()) == decode_report(finished.stdout) == reported


def test_a_pod_can_continue_without_its_weights(pod_without_model: PodEnvironment) -> None:
    finished = pod_without_model.run("--on-failure", "continue")
    assert finished.returncode == 0
    assert (finished.report["outcome"], finished.report["reason"]) == ("failed", "ObjectNotFound")
    assert pod_without_model.status.read_text().startswith("failed\nObjectNotFound\n")
    assert pod_without_model.ready.exists()


def test_a_sidecar_without_weights_runs_until_sigterm(pod_without_model: PodEnvironment) -> None:
    with pod_without_model.holding("--on-failure", "continue") as process:
        assert pod_without_model.ready.exists()
        assert decode_report(pod_without_model.log.read_bytes()).reason == "ObjectNotFound"
        process.terminate()
        assert process.wait(5) == 0
    assert pod_without_model.report_server.report_kinds == ["finished"]


def test_an_unexpected_exception_is_handled_like_any_other_failure(pod: PodEnvironment, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tonnage.loading'] = None\n")
    from support.tonnage_cli import command_environment

    path = f"{tmp_path}:{command_environment()['PYTHONPATH']}"
    args = pod.load_arguments("--on-failure", "continue")
    finished = run_tonnage(*args, environment=pod.env(PYTHONPATH=path))
    assert finished.returncode == 0
    assert pod.status.read_text().startswith("failed\nInternalError\n")


def test_a_pod_that_ends_while_it_loads_does_not_continue(pod: PodEnvironment, faulty_server: FaultyServer) -> None:
    faulty_server.put("b/m/x.tensors", b"|TZR|")
    faulty_server.add_fault(Fault(stall_before=True))
    source = S3Source(bucket="b", prefix="m/", endpoint=faulty_server.url, anonymous=True)
    pod.plan = msgspec.structs.replace(pod.plan, sources=(source,))
    with start_tonnage(*pod.load_arguments("--hold", "--on-failure", "continue"), environment=pod.env()) as process:
        faulty_server.wait_for_requests(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 32
    assert not pod.ready.exists()
    assert pod.report_server.received[-1].report.reason == "Interrupted"
    assert decode_report(pod.log.read_bytes()).reason == "Interrupted"


def test_a_holder_exits_within_a_second(pod: PodEnvironment) -> None:
    with pod.holding() as process:
        assert pod.ready.exists()
        began = time.monotonic()
        process.terminate()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 1.5
    assert pod.report_server.report_kinds[-1] == "finished"


def test_a_holder_with_reporting_is_as_small_and_has_no_secret(pod: PodEnvironment) -> None:
    with pod.holding() as process:
        proc = Path(f"/proc/{process.pid}")
        found = re.search(r"^VmRSS:\s+(\d+) kB$", (proc / "status").read_text(), re.MULTILINE)
        assert found is not None
        assert int(found[1]) <= MOST_RESIDENT_KIB
        proc_text = (proc / "cmdline").read_text() + (proc / "environ").read_text()
        assert pod.report_server.token_file.read_text().strip() not in proc_text
        assert pod.environment["AWS_SECRET_ACCESS_KEY"] not in proc_text


def test_an_endpoint_that_is_down_delays_a_hit_by_a_bounded_time_and_fails_nothing(pod: PodEnvironment) -> None:
    pod.run()
    pod.report_server.unresponsive = True
    began = time.monotonic()
    finished = pod.run()
    assert time.monotonic() - began < 5
    assert finished.returncode == 0
    assert "can't be sent to https://localhost:" in finished.stderr
    assert "first-token" not in finished.output


def test_a_sidecar_is_ready_before_it_reports(pod: PodEnvironment) -> None:
    pod.run()
    pod.report_server.unresponsive = True
    with start_tonnage(*pod.load_arguments("--hold"), environment=pod.env()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert pod.ready.exists()
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for a library that notices its end")
def test_a_process_ends_before_the_libraries_that_its_threads_still_use(pod: PodEnvironment) -> None:
    """A thread may still send the report: in OpenSSL it crashed one of ten processes with many certificates to read."""
    assert COMPILER is not None
    pod.run()
    pod.report_server.unresponsive = True
    shim = build_shim(REFUSES_TO_END, pod.folder, compiler=COMPILER)
    finished = pod.run(LD_PRELOAD=str(shim))
    assert finished.report["outcome"] == "hit"
    assert "can't be sent to https://localhost:" in finished.stderr
    assert finished.returncode == 0


def test_invalid_arguments_are_in_the_termination_message(pod: PodEnvironment) -> None:
    finished = run_tonnage(*pod.load_arguments("--no-such-option"), environment=pod.env())
    assert finished.returncode == 2
    assert "--no-such-option" in decode_report(pod.log.read_bytes()).message


def test_a_resolve_job_reports_the_objects(pod: PodEnvironment, model: Model) -> None:
    args: list[str | Path] = ["resolve", "--termination-log", pod.log]
    finished = run_tonnage(*args, environment=pod.env())
    assert (finished.returncode, finished.stderr) == (0, "")
    (received,) = pod.report_server.received
    assert received.report.kind == "resolved"
    assert received.report.resolved is not None
    assert [pin.key for pin in received.report.resolved[0].objects] == ["tiny/config.json", "tiny/model.tensors"]
    assert received.report.resolved[0].place.endswith(f"/{model.bucket}")
    assert decode_report(pod.log.read_bytes()) == received.report


def test_a_failed_resolve_job_reports_the_reason(pod_without_model: PodEnvironment) -> None:
    finished = run_tonnage("resolve", "--termination-log", pod_without_model.log, environment=pod_without_model.env())
    assert finished.returncode == 11
    reported = pod_without_model.report_server.received[-1].report
    assert (reported.kind, reported.outcome, reported.reason) == ("resolved", "failed", "ObjectNotFound")
    assert json.loads(pod_without_model.log.read_bytes())["reason"] == "ObjectNotFound"


def test_a_cleanup_job_is_idempotent(pod: PodEnvironment) -> None:
    args: list[str | Path] = ["rm", "--cache", pod.entry.parent, "--ignore-not-found", ENTRY]
    assert run_tonnage(*args).returncode == 0
    pod.run()
    assert run_tonnage(*args).stdout.startswith(f"removed {ENTRY}, ")
    again = run_tonnage(*args)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert run_tonnage("rm", "--cache", pod.entry.parent, ENTRY).returncode == 11
