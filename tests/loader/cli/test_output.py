"""The output of commands: files and lines."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from tonnage.cli.invocation import Invocation
from tonnage.cli.output import print_error, write_atomically, write_report_files
from tonnage.cli.signals import Cancellation
from tonnage.contract import Outcome, Plan, Report, S3Source, decode_report
from tonnage.errors import AccessDenied

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

REPORT = Report(outcome=Outcome.LOADED, revision="r-0123456789ab", notes=("n" * 3000, "m" * 3000))


def test_a_report_file_is_replaced_atomically_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_report_files(REPORT, str(path), "")
    assert decode_report(path.read_bytes()) == REPORT
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_can_be_written_to_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    write_atomically(path, b"hello")
    reader.join()
    assert received == [b"hello"]


def test_the_termination_message_is_limited_to_4096_bytes(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    place = log.stat().st_ino
    write_report_files(REPORT, "", str(log))
    assert log.stat().st_ino == place, "Kubernetes mounts this very file"
    assert log.stat().st_size <= 4096
    assert decode_report(log.read_bytes()).revision == REPORT.revision


def test_an_unwritable_report_is_only_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone" / "x"
    write_report_files(REPORT, str(gone), str(gone))
    shown = capsys.readouterr().err
    assert shown.count(str(gone)) == 2
    assert "No such file or directory" in shown


def test_an_error_is_shown_with_its_reason_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(AccessDenied("s3://b/k: denied for sekret-value"), {"AWS_SECRET_ACCESS_KEY": "sekret-value"})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "tonnage: AccessDenied: s3://b/k: denied for [hidden]"
    assert second == f"  → {AccessDenied.remedy}"


def test_a_failed_report_has_details_of_plan_and_error() -> None:
    invocation = Invocation(["load", "s3://b/k"], {}, Cancellation())
    invocation.plan = Plan(sources=(S3Source(bucket="b", prefix="k/"),), entry="mine")
    error = AccessDenied("No.")
    error.details.update(revision="r-0123456789ab", downloaded_bytes=7)
    report = invocation.failure_report(error)
    assert (report.outcome, report.reason, report.entry) == (Outcome.FAILED, "AccessDenied", "mine")
    assert (report.revision, report.downloaded_bytes, report.verified) == ("r-0123456789ab", 7, "none")


def test_a_failed_report_has_node_and_pod() -> None:
    invocation = Invocation(["load"], {"TONNAGE_NODE": "node-1", "TONNAGE_POD": "server-0"}, Cancellation())
    report = invocation.failure_report(AccessDenied("No."))
    assert (report.node, report.pod) == ("node-1", "server-0")


def test_an_internal_error_has_no_secrets_and_a_traceback_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "sekret-value", "TONNAGE_DEBUG": "1"}
    invocation = Invocation(["load"], environment, Cancellation())
    try:
        raise KeyError("sekret-value at https://h/x?sig=1")
    except KeyError as defect:
        error = invocation.to_internal_error(defect)
    report = invocation.failure_report(error)
    shown = capsys.readouterr().err
    assert report.reason == "InternalError"
    assert "KeyError" in report.message
    assert "Traceback" in shown
    assert "sekret" not in report.message + shown
    assert "sig=1" not in report.message + shown
