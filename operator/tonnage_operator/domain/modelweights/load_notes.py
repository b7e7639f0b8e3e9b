"""What loaders remarked about the revision in use, for the object's status. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.report import OMITTED_OBJECTS_NOTE
from tonnage_operator.api import names
from tonnage_operator.api.status import MAX_NOTE, MAX_NOTES
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage import contract
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.modelweights.snapshot import Snapshot


def find_load_notes(snapshot: Snapshot, revision: SeenRevision | None) -> tuple[str, ...]:
    """Returns the notes of the resolve Job and of loads of the revision, and those that the status already has for it.

    Only the resolve Job sees which files were left out, because load Jobs get the list of the others. Only Jobs and
    pods in the object's namespace count, because others may write any text into a termination message. Loads that asked
    peers don't: they note how those did, which is different for each load, and no remark about the revision.

    Args:
        snapshot: The observed state.
        revision: The revision in use.
    """
    if revision is None:
        return ()
    before = snapshot.weights.status
    is_same = before.resolved is not None and before.resolved.revision == revision.revision
    known = (before.notes or ()) if is_same else ()
    reports = [
        report
        for report in _finished_reports(snapshot)
        if report.revision == revision.revision and not (report.peer_bytes or report.dropped_peers)
    ]
    found = {*known, *(_clean(note) for report in reports for note in report.notes)} - {OMITTED_OBJECTS_NOTE}
    return tuple(sorted(found))[:MAX_NOTES]


def find_verified_by(snapshot: Snapshot, revision: SeenRevision | None) -> str | None:
    """Returns by what the objects of the revision were verified, as a load reported it; None while it is unknown.

    Args:
        snapshot: The observed state.
        revision: The revision in use.
    """
    if revision is None:
        return None
    before = snapshot.weights.status
    is_same = before.resolved is not None and before.resolved.revision == revision.revision
    found = {
        _clean(report.verified_by)
        for report in _finished_reports(snapshot)
        if report.revision == revision.revision and report.verified_by
    }
    return min(found, default=before.verified_by if is_same else None)


def with_headers_digest(snapshot: Snapshot, seen: SeenRevision | None) -> SeenRevision | None:
    """Returns a revision with the digest of its tensors' headers, if a load has reported one; the first one counts.

    Only the object's Jobs count: by this digest loaders believe bytes of other nodes, and a pod with code of others
    could report any.

    Args:
        snapshot: The observed state.
        seen: One of the object's revisions.
    """
    if seen is None or seen.headers_digest:
        return seen
    found = (
        report.headers_digest
        for job in snapshot.jobs
        if job.role == names.ROLE_LOAD and job.state is JobState.SUCCEEDED
        if (report := job_results.final_report(snapshot.pods.get(job.uid)))
        if report.revision == seen.revision and not report.reason and report.headers_digest
    )
    digest = next(found, "")
    return seen.model_copy(update={"headers_digest": digest}) if digest else seen


def _finished_reports(snapshot: Snapshot) -> Iterator[contract.Report]:
    weights = snapshot.weights
    for job in snapshot.jobs:
        if job.role not in {names.ROLE_RESOLVE, names.ROLE_LOAD}:
            continue
        for report in (snapshot.reports.get(job.uid), job_results.final_report(snapshot.pods.get(job.uid))):
            if report is not None and not report.reason:
                yield report
    for pod in snapshot.consumers:
        own = {held.container for held in pod.held_entries if held.uid == weights.uid}
        for loader in pod.loaders:
            report = job_results.termination_report(loader)
            if pod.namespace == weights.namespace and loader.name in own and report is not None and not report.reason:
                yield report


def _clean(note: str) -> str:
    text = "".join(character if character.isprintable() else " " for character in note)
    return text if len(text) <= MAX_NOTE else text[: MAX_NOTE - 1] + "…"
