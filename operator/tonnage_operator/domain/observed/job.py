"""Jobs that the operator created."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.domain import signing

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.signing import SigningKeys

_Key = TypeVar("_Key", bound="Hashable")

_MAX_ATTEMPT: Final = 1_000_000


class JobState(enum.StrEnum):
    """Whether a Job has finished, and how."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Job:
    """A resolve, load or cleanup Job."""

    namespace: str
    name: str
    uid: str
    role: str
    model_uid: str
    owner_uid: str
    """Uid of the object that owns it as its controller; empty for cleanup Jobs on nodes."""
    model_ref: str
    key: str
    """For a resolve Job ``naming.resolve_key``; otherwise the cache key to load or evict."""
    medium: str
    target: str
    """Where it loads or evicts: the name of a node, or ``pvc/<claim>``."""
    cause: str
    boot_id: str
    round: str
    attempt: int
    state: JobState
    reason: str
    message: str
    finished_time: str
    start_time: str
    """When the Job controller first processed it; empty: not yet."""
    bytes: int
    """Size of the revision to load; 0 for other Jobs."""
    deleting: bool
    suspended: bool = False
    """``spec.suspend`` is set, so it has no pod. Queues such as Kueue do that; the operator never does."""
    queue: str = ""
    """The queue of Kueue that it waits for; empty: none is named."""
    retry: str = ""
    """Digest of the object's annotation ``tonnage.dev/retry`` when the Job was created."""
    template: str = ""
    """Digest of what its pod needs to start; empty if an earlier release created it."""
    signature: str = ""
    """Empty if it is missing, or not the operator's over this Job."""
    signed_at: str = ""
    """Time in the signature, in RFC 3339 in seconds; empty: it has none, as in those of earlier releases."""

    @property
    def entry_key(self) -> EntryKey:
        """The entry of a load or cleanup Job on a node. Other Jobs have none: ``ValueError``."""
        return EntryKey(self.key, Medium(self.medium))

    @property
    def node_name(self) -> str:
        """Name of the target node; empty for claims and resolve Jobs."""
        return "" if self.target.startswith(names.CLAIM_PREFIX) else self.target


def latest_attempts(jobs: Iterable[Job], key: Callable[[Job], _Key]) -> dict[_Key, Job]:
    """Returns the Job with the highest attempt for each value of ``key``."""
    latest: dict[_Key, Job] = {}
    for job in jobs:
        before = latest.get(key(job))
        if before is None or before.attempt < job.attempt:
            latest[key(job)] = job
    return latest


def _parse_number(text: str, *, lowest: int, highest: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and lowest <= int(text) <= highest):
        raise ValueError(f"{text[:30]!r} is not a number from {lowest} to {highest}")
    return int(text)


def _parse_medium(text: str) -> str:
    return Medium(text).value if text else ""


def _counts(metadata: Body, signature: str, keys: SigningKeys) -> bool:
    return keys.verifies(signature, *signing.job_parts(metadata)) and signing.is_timely(metadata)


def parse_job(body: Body, keys: SigningKeys = signing.NO_KEYS) -> Job:
    """Parses a Job, and verifies its signature with the installation's keys.

    Raises:
        ValueError: An annotation has a value that the operator does not write.
    """
    metadata, status = body["metadata"], body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    signature = annotations.get(names.SIGNATURE, "")
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
        owner_uid=signing.controller_uid(metadata),
        model_ref=annotations.get(names.MODEL_REF, ""),
        key=annotations.get(names.CACHE_KEY) or annotations.get(names.SOURCE_HASH, ""),
        medium=_parse_medium(annotations.get(names.MEDIUM, "")),
        target=annotations.get(names.NODE, ""),
        cause=annotations.get(names.CAUSE, ""),
        boot_id=annotations.get(names.BOOT_ID, ""),
        round=annotations.get(names.ROUND, ""),
        attempt=_parse_number(annotations.get(names.ATTEMPT, "1"), lowest=1, highest=_MAX_ATTEMPT),
        state=state,
        reason=reason,
        message=message,
        finished_time=finished,
        start_time=status.get("startTime") or "",
        bytes=_parse_number(annotations.get(names.BYTES, "0"), lowest=0, highest=2**63 - 1),
        deleting="deletionTimestamp" in metadata,
        suspended=bool((body.get("spec") or {}).get("suspend")),
        queue=labels.get(names.KUEUE_QUEUE, ""),
        retry=annotations.get(names.RETRY, ""),
        template=annotations.get(names.TEMPLATE, ""),
        signature=signature if _counts(metadata, signature, keys) else "",
        signed_at=annotations.get(names.SIGNED_AT, ""),
    )
