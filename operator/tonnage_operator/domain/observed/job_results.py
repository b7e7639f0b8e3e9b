"""Derives a Job's result from its conditions, its pod, and the loader's termination message."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tonnage import contract
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InvalidPlan, Reason
from tonnage_operator.domain import units
from tonnage_operator.domain.conditions import MESSAGE_LIMIT
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.reasons import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.pod import LoaderStatus, Pod


REPORT_GRACE_PERIOD: Final = 15.0
"""Seconds by which a pod's termination may be observed later than its Job's: Jobs and pods have separate watches."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A stable reason and a message."""

    reason: str
    message: str


def remaining_grace_period(job: Job, pod: Pod | None, now: datetime) -> float:
    """Returns the seconds left to wait for the termination message of a finished Job; 0: it is known or lost.

    Otherwise a pod whose termination is observed after its Job's would be treated as having no report.
    """
    if not job.finished_time or (
        pod and (pod.is_terminal or pod.deleting or any(each.terminated for each in pod.loaders))
    ):
        return 0.0
    age = (now - units.parse_time(job.finished_time)).total_seconds()
    # A time in the future means clock skew; don't wait.
    return REPORT_GRACE_PERIOD - age if -5.0 < age < REPORT_GRACE_PERIOD else 0.0


def effective_job(job: Job, pod: Pod | None, now: datetime) -> Job:
    """Returns the Job as decisions see it: a finished Job counts as active during the grace period."""
    return replace(job, state=JobState.ACTIVE) if remaining_grace_period(job, pod, now) else job


def termination_report(loader: LoaderStatus) -> contract.Report | None:
    """Returns the report in a loader's termination message, or None if there is none or it is invalid."""
    if loader.terminated and loader.terminated.message.lstrip().startswith("{"):
        try:
            return contract.decode_report(loader.terminated.message)
        except InvalidPlan:
            return None
    return None


def final_report(pod: Pod | None) -> contract.Report | None:
    """Returns the first report in the termination messages of the pod's loaders."""
    return next((report for loader in (pod.loaders if pod else ()) if (report := termination_report(loader))), None)


_KILLED: Final = 137
"""Exit code of a container that was ended by SIGKILL."""
_TERMINATED: Final = 143
"""Exit code of a container that was ended by SIGTERM."""


def loader_failure(pod: Pod, loader: LoaderStatus, size: int) -> Failure | None:
    """Returns why a loader terminated; None if it did not, or without a failure.

    Args:
        pod: The loader's pod.
        loader: The loader.
        size: Bytes that it had to write; 0: unknown.
    """
    if loader.terminated is None:
        return None
    if killed := _kubernetes_failure(pod, (loader,), size):
        return killed
    report = termination_report(loader)
    if report and report.reason:
        return Failure(report.reason, report.message[:MESSAGE_LIMIT])
    code = loader.terminated.exit_code
    if not code:
        return None
    output = f" Its output: {loader.terminated.message[:300]}" if loader.terminated.message else ""
    if code in {_KILLED, _TERMINATED}:
        signal = "SIGKILL" if code == _KILLED else "SIGTERM"
        return Failure(
            FailureReason.LOADER_KILLED,
            f"The loader was ended by {signal} from outside: by its node, by its kubelet, or by hand.{output}",
        )
    return Failure(Reason.INTERNAL_ERROR, f"The loader exited with code {code}.{output}")


def _kubernetes_failure(pod: Pod, loaders: Iterable[LoaderStatus], size: int) -> Failure | None:
    """Returns the failure if Kubernetes terminated the pod or the loader, otherwise None."""
    if pod.reason in {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated"}:
        return Failure(Reason.LOADER_EVICTED, f"Kubernetes terminated the loader's pod ({pod.reason}). {pod.message}")
    for loader in loaders:
        if loader.terminated and loader.terminated.reason == "OOMKilled":
            limit = f"its limit is {loader.memory_limit}" if loader.memory_limit else "the node ran out of memory"
            needed = f", and {human_bytes(size, 'column')} have to be written" if size else ""
            return Failure(
                Reason.LOADER_OOM_KILLED,
                f"The loader was OOM-killed: {limit}{needed}. Pages of a memory cache are charged to the loader: raise "
                "or remove spec.loader.resources.limits.memory.",
            )
    return None


def job_failure(job: Job, pod: Pod | None) -> Failure:
    """Returns the cause of a Job's failure."""
    if pod and (killed := _kubernetes_failure(pod, pod.loaders, job.bytes)):
        return killed
    report = final_report(pod)
    if report and report.reason:
        return Failure(report.reason, report.message[:MESSAGE_LIMIT])
    if job.reason == "DeadlineExceeded":
        waiting = pod_start_failure(pod)
        return waiting or Failure(Reason.TIMEOUT, "The Job exceeded its deadline; raise spec.loader.timeout.")
    ended = (
        next((failure for each in pod.loaders if (failure := loader_failure(pod, each, job.bytes))), None)
        if pod
        else None
    )
    if ended:
        return ended
    if pod is None or pod.deleting:
        return Failure(
            Reason.LOADER_EVICTED,
            "The loader's pod no longer exists: it was evicted or deleted, or its node was drained.",
        )
    return Failure(Reason.INTERNAL_ERROR, f"The Job failed: {job.reason} {job.message}".strip())


def pod_start_failure(pod: Pod | None) -> Failure | None:
    """Returns why a running Job's loader can't start, or None if there is no problem.

    A missing Secret or key is the most common problem, so it has its own reason.
    """
    if pod and pod.unschedulable_message:
        return Failure(
            FailureReason.LOADER_UNSCHEDULABLE, f"The loader's pod is unschedulable: {pod.unschedulable_message}"
        )
    return next((failure for each in (pod.loaders if pod else ()) if (failure := loader_start_failure(each))), None)


def loader_start_failure(loader: LoaderStatus) -> Failure | None:
    """Returns why a loader's container can't be created, or None if there is no problem."""
    if loader.waiting_reason in {"CreateContainerConfigError", "CreateContainerError"}:
        missing = re.search(r"(?i)secret|configmap", loader.waiting_message)
        reason = str(Reason.CREDENTIALS_MISSING) if missing else FailureReason.CONTAINER_NOT_STARTED
        return Failure(
            reason, f"The loader can't start: {loader.waiting_message}. The loader starts when this is fixed."
        )
    if loader.waiting_reason in {"ImagePullBackOff", "ErrImagePull", "InvalidImageName"}:
        return Failure(
            FailureReason.CONTAINER_NOT_STARTED, f"Failed to pull the loader's image: {loader.waiting_message}"
        )
    return None
