"""Decides when to resolve the source of a ``ModelWeights``, and which revision it uses."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tonnage import contract
from tonnage.contract.sizes import human_bytes
from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import RevisionPolicy, UpdatePolicy
from tonnage_operator.api.status import MAX_HISTORY, MAX_OBJECTS, MAX_SOURCE, PinnedObject, SeenRevision, StoreBehavior
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.observed.job_results import Failure
from tonnage_operator.domain.observed.model_weights import describe_source
from tonnage_operator.domain.reasons import EventReason, FailureReason
from tonnage_operator.domain.specs import plans
from tonnage_operator.domain.specs.jobs import build_resolve_job
from tonnage_operator.domain.specs.plans import MAX_PLAN_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.source import S3Location
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.model_weights import ModelWeights


_COMMIT: Final = r"[0-9a-f]{40}|[0-9a-f]{64}"
MAX_HISTORY_BYTES: Final = 2 * MAX_PLAN_BYTES
"""Characters of the lists of objects in ``status.history``: etcd limits the size of an object."""
_MAX_BYTES: Final = 2**63 - 1
"""The API server takes no larger number."""


@dataclass(frozen=True)
class Revisions:
    """The known revisions of the source."""

    resolved: SeenRevision | None = None
    available: SeenRevision | None = None
    history: tuple[SeenRevision, ...] = ()
    last_checked_time: str = ""

    def switched_to(self, wanted: SeenRevision, now: str) -> Revisions:
        """Returns a copy with another revision in use. The newest known one of its source remains as ``available``."""
        newest = self.available or self.resolved
        newest = newest if newest and newest.source_hash == wanted.source_hash else wanted
        past = [each for each in (self.resolved, *self.history) if each]
        numbers = [each.number for each in past if each.number]
        used = wanted.model_copy(update={"number": max(numbers, default=len(past)) + 1, "used_time": now})
        kept = [each for each in past if each.revision not in {wanted.revision, newest.revision}]
        distinct: dict[str, SeenRevision] = {}
        for each in kept:
            distinct.setdefault(each.revision, each)
        return replace(
            self,
            resolved=used,
            available=None if newest.revision == wanted.revision else newest,
            history=_shorten(tuple(distinct.values())[:MAX_HISTORY]),
        )

    def find(self, revision: str) -> SeenRevision | None:
        """Returns the known revision with this name."""
        known = (self.resolved, self.available, *self.history)
        return next((each for each in known if each and each.revision == revision), None)


def _shorten(history: Sequence[SeenRevision]) -> tuple[SeenRevision, ...]:
    """Leaves out the lists of objects from where they exceed ``MAX_HISTORY_BYTES`` together."""
    total, shortened = 0, []
    for each in history:
        total += _written_bytes(each.objects or ())
        shortened.append(each if total <= MAX_HISTORY_BYTES else each.model_copy(update={"objects": None}))
    return tuple(shortened)


@dataclass(frozen=True)
class Resolution:
    """The revisions, and the resolve Jobs to create and delete."""

    revisions: Revisions
    is_current: bool
    """The revision in use was resolved for the current source and files."""
    target: SeenRevision | None = None
    """The revision that is loaded first and then used."""
    problem: Failure | None = None
    attempts: int = 0
    next_attempt_time: str = ""
    """When a failed resolve is tried again; empty: now, or not at all."""
    running: bool = False
    apply: tuple[Body, ...] = ()
    delete: tuple[Job, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None

    @property
    def staged(self) -> bool:
        """Whether a revision is loaded that will be used."""
        return self.target is not None

    def promoted(self, generation: int, now: str) -> Resolution:
        """Returns a copy with the target in use. ``generation`` is the object's."""
        if self.target is None:
            return self
        return replace(
            self,
            revisions=self.revisions.switched_to(self.target, now),
            target=None,
            events=(*self.events, _revision_changed_event(self.revisions.resolved, self.target, generation)),
        )


def _revision_changed_event(old: SeenRevision | None, new: SeenRevision, generation: int) -> Event:
    before = old.revision if old else "nothing"
    message = f"Now using {new.revision} ({human_bytes(new.total_bytes, 'column')}) in place of {before}."
    return Event(EventReason.REVISION_CHANGED, message, key=f"{before} {new.revision} {generation}")


def parse_resolve_report(report: contract.Report, weights: ModelWeights, *, now: str) -> SeenRevision | Failure:
    """Returns the revision in a resolve Job's report, or why the report is inconsistent."""
    objects = [(source.place, pin) for source in report.resolved or () for pin in source.objects]
    digest = contract.revision_digest(objects)
    elsewhere = _outside(weights, objects)
    total = sum(pin.size for _, pin in objects)
    if total > _MAX_BYTES:
        return Failure(FailureReason.REPORT_CONTRADICTS_ITSELF, f"The objects have {total} bytes, which is impossible.")
    if not objects or digest != report.digest or elsewhere:
        why = "lists objects outside spec.source" if elsewhere else "has a digest that doesn't match its objects"
        return Failure(FailureReason.REPORT_CONTRADICTS_ITSELF, f"The resolve Job's report {why}; it is ignored.")
    pins = tuple(
        PinnedObject(key=pin.key, size=pin.size, etag=pin.etag, version_id=pin.version_id, checksum=pin.checksum)
        for _, pin in objects
    )
    return SeenRevision(
        revision=contract.revision_id(digest),
        digest=digest,
        total_bytes=total,
        object_count=len(pins),
        objects=pins if _fit(pins) else None,
        behavior=_behavior(report.resolved or ()),
        source_hash=weights.source_hash,
        source=describe_source(weights.spec.source)[:MAX_SOURCE] or None,
        time=now,
    )


def _behavior(resolved: Sequence[contract.ResolvedSource]) -> StoreBehavior | None:
    """Returns how the store must be asked, as the resolve Job found it. An object has one source."""
    found = next((each.behavior for each in resolved if each.behavior is not None), None)
    return plans.parse_behavior(found) if found is not None else None


def _outside(weights: ModelWeights, objects: list[tuple[str, contract.ObjectPin]]) -> bool:
    """Returns whether an object is not in the source, or its pin is not one of this source."""
    source, files = weights.spec.source, plans.file_selection(weights.spec.files)
    places = {place for place, _ in objects}
    if s3 := source.s3:
        own = places == {contract.source_place(s3.endpoint or "", s3.bucket)}
        return not own or not all(_contains(s3, pin.key, files) for _, pin in objects)
    if hub := source.hub:
        commits = {pin.version_id for _, pin in objects}
        own = len(commits) == 1 and all(contract.is_hub_place(each, hub.endpoint or "", hub.repo) for each in places)
        selected = all(contract.classify_path(pin.key, files) is not None for _, pin in objects)
        named = re.fullmatch(_COMMIT, hub.revision) is None or commits == {hub.revision}
        return not own or not selected or not named
    return places != {""}


def _contains(s3: S3Location, key: str, files: contract.FileSelection) -> bool:
    """Returns whether a key is in a source, and ``files`` select it."""
    directory = contract.key_directory(None if s3.keys else s3.prefix or "", s3.keys or ())
    within = key in s3.keys if s3.keys else key.startswith(directory)
    path = key.removeprefix(directory)
    return within and contract.classify_path(path, files, explicit=bool(s3.keys)) is not None


def _fit(pins: tuple[PinnedObject, ...]) -> bool:
    """Returns whether the list goes into the status. A list that fits into no plan is useless, and etcd has a limit."""
    return len(pins) <= MAX_OBJECTS and _written_bytes(pins) <= MAX_PLAN_BYTES


def _written_bytes(pins: Iterable[PinnedObject]) -> int:
    return sum(len(pin.key) + len(pin.etag) + len(pin.version_id) + len(pin.checksum) for pin in pins)


def _from_status(weights: ModelWeights) -> Revisions:
    status, wanted = weights.status, weights.source_hash
    available = status.available if status.available and status.available.source_hash == wanted else None
    return Revisions(status.resolved, available, status.history or (), status.last_checked_time or "")


def _due_round(snapshot: Snapshot, revisions: Revisions, *, is_current: bool) -> tuple[str | None, float | None]:
    """Returns the name of the resolve round that is due (None: no round), and the seconds until the next one."""
    revision = snapshot.weights.spec.revision
    if not is_current:
        return "", None
    if revision.policy is not RevisionPolicy.TRACK:
        return None, None
    if not revisions.last_checked_time:
        return "first", None
    passed = (snapshot.now - units.parse_time(revisions.last_checked_time)).total_seconds()
    remaining_seconds = units.parse_duration(revision.interval) - passed
    return (revisions.last_checked_time, None) if remaining_seconds <= 0 else (None, remaining_seconds)


def _resolve_result(snapshot: Snapshot, job: Job) -> SeenRevision | Failure:
    """Returns the result of a finished resolve Job."""
    pod = snapshot.pods.get(job.uid)
    if job.state is JobState.FAILED:
        return job_results.job_failure(job, pod)
    for report in (snapshot.reports.get(job.uid), job_results.final_report(pod)):
        if report and report.resolved:
            return parse_resolve_report(report, snapshot.weights, now=snapshot.timestamp)
    return Failure(
        FailureReason.REPORT_LOST,
        "The source was listed, but the list was lost: it is too long for a termination message, and the loader "
        "couldn't reach the report endpoint. The Job will be retried.",
    )


def _record_revision(
    revisions: Revisions, found: SeenRevision, *, is_current: bool, now: str, pin: str | None
) -> Revisions:
    checked = replace(revisions, last_checked_time=now)
    if not is_current:
        return replace(checked, available=None).switched_to(found, now)
    in_use = revisions.resolved
    if in_use and found.revision == in_use.revision:
        return replace(checked, resolved=_asked_again(in_use, found), available=None)
    if revisions.available and found.revision == revisions.available.revision:
        return replace(checked, available=_asked_again(revisions.available, found))
    if revisions.available and revisions.available.revision == pin:
        # It is being rolled out, though the source has moved on.
        checked = replace(checked, history=_shorten((revisions.available, *revisions.history)[:MAX_HISTORY]))
    return replace(checked, available=found)


def _asked_again(known: SeenRevision, found: SeenRevision) -> SeenRevision:
    """Returns a known revision with how its store must be asked now."""
    return known.model_copy(update={"behavior": found.behavior})


def _select_revision(
    weights: ModelWeights, revisions: Revisions, now: str
) -> tuple[Revisions, SeenRevision | None, Failure | None]:
    """Applies ``pin`` and ``expectedDigest``. Returns the revisions, the one to roll out, and a problem."""
    spec, resolved = weights.spec.revision, revisions.resolved
    target = None
    if spec.pin and resolved and spec.pin != resolved.revision:
        target = revisions.find(spec.pin)
        if target is None or target.source_hash != weights.source_hash:
            return revisions, None, _unknown_pin(weights, revisions, target)
    elif spec.policy is RevisionPolicy.TRACK and spec.update is UpdatePolicy.AUTOMATIC:
        target = revisions.available
    expected = spec.expected_digest
    if target and resolved and expected not in {None, resolved.digest}:
        # New pods may not get the revision in use any longer.
        revisions, target = revisions.switched_to(target, now), None
    wanted = target or revisions.resolved
    if wanted and expected and wanted.digest != expected:
        return (
            revisions,
            None,
            Failure(
                Reason.DIGEST_MISMATCH,
                f"The source has {wanted.digest}, and spec.revision.expectedDigest is {expected}.",
            ),
        )
    return revisions, target, None


def _unknown_pin(weights: ModelWeights, revisions: Revisions, found: SeenRevision | None) -> Failure:
    pin = weights.spec.revision.pin
    if found is not None:
        return Failure(
            FailureReason.PIN_UNKNOWN,
            f"spec.revision.pin is {pin}, which is a revision of another source ({found.source}): set spec.source and "
            "spec.files back to it, too.",
        )
    known = (revisions.resolved, revisions.available, *revisions.history)
    seen = ", ".join(each.revision for each in known if each and each.source_hash == weights.source_hash)
    return Failure(FailureReason.PIN_UNKNOWN, f"spec.revision.pin is {pin}, but the known revisions are: {seen}.")


def decide_revision(snapshot: Snapshot) -> Resolution:
    """Returns the revisions, and the resolve Jobs to create and delete."""
    weights = snapshot.weights
    before = _from_status(weights)
    is_current = weights.current_revision is not None
    key = naming.resolve_key(weights.spec)
    resolve_jobs = [job for job in snapshot.jobs if job.role == names.ROLE_RESOLVE]
    due, remaining_seconds = _due_round(snapshot, before, is_current=is_current)
    round_jobs = [job for job in resolve_jobs if job.key == key and job.round == due and not job.deleting]
    latest = max(round_jobs, key=lambda job: job.attempt, default=None)
    resolution = Resolution(before, is_current, requeue_after=remaining_seconds)
    if due is not None:
        resolution = _advance_resolve(snapshot, resolution, latest, round_=due)
    chosen, target, problem = resolution.revisions, None, None
    if resolution.is_current:
        chosen, target, problem = _select_revision(weights, resolution.revisions, snapshot.timestamp)
    events = resolution.events
    if before.resolved and chosen.resolved and before.resolved.revision != chosen.resolved.revision:
        events = (*events, _revision_changed_event(before.resolved, chosen.resolved, weights.generation))
    return replace(
        resolution,
        revisions=chosen,
        problem=problem or resolution.problem,
        target=target,
        delete=_superseded(resolve_jobs, latest),
        events=events,
    )


def _superseded(mine: Sequence[Job], latest: Job | None) -> tuple[Job, ...]:
    keep = latest.uid if latest else ""
    return tuple(job for job in mine if job.uid != keep and not job.deleting)


def _start_resolve(snapshot: Snapshot, resolution: Resolution, *, round_: str, attempt: int) -> Resolution:
    if snapshot.weights.spec.suspend:
        return resolution
    job = build_resolve_job(snapshot.weights, snapshot.installation, round_=round_, attempt=attempt)
    return replace(resolution, running=True, attempts=attempt, apply=(job,))


def _advance_resolve(snapshot: Snapshot, resolution: Resolution, latest: Job | None, *, round_: str) -> Resolution:
    """Advances the round that is due: starts a Job, waits for it, or takes its result."""
    if latest is None:
        return _start_resolve(snapshot, resolution, round_=round_, attempt=1)
    if latest.state is JobState.ACTIVE:
        build = functools.partial(build_resolve_job, snapshot.weights, snapshot.installation, round_=round_, attempt=1)
        if snapshot.must_be_replaced(latest, build):
            return _start_resolve(snapshot, resolution, round_=round_, attempt=latest.attempt + 1)
        waiting = snapshot.start_failure(latest)
        return replace(resolution, running=True, problem=waiting, attempts=latest.attempt)
    found = _resolve_result(snapshot, latest)
    if isinstance(found, SeenRevision):
        revisions = _record_revision(
            resolution.revisions,
            found,
            is_current=resolution.is_current,
            now=snapshot.timestamp,
            pin=snapshot.weights.spec.revision.pin,
        )
        _, remaining_seconds = _due_round(snapshot, revisions, is_current=True)
        return replace(resolution, revisions=revisions, is_current=True, requeue_after=remaining_seconds)
    failed = replace(resolution, problem=found, attempts=latest.attempt)
    if (wait := snapshot.retry_delay(latest)) > 0:
        return replace(failed, requeue_after=wait, next_attempt_time=snapshot.next_attempt_time(latest))
    return _start_resolve(snapshot, failed, round_=round_, attempt=latest.attempt + 1)
