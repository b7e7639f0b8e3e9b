"""What a kubelet and a loader would do, for nodes that are objects alone: pods get a status, nothing runs.

The real scheduler places the pods, the real controller manager makes them from Jobs and ends the Jobs.
"""

from __future__ import annotations

import contextlib
import threading
import urllib.error
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from operator_support import objects
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane

Pod = dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """How a loader ends. ``report`` None: without a word."""

    report: contract.Report | None
    code: int = 0
    reason: str = ""


@dataclass
class Loaders:
    """What loaders find and do; tests change it while the cluster runs.

    ``version`` is what the source has, ``hold`` keeps load pods running, ``broken`` ends loads on nodes so.
    """

    version: str = "1"
    hold: bool = False
    hold_resolve: bool = False
    broken: dict[str, Ending] = field(default_factory=dict)
    broken_resolve: Ending | None = None
    waiting: dict[str, str] = field(default_factory=dict)
    """By role: the message with which a container can't be created."""
    listed_by_report_only: bool = False
    ended: list[tuple[str, str]] = field(default_factory=list)

    def ending(self, role: str, node: str, plan: contract.Plan | None) -> Ending | None:
        """Returns how a pod ends now; None: it goes on."""
        if role == names.ROLE_RESOLVE:
            if self.hold_resolve:
                return None
            bucket = plan.sources[0].bucket if plan and isinstance(plan.sources[0], contract.S3Source) else "models"
            return self.broken_resolve or Ending(objects.resolved_report(self.version, bucket=bucket))
        if role == names.ROLE_LOAD:
            if node in self.broken:
                return self.broken[node]
            if self.hold:
                return None
        report = contract.Report(outcome=contract.Outcome.LOADED, bytes=2 * objects.GIB, seconds=1.0, verified="crc32")
        return Ending(report)


class Kubelet:
    """A thread that looks after all pods of all nodes."""

    def __init__(self, plane: ControlPlane, loaders: Loaders, *, every: float = 0.1) -> None:
        self._plane = plane
        self.loaders = loaders
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet")
        self.problem: BaseException | None = None
        self._ended: set[str] = set()
        """Uids of pods that were ended: the lists come from a cache and may be a moment old."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self.problem:
            raise self.problem

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every):
                for pod in self._plane.request("GET", "/api/v1/pods?resourceVersion=0")["items"]:
                    with contextlib.suppress(urllib.error.HTTPError):
                        self._look_after(pod)
        except BaseException as error:  # noqa: BLE001 - told by the test's thread
            self.problem = error

    def _look_after(self, pod: Pod) -> None:
        metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if not pod["spec"].get("nodeName"):
            return
        if metadata.get("deletionTimestamp"):
            self._plane.request("DELETE", path, {"gracePeriodSeconds": 0})
            return
        role = metadata.get("labels", {}).get(names.ROLE)
        if phase in {"Succeeded", "Failed"} or metadata["uid"] in self._ended:
            return
        if role == names.ROLE_INJECTED:
            self._serve(path, pod)
        elif role:
            self._load(path, pod, role)

    def _load(self, path: str, pod: Pod, role: str) -> None:
        if message := self.loaders.waiting.get(role):
            waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": message}}
            if _state(pod) != waiting:
                self._set(path, "Pending", waiting)
            return
        env = {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0].get("env", ())}
        plan = contract.decode_plan(env["TONNAGE_PLAN"]) if "TONNAGE_PLAN" in env else None
        ending = self.loaders.ending(role, pod["spec"]["nodeName"], plan)
        if ending is None:
            if "running" not in _state(pod):
                self._set(path, "Running", {"running": {}})
            return
        said = contract.termination_message(ending.report).decode() if ending.report else ""
        reason = ending.reason or ("Error" if ending.code else "Completed")
        ended = {"terminated": {"exitCode": ending.code, "reason": reason, "message": said}}
        self._set(path, "Failed" if ending.code else "Succeeded", ended)
        self._ended.add(pod["metadata"]["uid"])
        self.loaders.ended.append((role, pod["spec"]["nodeName"]))

    def _serve(self, path: str, pod: Pod) -> None:
        """Starts a pod of a user: its loaders are ready at once."""
        if pod["status"].get("initContainerStatuses"):
            return
        statuses = [_status(each["name"], {"running": {}}) for each in pod["spec"].get("initContainers", ())]
        self._patch(path, {"phase": "Running", "initContainerStatuses": statuses})

    def _set(self, path: str, phase: str, state: dict[str, Any]) -> None:
        self._patch(path, {"phase": phase, "containerStatuses": [_status(names.LOADER_CONTAINER, state)]})

    def _patch(self, path: str, status: dict[str, Any]) -> None:
        body = {"status": status}
        self._plane.request("PATCH", f"{path}/status", body, content_type="application/strategic-merge-patch+json")


def _state(pod: Pod) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    state: dict[str, Any] = statuses[0].get("state") or {}
    return state


def _status(name: str, state: dict[str, Any]) -> dict[str, Any]:
    running = "running" in state
    return {
        "name": name,
        "image": "loader",
        "imageID": "loader",
        "ready": running,
        "started": running,
        "restartCount": 0,
        "state": state,
    }
