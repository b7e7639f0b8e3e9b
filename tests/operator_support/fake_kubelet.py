"""Sets the status of pods as kubelets and loaders would, for nodes without a kubelet. No container runs.

The real scheduler binds the pods; the real controller manager creates them from Jobs and completes the Jobs.
"""

from __future__ import annotations

import contextlib
import urllib.error
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from operator_support import objects
from operator_support.background_thread import BackgroundThread
from operator_support.injection import plain_env
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane

Pod = dict[str, Any]


@dataclass(frozen=True)
class Termination:
    """How a loader terminates. ``report`` None: without a termination message."""

    report: contract.Report | None
    exit_code: int = 0
    reason: str = ""


@dataclass
class FakeLoaders:
    """What fake loaders do; tests change it while the cluster runs.

    Attributes:
        version: The version of the source's objects.
        block_loads: Keeps load pods running.
        block_resolves: Keeps resolve pods running.
        block_cleanups: Keeps cleanup pods running.
        load_failures: By node: how its load pods terminate.
        resolve_failure: How resolve pods terminate; None: they succeed.
        injected_failure: How loaders in users' pods terminate, again and again; None: they succeed.
        waiting_messages: By role: the message with which a container can't be created.
        terminated: Role and node of each terminated pod.
    """

    version: str = "1"
    block_loads: bool = False
    block_resolves: bool = False
    block_cleanups: bool = False
    load_failures: dict[str, Termination] = field(default_factory=dict)
    resolve_failure: Termination | None = None
    injected_failure: Termination | None = None
    waiting_messages: dict[str, str] = field(default_factory=dict)
    terminated: list[tuple[str, str]] = field(default_factory=list)

    def termination(self, role: str, node: str, plan: contract.Plan | None) -> Termination | None:
        """Returns how a pod terminates now; None: it keeps running."""
        if role == names.ROLE_RESOLVE:
            if self.block_resolves:
                return None
            bucket = plan.sources[0].bucket if plan and isinstance(plan.sources[0], contract.S3Source) else "models"
            return self.resolve_failure or Termination(objects.resolved_report(self.version, bucket=bucket))
        if role == names.ROLE_LOAD:
            if node in self.load_failures:
                return self.load_failures[node]
            if self.block_loads:
                return None
        if role == names.ROLE_CLEANUP and self.block_cleanups:
            return None
        report = contract.Report(outcome=contract.Outcome.LOADED, bytes=2 * objects.GIB, seconds=1.0, verified="crc32")
        return Termination(report)


class FakeKubelet(BackgroundThread):
    """Acts as the kubelet of all nodes: sets the status of their pods every ``interval`` seconds."""

    def __init__(self, plane: ControlPlane, loaders: FakeLoaders, *, interval: float = 0.1) -> None:
        super().__init__()
        self.loaders = loaders
        self._plane = plane
        self._interval = interval
        self._terminated_uids: set[str] = set()
        """UIDs of terminated pods: the lists come from the API server's cache and may be stale."""

    def run(self) -> None:
        while not self.stop_requested.wait(self._interval):
            for pod in self._plane.request("GET", "/api/v1/pods?resourceVersion=0")["items"]:
                with contextlib.suppress(urllib.error.HTTPError):
                    self._sync_pod(pod)

    def _sync_pod(self, pod: Pod) -> None:
        metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if not pod["spec"].get("nodeName"):
            return
        if metadata.get("deletionTimestamp"):
            self._plane.request("DELETE", path, {"gracePeriodSeconds": 0})
            return
        role = metadata.get("labels", {}).get(names.ROLE)
        if phase in {"Succeeded", "Failed"} or metadata["uid"] in self._terminated_uids:
            return
        if role == names.ROLE_INJECTED:
            self._start_user_pod(path, pod)
        elif role and role != names.ROLE_PEER:
            self._run_loader(path, pod, role)

    def _run_loader(self, path: str, pod: Pod, role: str) -> None:
        if message := self.loaders.waiting_messages.get(role):
            waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": message}}
            if _container_state(pod) != waiting:
                self._set_container_state(path, "Pending", waiting)
            return
        env = plain_env(pod["spec"]["containers"][0])
        plan = contract.decode_plan(env["TONNAGE_PLAN"]) if "TONNAGE_PLAN" in env else None
        termination = self.loaders.termination(role, pod["spec"]["nodeName"], plan)
        if termination is None:
            if "running" not in _container_state(pod):
                self._set_container_state(path, "Running", {"running": {}})
            return
        state = {"terminated": _terminated(termination)}
        self._set_container_state(path, "Failed" if termination.exit_code else "Succeeded", state)
        self._terminated_uids.add(pod["metadata"]["uid"])
        self.loaders.terminated.append((role, pod["spec"]["nodeName"]))

    def _start_user_pod(self, path: str, pod: Pod) -> None:
        """Starts a user's pod; its injected loaders are ready immediately, or fail."""
        if pod["status"].get("initContainerStatuses"):
            return
        containers = [each["name"] for each in pod["spec"].get("initContainers", ())]
        if failure := self.loaders.injected_failure:
            statuses = [
                _container_status(name, {"waiting": {"reason": "CrashLoopBackOff"}})
                | {"restartCount": 2, "lastState": {"terminated": _terminated(failure)}}
                for name in containers
            ]
            self._patch_status(path, {"phase": "Pending", "initContainerStatuses": statuses})
        else:
            statuses = [_container_status(name, {"running": {}}) for name in containers]
            self._patch_status(path, {"phase": "Running", "initContainerStatuses": statuses})

    def _set_container_state(self, path: str, phase: str, state: dict[str, Any]) -> None:
        self._patch_status(
            path, {"phase": phase, "containerStatuses": [_container_status(names.LOADER_CONTAINER, state)]}
        )

    def _patch_status(self, path: str, status: dict[str, Any]) -> None:
        body = {"status": status}
        self._plane.request("PATCH", f"{path}/status", body, content_type="application/strategic-merge-patch+json")


def _terminated(termination: Termination) -> dict[str, Any]:
    message = contract.termination_message(termination.report).decode() if termination.report else ""
    reason = termination.reason or ("Error" if termination.exit_code else "Completed")
    return {"exitCode": termination.exit_code, "reason": reason, "message": message}


def _container_state(pod: Pod) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    state: dict[str, Any] = statuses[0].get("state") or {}
    return state


def _container_status(name: str, state: dict[str, Any]) -> dict[str, Any]:
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
