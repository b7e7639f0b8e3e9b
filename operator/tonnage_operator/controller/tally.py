"""Keeps the metrics: what ended is counted once, what is, is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage import contract
from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain import outcomes
from tonnage_operator.domain.facts import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.nodecache import NodeCacheStatus
    from tonnage_operator.api.status import ModelWeightsStatus
    from tonnage_operator.domain.claims import Claim
    from tonnage_operator.domain.facts import Pod
    from tonnage_operator.domain.weights import Weights
    from tonnage_operator.domain.world import World
    from tonnage_operator.telemetry import Metrics

_KEPT: Final = 100_000


class Tally:
    """Counts for one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: set[str] = set()
        self._revisions: dict[tuple[str, str], str] = {}

    def _is_new(self, what: str) -> bool:
        """Returns True the first time."""
        if what in self._counted:
            return False
        if len(self._counted) >= _KEPT:
            self._counted.clear()
        self._counted.add(what)
        return True

    def started(self, namespace: str, name: str, role: str) -> None:
        """Takes note of a Job of an object that was made."""
        if role == names.ROLE_LOAD:
            self._metrics.loads_started.labels(namespace, name).inc()

    def count_ended(self, world: World) -> None:
        """Counts each ended Job of an object once."""
        for job in world.jobs:
            if job.state is JobState.ACTIVE or not self._is_new(job.uid):
                continue
            pod = world.pods.get(job.uid)
            good = outcomes.succeeded(job)
            reason = "" if good else outcomes.failure_of(job, pod).reason
            report = outcomes.last_words(pod)
            if job.role == names.ROLE_RESOLVE:
                self._metrics.resolves.labels("success" if good else "failure", reason).inc()
                if good and report:
                    self._metrics.resolve_seconds.observe(report.seconds)
            elif job.role == names.ROLE_LOAD:
                self._metrics.loads_finished.labels("success" if good else "failure", reason).inc()
                self._count_load(job.medium, report, reason)

    def _count_load(self, medium: str, report: contract.Report | None, reason: str) -> None:
        if report is None:
            return
        self._metrics.load_retries.inc(report.retries)
        if report.outcome is contract.Outcome.LOADED:
            self._metrics.load_seconds.labels(medium).observe(report.seconds)
            self._metrics.load_bytes.labels(medium).inc(report.downloaded_bytes)
            self._metrics.verified.labels(report.verified or "none", "success").inc()
        elif reason == Reason.CHECKSUM_MISMATCH:
            self._metrics.verified.labels(report.verified or "none", "failure").inc()

    def heard(self, pod: Pod, claim: Claim, report: contract.Report) -> None:
        """Counts the end of a load of a pod of a user, as its loader reports it."""
        if report.outcome is None or not self._is_new(f"{pod.uid} {claim.container}"):
            return
        result = _RESULTS[report.outcome]
        if report.reason == Reason.ACCESS_DENIED:
            result = "denied"
        self._metrics.cache_requests.labels(claim.namespace, claim.name, result).inc()
        self._metrics.pod_wait_seconds.labels(result).observe(report.seconds)
        if report.outcome is not contract.Outcome.FAILED:
            saved = max(0, report.bytes - report.downloaded_bytes)
            self._metrics.bytes_saved.labels(claim.namespace, claim.name).inc(saved)
        self._count_load(claim.medium.value, report, report.reason)

    def show(self, weights: Weights, status: ModelWeightsStatus) -> None:
        """Shows an object as its status is."""
        labels = (weights.namespace, weights.name)
        for condition in status.conditions or ():
            for each in ("True", "False", "Unknown"):
                value = float(condition.status.value == each)
                self._metrics.condition.labels(*labels, condition.type, each).set(value)
        if status.nodes:
            self._metrics.desired.labels(*labels).set(status.nodes.desired)
            self._metrics.warm.labels(*labels).set(status.nodes.warm)
            self._metrics.failed.labels(*labels).set(status.nodes.failed)
        self._show_revision(labels, status.resolved.revision if status.resolved else "")

    def _show_revision(self, labels: tuple[str, str], revision: str) -> None:
        before = self._revisions.get(labels, "")
        if before == revision:
            return
        if before:
            self._metrics.info.remove(*labels, before)
        if revision:
            self._metrics.info.labels(*labels, revision).set(1)
        self._revisions[labels] = revision

    def forget(self, namespace: str, name: str) -> None:
        """Drops the series of an object that is gone."""
        self._metrics.forget_model(namespace, name)
        self._revisions.pop((namespace, name), None)


_RESULTS: Final = {
    contract.Outcome.HIT: "hit",
    contract.Outcome.LOADED: "miss",
    contract.Outcome.FAILED: "failed",
}


def show_nodes(metrics: Metrics, records: Iterable[NodeCacheStatus]) -> None:
    """Sums all nodes up, when metrics are asked for."""
    entries: dict[tuple[Medium, EntryState], int] = {}
    used: dict[Medium, int] = {}
    capacity: dict[Medium, int] = {}
    for record in records:
        for entry in record.entries or ():
            entries[entry.medium, entry.state] = entries.get((entry.medium, entry.state), 0) + 1
        for state in record.media or ():
            used[state.name] = used.get(state.name, 0) + state.used_bytes
            capacity[state.name] = capacity.get(state.name, 0) + state.capacity_bytes
    for medium in Medium:
        metrics.cache_used.labels(medium.value).set(used.get(medium, 0))
        metrics.cache_capacity.labels(medium.value).set(capacity.get(medium, 0))
        for entry_state in EntryState:
            metrics.cache_entries.labels(medium.value, entry_state.value).set(entries.get((medium, entry_state), 0))
