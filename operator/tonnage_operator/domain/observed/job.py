"""A Job of ours."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from tonnage_operator.api.base import Body

_Key = TypeVar("_Key", bound="Hashable")


class JobState(enum.StrEnum):
    """How far a Job is."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Job:
    """A Job of ours."""

    namespace: str
    name: str
    uid: str
    role: str
    model_uid: str
    model_ref: str
    key: str
    """What it resolves for, or the cache key that it loads or empties."""
    medium: str
    target: str
    """Where it loads or empties: a node's name, or ``pvc/<claim>``."""
    cause: str
    boot_id: str
    round: str
    attempt: int
    state: JobState
    reason: str
    message: str
    finished_time: str
    start_time: str
    """When Kubernetes first looked after it; empty: not yet, as happens where there are many."""
    bytes: int
    """What it is to load; 0: nothing, or unknown."""
    deleting: bool

    @property
    def entry_key(self) -> EntryKey:
        """The entry that a load or cleanup Job on a node is about."""
        return EntryKey(self.key, Medium(self.medium))

    @property
    def node_name(self) -> str:
        """Name of the node that it is for; empty where it is for a claim, or for nothing of the kind."""
        return "" if self.target.startswith(names.CLAIM_PREFIX) else self.target


def latest_attempts(jobs: Iterable[Job], key: Callable[[Job], _Key]) -> dict[_Key, Job]:
    """Returns the Job with the highest attempt for each value of ``key``."""
    latest: dict[_Key, Job] = {}
    for job in jobs:
        before = latest.get(key(job))
        if before is None or before.attempt < job.attempt:
            latest[key(job)] = job
    return latest


def parse_job(body: Body) -> Job:
    """Returns what matters of a Job."""
    metadata, status = body["metadata"], body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    state, reason, message, finished = JobState.ACTIVE, "", "", ""
    for condition in status.get("conditions") or ():
        if condition.get("status") != "True":
            continue
        if condition["type"] == "Complete":
            state = JobState.SUCCEEDED
            finished = status.get("completionTime") or condition.get("lastTransitionTime") or ""
        elif condition["type"] == "Failed":
            state, reason = JobState.FAILED, condition.get("reason", "")
            message, finished = condition.get("message", ""), condition.get("lastTransitionTime") or ""
    return Job(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        role=labels.get(names.ROLE, ""),
        model_uid=labels.get(names.MODEL_UID, ""),
        model_ref=annotations.get(names.MODEL_REF, ""),
        key=annotations.get(names.CACHE_KEY) or annotations.get(names.SOURCE_HASH, ""),
        medium=annotations.get(names.MEDIUM, ""),
        target=annotations.get(names.NODE, ""),
        cause=annotations.get(names.CAUSE, ""),
        boot_id=annotations.get(names.BOOT_ID, ""),
        round=annotations.get(names.ROUND, ""),
        attempt=int(annotations.get(names.ATTEMPT, "1")),
        state=state,
        reason=reason,
        message=message,
        finished_time=finished,
        start_time=status.get("startTime") or "",
        bytes=int(annotations.get(names.BYTES, "0")),
        deleting="deletionTimestamp" in metadata,
    )
