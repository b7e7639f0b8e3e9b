"""How a Job ended, and why, as far as Kubernetes and the loader's last words tell."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tonnage import contract
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InvalidPlan, Reason, error_classes
from tonnage_operator.domain import units
from tonnage_operator.domain.conditions import MESSAGE_LIMIT
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.reasons import FailureReason

if TYPE_CHECKING:
    from datetime import datetime

    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.pod import LoaderStatus, Pod


REPORT_GRACE_PERIOD: Final = 15.0
"""Seconds for which the end of a pod may be known later than the end of its Job: they are watched apart."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed: a stable reason, and a sentence."""

    reason: str
    message: str


def remaining_grace_period(job: Job, pod: Pod | None, now: datetime) -> float:
    """Returns for how many seconds more the last words of an ended Job are waited for; 0: they are known, or lost.

    Without this a pod whose end is seen late would count as one that said nothing.
    """
    if not job.finished_time or (
        pod and (pod.is_terminal or pod.deleting or any(each.terminated for each in pod.loaders))
    ):
        return 0.0
    age = (now - units.parse_time(job.finished_time)).total_seconds()
    # A time in the future means that clocks differ, and then nothing can be said of it.
    return REPORT_GRACE_PERIOD - age if -5.0 < age < REPORT_GRACE_PERIOD else 0.0


def effective_job(job: Job, pod: Pod | None, now: datetime) -> Job:
    """Returns the Job as decisions take it: one that ended goes on until its pod's last words are in."""
    return replace(job, state=JobState.ACTIVE) if remaining_grace_period(job, pod, now) else job


def termination_report(loader: LoaderStatus) -> contract.Report | None:
    """Returns a loader's report from its termination message, if there is one that can be read."""
    if loader.terminated and loader.terminated.message.lstrip().startswith("{"):
        try:
            return contract.decode_report(loader.terminated.message)
        except InvalidPlan:
            return None
    return None


def final_report(pod: Pod | None) -> contract.Report | None:
    """Returns the report of the pod's first loader that left one."""
    return next((report for loader in (pod.loaders if pod else ()) if (report := termination_report(loader))), None)


def remedy(reason: str) -> str:
    """Returns what a person can do about a reason of the loader's; empty for others."""
    known = {str(each): cls.remedy for each, cls in error_classes().items()}
    return known.get(reason, "")


def _kubernetes_failure(job: Job, pod: Pod) -> Failure | None:
    """Says whether Kubernetes ended the pod or its loader."""
    if pod.reason in {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated"}:
        return Failure(Reason.LOADER_EVICTED, f"The loader's pod was ended by Kubernetes ({pod.reason}). {pod.message}")
    for loader in pod.loaders:
        if loader.terminated and loader.terminated.reason == "OOMKilled":
            limit = f"its limit is {loader.memory_limit}" if loader.memory_limit else "the node had no more"
            size = f", and {human_bytes(job.bytes, 'column')} are to be written" if job.bytes else ""
            return Failure(
                Reason.LOADER_OOM_KILLED,
                f"The loader was killed for memory: {limit}{size}. Pages of a memory cache are charged to it: raise "
                "spec.loader.resources.limits.memory, or leave it out.",
            )
    return None


def job_failure(job: Job, pod: Pod | None) -> Failure:
    """Returns why a failed Job failed."""
    if pod and (killed := _kubernetes_failure(job, pod)):
        return killed
    report = final_report(pod)
    if report and report.reason:
        return Failure(report.reason, report.message[:MESSAGE_LIMIT])
    if job.reason == "DeadlineExceeded":
        waiting = pod_start_failure(pod)
        return waiting or Failure(Reason.TIMEOUT, "The Job passed its deadline; raise spec.loader.timeout.")
    ended = next((each.terminated for each in pod.loaders if each.terminated), None) if pod else None
    if ended:
        output = f" It said: {ended.message[:300]}" if ended.message else ""
        return Failure(Reason.INTERNAL_ERROR, f"The loader ended with exit code {ended.exit_code}.{output}")
    if pod is None or pod.deleting:
        return Failure(
            Reason.LOADER_EVICTED, "The loader's pod is gone: it was evicted or deleted, or its node drained."
        )
    return Failure(Reason.INTERNAL_ERROR, f"The Job failed: {job.reason} {job.message}".strip())


def pod_start_failure(pod: Pod | None) -> Failure | None:
    """Returns why a running Job's loader can't start, or None while nothing is wrong.

    A missing Secret or key is what people meet first, so it is told apart from a missing image.
    """
    if pod and pod.unschedulable_message:
        return Failure(
            FailureReason.LOADER_UNSCHEDULABLE, f"The loader's pod finds no room: {pod.unschedulable_message}"
        )
    for loader in pod.loaders if pod else ():
        if loader.waiting_reason in {"CreateContainerConfigError", "CreateContainerError"}:
            missing = re.search(r"(?i)secret|configmap", loader.waiting_message)
            reason = str(Reason.CREDENTIALS_MISSING) if missing else FailureReason.CONTAINER_NOT_STARTED
            return Failure(reason, f"The loader can't start: {loader.waiting_message}. It starts once that is there.")
        if loader.waiting_reason in {"ImagePullBackOff", "ErrImagePull", "InvalidImageName"}:
            return Failure(
                FailureReason.CONTAINER_NOT_STARTED, f"The loader's image can't be pulled: {loader.waiting_message}"
            )
    return None
