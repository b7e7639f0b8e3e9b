"""Reports are delivered if possible, and never delay a load."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from support.tls import make_certificate_authority
from support.waiting import eventually
from tonnage.contract import Identity, Outcome, Progress, Report, Reporting
from tonnage.reporting.reporter import Reporter

if TYPE_CHECKING:
    from pathlib import Path

    from support.report_server import ReportServer
    from support.tls import CertificateAuthority

IDENTITY = Identity(namespace="serving", name="llama", uid="u-1", generation=3)
TEMPLATE = Report(entry="r-0123456789ab", identity=IDENTITY, node="node-1", pod="server-0")
FINISHED = Report(outcome=Outcome.LOADED, identity=IDENTITY)


def loading(count: int) -> Progress:
    return Progress(phase="loading", loaded_bytes=count, total_bytes=100)


def test_progress_is_sent_with_its_identity(report_server: ReportServer) -> None:
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        reporter.progress(loading(1))
        report_server.wait_for(1)
    (received,) = report_server.received
    assert (received.path, received.token) == ("/v1/reports", "first-token")
    assert received.report.kind == "progress"
    assert received.report.progress == loading(1)
    assert received.report.identity == IDENTITY
    assert (received.report.node, received.report.pod, received.report.entry) == ("node-1", "server-0", TEMPLATE.entry)


def test_reports_keep_the_interval_and_have_the_newest_state(report_server: ReportServer) -> None:
    def loaded() -> list[int]:
        return [each.report.progress.loaded_bytes for each in report_server.received if each.report.progress]

    began = time.monotonic()
    with Reporter(report_server.reporting_config(interval=0.3), TEMPLATE) as reporter:
        for count in range(1, 31):
            reporter.progress(loading(count))
        eventually(lambda: loaded()[-1:] == [30])
        reporter.progress(loading(31))
        eventually(lambda: loaded()[-1:] == [31])
    assert time.monotonic() - began >= 0.3 * (len(loaded()) - 1) > 0
    assert loaded() == sorted(set(loaded()))
    assert report_server.connections == 1


def test_resolving_is_not_reported(report_server: ReportServer) -> None:
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        reporter.progress(Progress(phase="resolving"))
        assert reporter.send_final(FINISHED, timeout=5) is None
    assert report_server.report_kinds == ["finished"]


def test_the_token_is_read_again_for_each_report(report_server: ReportServer) -> None:
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        assert reporter.send_final(FINISHED, timeout=5) is None
        report_server.token_file.write_text("second-token")
        assert reporter.send_final(FINISHED, timeout=5) is None
    assert [each.token for each in report_server.received] == ["first-token", "second-token"]


def test_an_endpoint_that_does_not_respond_does_not_delay_the_load(report_server: ReportServer) -> None:
    report_server.unresponsive = True
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        slowest = 0.0
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            began = time.monotonic()
            reporter.progress(loading(1))
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.002)
        assert slowest < 0.1
        began = time.monotonic()
        failure = reporter.send_final(FINISHED, timeout=0.6)
        assert failure is not None
        assert "timed out" in failure.message or "stalled" in failure.message
        assert 0.4 < time.monotonic() - began < 1.2


def test_the_final_report_replaces_unsent_progress(report_server: ReportServer) -> None:
    with Reporter(report_server.reporting_config(interval=60), TEMPLATE) as reporter:
        reporter.progress(loading(1))
        report_server.wait_for(1)
        reporter.progress(loading(2))
        assert reporter.send_final(FINISHED, timeout=5) is None
    assert report_server.report_kinds == ["progress", "finished"]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_the_final_report_is_retried_after_transient_failures(report_server: ReportServer, status: int) -> None:
    report_server.next_statuses = [status, status]
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        assert reporter.send_final(FINISHED, timeout=5) is None
    assert report_server.report_kinds == ["finished"]


def test_a_permanent_rejection_is_logged_at_once_with_the_endpoints_message(report_server: ReportServer) -> None:
    report_server.next_statuses = [400] * 9
    began = time.monotonic()
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        failure = reporter.send_final(FINISHED, timeout=5)
    assert failure == ("the endpoint responded with 400: Rejected by the test server", True)
    assert time.monotonic() - began < 2


def test_the_timeout_bounds_all_attempts_together() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    began = time.monotonic()
    with Reporter(Reporting(url=f"http://127.0.0.1:{port}/"), TEMPLATE) as reporter:
        failure = reporter.send_final(FINISHED, timeout=0.5)
    assert failure is not None
    assert "can't connect" in failure.message
    assert time.monotonic() - began < 1


def test_a_signal_stops_the_waiting(report_server: ReportServer) -> None:
    report_server.unresponsive = True
    began = time.monotonic()
    with Reporter(report_server.reporting_config(), TEMPLATE) as reporter:
        assert reporter.send_final(FINISHED, timeout=10, canceled=lambda: time.monotonic() - began > 0.2) is not None
    assert time.monotonic() - began < 1


def test_an_endpoint_signed_by_another_ca_gets_no_token(report_server: ReportServer, tmp_path: Path) -> None:
    other = make_certificate_authority(tmp_path, "other")
    reporting = Reporting(url=report_server.url, ca_bundle=str(other.bundle), token_file=str(report_server.token_file))
    with Reporter(reporting, TEMPLATE) as reporter:
        failure = reporter.send_final(FINISHED, timeout=0.3)
    assert failure is not None
    assert "not trusted" in failure.message
    assert report_server.received == []


def test_a_ca_bundle_may_have_each_certificate_in_a_line_as_the_operator_writes_it(
    report_server: ReportServer, tmp_path: Path, authority: CertificateAuthority
) -> None:
    other = make_certificate_authority(tmp_path, "other")
    pem = other.bundle.read_text() + authority.bundle.read_text()
    line = tmp_path / "line"
    line.write_text(" ".join(each.replace("\n", "") for each in re.findall(r"CERTIFICATE-----([^-]+)-----END", pem)))
    reporting = Reporting(url=report_server.url, ca_bundle=str(line), token_file=str(report_server.token_file))
    with Reporter(reporting, TEMPLATE) as reporter:
        assert reporter.send_final(FINISHED, timeout=10) is None


@pytest.mark.parametrize("content", [None, b"", b"two words", b"line\r\nX-Evil: yes", b"\xff"])
def test_an_invalid_token_is_logged_and_nothing_is_sent(
    report_server: ReportServer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "other-token"
    if content is not None:
        path.write_bytes(content)
    reporting = Reporting(
        url=report_server.url, ca_bundle=report_server.reporting_config().ca_bundle, token_file=str(path)
    )
    with Reporter(reporting, TEMPLATE) as reporter:
        failure = reporter.send_final(FINISHED, timeout=0.1)
    assert failure is not None
    assert str(path) in failure.message
    assert "words" not in failure.message
    assert report_server.received == []


def test_a_missing_ca_bundle_does_not_fail_the_load(report_server: ReportServer, tmp_path: Path) -> None:
    reporting = Reporting(
        url=report_server.url, ca_bundle=str(tmp_path / "gone"), token_file=str(report_server.token_file)
    )
    with Reporter(reporting, TEMPLATE) as reporter:
        reporter.progress(loading(1))
        assert reporter.send_final(FINISHED, timeout=0.3) is not None


def test_the_place_is_shown_without_its_query() -> None:
    with Reporter(Reporting(url="http://user:pw@h.test/r?key=1"), TEMPLATE) as reporter:
        assert reporter.display_url == "http://h.test/r"
