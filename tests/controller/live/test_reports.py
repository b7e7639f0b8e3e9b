"""The report endpoint authenticates senders with real tokens, and accepts only reports of their own Jobs."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from operator_support import objects
from operator_support.faulty_proxy import ErrorResponse, FaultyProxy
from operator_support.harness import ControllerThread, make_installation, static_client_config
from operator_support.metrics import count
from support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

Answer = tuple[int, str]


def send(controller: ControllerThread, token: str, report: contract.Report | bytes) -> tuple[int, str, str]:
    """Sends a report; returns status, message and ``Retry-After`` of the response."""
    data = report if isinstance(report, bytes) else contract.encode_report(report)
    url = f"http://127.0.0.1:{controller.app.port}/v1/reports"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data=data, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, "", ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["message"], error.headers.get("Retry-After", "")


class ReportSender:
    """Sends reports of a loading pod to the endpoint."""

    def __init__(self, harness: OperatorHarness, controller: ControllerThread) -> None:
        self.harness = harness
        self.controller = controller
        self.uid: str = harness.get()["metadata"]["uid"]
        self.pod = eventually(self._pod)

    def _pod(self) -> str:
        path = f"/api/v1/namespaces/{self.harness.namespace}/pods?labelSelector={names.ROLE}%3Dload"
        items = self.harness.plane.request("GET", path)["items"]
        running = [each for each in items if each.get("status", {}).get("phase") == "Running"]
        return running[0]["metadata"]["name"] if running else ""

    def token(self, pod: str = "", *, audience: str = "tonnage.dev", namespace: str = "") -> str:
        command = ["create", "token", "default", "-n", namespace or self.harness.namespace, f"--audience={audience}"]
        if pod != "none":
            command += ["--bound-object-kind=Pod", f"--bound-object-name={pod or self.pod}"]
        return self.harness.plane.kubectl(*command).stdout.strip()

    def report(self, *, uid: str = "", loaded: int = 50, **more: Any) -> contract.Report:
        identity = contract.Identity(namespace="x", name="llama", uid=uid or self.uid, generation=1)
        progress = contract.Progress(
            phase="loading", loaded_bytes=loaded, total_bytes=100, bytes_per_second=5.0, remaining_seconds=70
        )
        fields: dict[str, Any] = {"kind": contract.ReportKind.PROGRESS, "identity": identity, "progress": progress}
        return contract.Report(**{**fields, **more})

    def send(self, token: str, report: contract.Report | bytes) -> Answer:
        status, message, _ = send(self.controller, token, report)
        return status, message

    def report_count(self, kind: str, result: str) -> int:
        return count(self.controller.app.metrics.reports, kind=kind, result=result)


@pytest.fixture
def report_sender(harness: OperatorHarness, fake_loaders: FakeLoaders, controller: ControllerThread) -> ReportSender:
    fake_loaders.block_loads = True
    harness.add_nodes("a")
    harness.create()
    return ReportSender(harness, controller)


def test_progress_reaches_the_status_with_rate_and_remaining_time(report_sender: ReportSender) -> None:
    assert report_sender.send(report_sender.token(), report_sender.report()) == (204, "")
    progress = eventually(
        lambda: (
            report_sender.harness.status().get("progress", {}).get("percent") == 50 and report_sender.harness.status()
        )
    )
    assert progress["progressSummary"] == "50%"
    assert progress["progress"]["remainingSeconds"] == 70
    assert progress["progress"]["eta"] == "1m10s"
    assert progress["progress"]["bytesPerSecond"] == 5
    assert report_sender.report_count("progress", "accepted") == 1
    wide = report_sender.harness.plane.kubectl(
        "get", "mw", "-n", report_sender.harness.namespace, "-o", "wide"
    ).stdout.splitlines()
    columns = dict(zip(wide[0].split(), wide[1].split(), strict=True))
    assert (columns["READY"], columns["WARM"], columns["PROGRESS"]) == ("False", "0/1", "50%")
    assert (columns["MEDIUM"], columns["ETA"], columns["REASON"]) == ("Memory", "1m10s", "PartiallyWarm")
    assert (columns["PODS"], columns["SIZE"]) == ("0", "2Gi")
    (cache,) = report_sender.harness.plane.kubectl(
        "get", "nodecaches", f"{report_sender.harness.namespace}-a", "--no-headers"
    ).stdout.splitlines()
    assert cache.split()[-2] == "1", "LOADING"


def test_reports_from_other_senders_are_rejected_and_counted(
    report_sender: ReportSender, fake_loaders: FakeLoaders
) -> None:
    del fake_loaders
    plane, namespace = report_sender.harness.plane, report_sender.harness.namespace
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "labels": {names.ROLE: "load", names.MODEL_UID: report_sender.uid}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    cases: dict[str, tuple[Answer, int, str]] = {
        "no token": (report_sender.send("", report_sender.report()), 401, "bearer token"),
        "garbage": (report_sender.send("x.y.z", report_sender.report()), 401, "audience"),
        "other audience": (
            report_sender.send(report_sender.token(audience="vault"), report_sender.report()),
            401,
            "audience",
        ),
        "bound to no pod": (report_sender.send(report_sender.token("none"), report_sender.report()), 401, "no pod"),
        "a stranger's pod": (
            report_sender.send(report_sender.token("stranger"), report_sender.report()),
            403,
            "object",
        ),
        "another object": (
            report_sender.send(report_sender.token(), report_sender.report(uid="other")),
            403,
            "another object",
        ),
        "a lie about the source": (
            report_sender.send(
                report_sender.token(),
                msgspec.structs.replace(
                    objects.resolved_report(),
                    identity=contract.Identity(namespace="x", name="llama", uid=report_sender.uid, generation=1),
                ),
            ),
            403,
            "Only resolve Jobs",
        ),
        "malformed": (report_sender.send(report_sender.token(), b"{}"), 400, "schema_version"),
        "unknown version": (report_sender.send(report_sender.token(), b'{"schema_version": 99}'), 400, "version 99"),
        "oversized": (report_sender.send(report_sender.token(), b"x" * (3 << 20)), 413, "more than"),
    }
    for case, ((status, message), expected, part) in cases.items():
        assert (status, part in message) == (expected, True), (case, status, message)
    assert report_sender.report_count("unknown", "unauthenticated") == 4
    assert report_sender.report_count("unknown", "malformed") == 2
    assert report_sender.report_count("unknown", "oversized") == 1
    assert (
        report_sender.report_count("progress", "other_object") + report_sender.report_count("progress", "unknown_pod")
        == 2
    )
    assert report_sender.report_count("resolved", "wrong_kind") == 1
    assert (
        "progress" not in report_sender.harness.status() or report_sender.harness.status()["progress"]["percent"] == -1
    )


def test_a_pod_that_runs_no_loader_is_rejected_before_it_sends_a_report(report_sender: ReportSender) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "unlabeled"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    report_sender.harness.plane.request("POST", f"/api/v1/namespaces/{report_sender.harness.namespace}/pods", body)
    token = report_sender.token("unlabeled")
    head = f"POST /v1/reports HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", report_sender.controller.app.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 403")


def test_a_controller_with_incomplete_caches_answers_with_retry_after(report_sender: ReportSender) -> None:
    """A loader doesn't retry after a 403."""
    token, report = report_sender.token(), report_sender.report()
    with FaultyProxy(report_sender.harness.plane) as proxy:
        proxy.on_request = lambda _method, path: ErrorResponse(503) if path.startswith("/api/v1/pods?") else None
        fresh = ControllerThread(static_client_config(proxy.url), make_installation())
        fresh.start()
        eventually(lambda: fresh.app.port)
        status, message, retry_after = send(fresh, token, report)
        assert (status, retry_after) == (503, "1")
        assert "try again" in message
        proxy.on_request = lambda _method, _path: None
        with fresh:
            assert send(fresh, token, report) == (204, "", "")
