"""The report endpoint with real tokens: who may say what."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from operator_support import objects
from operator_support.faulty_proxy import FaultyProxy, Refusal
from operator_support.fleet import ControllerThread, installation
from operator_support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.kube.credentials import ClientConfig

if TYPE_CHECKING:
    from operator_support.fleet import Fleet
    from operator_support.kubelet import Loaders

Answer = tuple[int, str]


def send(controller: ControllerThread, token: str, report: contract.Report | bytes) -> tuple[int, str, str]:
    """Sends a report, and returns status, message and ``Retry-After`` of the answer."""
    data = report if isinstance(report, bytes) else contract.encode_report(report)
    url = f"http://127.0.0.1:{controller.controller.report_port}/v1/reports"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data=data, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, "", ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["message"], error.headers.get("Retry-After", "")


class Desk:
    """A loading pod, and the endpoint."""

    def __init__(self, fleet: Fleet, controller: ControllerThread) -> None:
        self.fleet = fleet
        self.controller = controller
        self.uid: str = fleet.get()["metadata"]["uid"]
        self.pod = eventually(self._pod)

    def _pod(self) -> str:
        path = f"/api/v1/namespaces/{self.fleet.namespace}/pods?labelSelector={names.ROLE}%3Dload"
        items = self.fleet.plane.request("GET", path)["items"]
        running = [each for each in items if each.get("status", {}).get("phase") == "Running"]
        return running[0]["metadata"]["name"] if running else ""

    def token(self, pod: str = "", *, audience: str = "tonnage.dev", namespace: str = "") -> str:
        command = ["create", "token", "default", "-n", namespace or self.fleet.namespace, f"--audience={audience}"]
        if pod != "none":
            command += ["--bound-object-kind=Pod", f"--bound-object-name={pod or self.pod}"]
        return self.fleet.plane.kubectl(*command).stdout.strip()

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

    def counted(self, kind: str, result: str) -> float:
        found: float = self.controller.controller.metrics.reports.labels(kind, result)._value.get()
        return found


@pytest.fixture
def desk(fleet: Fleet, loaders: Loaders, controller: ControllerThread) -> Desk:
    loaders.hold = True
    fleet.add_nodes("a")
    fleet.create()
    return Desk(fleet, controller)


def test_progress_reaches_the_status_with_rate_and_remaining_time(desk: Desk) -> None:
    assert desk.send(desk.token(), desk.report()) == (204, "")
    progress = eventually(lambda: desk.fleet.status().get("progress", {}).get("percent") == 50 and desk.fleet.status())
    assert progress["progressSummary"] == "50%"
    assert progress["progress"]["remainingSeconds"] == 70
    assert progress["progress"]["eta"] == "1m10s"
    assert progress["progress"]["bytesPerSecond"] == 5
    assert desk.counted("progress", "accepted") == 1
    wide = desk.fleet.plane.kubectl("get", "mw", "-n", desk.fleet.namespace, "-o", "wide").stdout.splitlines()
    columns = dict(zip(wide[0].split(), wide[1].split(), strict=True))
    assert (columns["READY"], columns["WARM"], columns["PROGRESS"]) == ("False", "0/1", "50%")
    assert (columns["MEDIUM"], columns["ETA"], columns["REASON"]) == ("Memory", "1m10s", "PartiallyWarm")
    assert (columns["PODS"], columns["SIZE"]) == ("0", "2Gi")
    (cache,) = desk.fleet.plane.kubectl(
        "get", "nodecaches", f"{desk.fleet.namespace}-a", "--no-headers"
    ).stdout.splitlines()
    assert cache.split()[-2] == "1", "LOADING"


def test_what_anyone_else_says_is_refused_and_counted(desk: Desk, loaders: Loaders) -> None:
    del loaders
    plane, space = desk.fleet.plane, desk.fleet.namespace
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "labels": {names.ROLE: "load", names.MODEL_UID: desk.uid}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    plane.request("POST", f"/api/v1/namespaces/{space}/pods", body)
    cases: dict[str, tuple[Answer, int, str]] = {
        "no token": (desk.send("", desk.report()), 401, "bearer token"),
        "garbage": (desk.send("x.y.z", desk.report()), 401, "audience"),
        "other audience": (desk.send(desk.token(audience="vault"), desk.report()), 401, "audience"),
        "bound to no pod": (desk.send(desk.token("none"), desk.report()), 401, "no pod"),
        "a stranger's pod": (desk.send(desk.token("stranger"), desk.report()), 403, "object"),
        "another object": (desk.send(desk.token(), desk.report(uid="other")), 403, "another object"),
        "a lie about the source": (
            desk.send(
                desk.token(),
                msgspec.structs.replace(
                    objects.resolved_report(),
                    identity=contract.Identity(namespace="x", name="llama", uid=desk.uid, generation=1),
                ),
            ),
            403,
            "Only resolve Jobs",
        ),
        "malformed": (desk.send(desk.token(), b"{}"), 400, "schema_version"),
        "unknown version": (desk.send(desk.token(), b'{"schema_version": 99}'), 400, "version 99"),
        "oversized": (desk.send(desk.token(), b"x" * (3 << 20)), 413, "at most"),
    }
    for case, ((status, message), expected, part) in cases.items():
        assert (status, part in message) == (expected, True), (case, status, message)
    assert desk.counted("unknown", "unauthenticated") == 4
    assert desk.counted("unknown", "malformed") == 2
    assert desk.counted("unknown", "oversized") == 1
    assert desk.counted("progress", "other_object") + desk.counted("progress", "unknown_pod") == 2
    assert desk.counted("resolved", "wrong_kind") == 1
    assert "progress" not in desk.fleet.status() or desk.fleet.status()["progress"]["percent"] == -1


def test_a_controller_that_does_not_know_all_pods_yet_asks_to_try_again(desk: Desk) -> None:
    """A loader takes a 403 for the last word."""
    token, report = desk.token(), desk.report()
    with FaultyProxy(desk.fleet.plane) as proxy:
        proxy.judge = lambda _method, path: Refusal(503) if path.startswith("/api/v1/pods?") else None
        fresh = ControllerThread(ClientConfig(proxy.url), installation())
        fresh.start()
        eventually(lambda: fresh.controller.report_port)
        status, message, retry_after = send(fresh, token, report)
        assert (status, retry_after) == (503, "1")
        assert "try again" in message
        proxy.judge = lambda _method, _path: None
        with fresh:
            assert send(fresh, token, report) == (204, "", "")
