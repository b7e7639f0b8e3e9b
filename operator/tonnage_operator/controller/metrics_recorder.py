"""Updates the metrics: counts each finished Job and load once, and sets the gauges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage import contract
from tonnage.errors import Reason, error_classes
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.reasons import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tonnage_operator.api.nodecache import EntryKey, NodeCacheStatus
    from tonnage_operator.api.status import ModelWeightsStatus
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.nodecache.capacity import Shortage
    from tonnage_operator.domain.observed.held_entries import HeldEntry
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.pod import Pod
    from tonnage_operator.telemetry import Metrics

_MAX_COUNTED: Final = 100_000
"""Keys of counted events that are kept; then all are dropped."""


_PEER_FAULTS: Final = frozenset({"Stalled", "Unreachable", "Busy", "Denied", "OtherEntry", "WrongBytes"})
"""The loader's words for what was wrong with a peer."""
_KNOWN_REASONS: Final = frozenset({*map(str, error_classes()), *map(str, Reason), *map(str, FailureReason)})


def _known_reason(reason: str) -> str:
    """Returns a value for a label. Reports can have any reason, and each value of a label is another series."""
    return reason if reason in _KNOWN_REASONS else "Other"


def _level(report: contract.Report) -> str:
    return report.verified if report.verified in set(contract.Verify) else "none"


class MetricsRecorder:
    """Records the metrics of one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: set[str] = set()
        self._revisions: dict[tuple[str, str], str] = {}

    def _is_new(self, key: str) -> bool:
        """Returns True the first time that a key is given."""
        if key in self._counted:
            return False
        if len(self._counted) >= _MAX_COUNTED:
            self._counted.clear()
        self._counted.add(key)
        return True

    def record_job_created(self, namespace: str, name: str, role: str) -> None:
        if role == names.ROLE_LOAD:
            self._metrics.loads_started.labels(namespace, name).inc()

    def record_finished_jobs(self, snapshot: Snapshot) -> None:
        """Counts each finished Job of an object once."""
        for job in snapshot.jobs:
            if job.state is JobState.ACTIVE or not self._is_new(job.uid):
                continue
            pod = snapshot.pods.get(job.uid)
            success = job.state is JobState.SUCCEEDED
            reason = "" if success else _known_reason(job_results.job_failure(job, pod).reason)
            report = job_results.final_report(pod)
            if job.role == names.ROLE_RESOLVE:
                self._metrics.resolves.labels("success" if success else "failure", reason).inc()
                if success and report:
                    self._metrics.resolve_seconds.observe(report.seconds)
            elif job.role == names.ROLE_LOAD:
                self._metrics.loads_finished.labels("success" if success else "failure", reason).inc()
                self._record_load(job.medium, report, reason)

    def _record_load(self, medium: str, report: contract.Report | None, reason: str) -> None:
        if report is None:
            return
        self._metrics.load_retries.inc(report.retries)
        if report.outcome is contract.Outcome.LOADED:
            self._metrics.load_seconds.labels(medium).observe(report.seconds)
            self._metrics.load_bytes.labels(medium).inc(report.downloaded_bytes)
            if report.peer_bytes:
                peer_bytes = min(report.peer_bytes, report.downloaded_bytes)
                self._metrics.load_peer_bytes.labels(medium).inc(peer_bytes)
            for dropped in report.dropped_peers:
                known = dropped.reason in _PEER_FAULTS
                self._metrics.peers_dropped.labels(dropped.reason if known else "Other").inc()
            self._metrics.verified.labels(_level(report), "success").inc()
        elif reason == Reason.CHECKSUM_MISMATCH:
            self._metrics.verified.labels(_level(report), "failure").inc()

    def record_pod_load(self, pod: Pod, held: HeldEntry, report: contract.Report) -> None:
        """Counts a load that an injected loader finished, according to its report."""
        if report.outcome is None or not self._is_new(f"{pod.uid} {held.container}"):
            return
        result = _RESULT_LABELS[report.outcome]
        if report.reason == Reason.ACCESS_DENIED:
            result = "denied"
        self._metrics.cache_requests.labels(held.namespace, held.name, result).inc()
        self._metrics.pod_wait_seconds.labels(result).observe(report.seconds)
        if report.outcome is not contract.Outcome.FAILED:
            # The pod may report anything; the webhook has signed the size of its entry.
            saved = max(0, min(report.bytes, held.bytes) - report.downloaded_bytes)
            self._metrics.bytes_saved.labels(held.namespace, held.name).inc(saved)
        self._record_load(held.medium.value, report, report.reason)

    def set_status_gauges(self, weights: ModelWeights, status: ModelWeightsStatus) -> None:
        """Sets the gauges of an object from its status."""
        labels = (weights.namespace, weights.name)
        for condition in status.conditions or ():
            for each in ("True", "False", "Unknown"):
                value = float(condition.status.value == each)
                self._metrics.condition.labels(*labels, condition.type, each).set(value)
        if status.nodes:
            self._metrics.desired.labels(*labels).set(status.nodes.desired)
            self._metrics.warm.labels(*labels).set(status.nodes.warm)
            self._metrics.failed.labels(*labels).set(status.nodes.failed)
        self._set_revision_gauge(labels, status.resolved.revision if status.resolved else "")

    def _set_revision_gauge(self, labels: tuple[str, str], revision: str) -> None:
        before = self._revisions.get(labels, "")
        if before == revision:
            return
        if before:
            self._metrics.info.remove(*labels, before)
        if revision:
            self._metrics.info.labels(*labels, revision).set(1)
        self._revisions[labels] = revision

    def drop(self, namespace: str, name: str) -> None:
        """Removes the series of a deleted object."""
        self._metrics.drop_model(namespace, name)
        self._revisions.pop((namespace, name), None)


_RESULT_LABELS: Final = {
    contract.Outcome.HIT: "hit",
    contract.Outcome.LOADED: "miss",
    contract.Outcome.FAILED: "failed",
}


def set_node_gauges(
    metrics: Metrics, records: Iterable[NodeCacheStatus], shortages: Iterable[Mapping[EntryKey, Shortage]]
) -> None:
    """Sets the gauges that sum all nodes; called at each scrape."""
    entries: dict[tuple[Medium, EntryState], int] = {}
    used: dict[Medium, int] = {}
    reserved: dict[Medium, int] = {}
    capacity: dict[Medium, int] = {}
    artifacts = 0
    for record in records:
        for entry in record.entries or ():
            if entry.image is not None:
                artifacts += entry.bytes
                continue
            entries[entry.medium, entry.state] = entries.get((entry.medium, entry.state), 0) + 1
        for state in record.media or ():
            used[state.name] = used.get(state.name, 0) + state.used_bytes
            reserved[state.name] = reserved.get(state.name, 0) + state.reserved_bytes
            capacity[state.name] = capacity.get(state.name, 0) + state.capacity_bytes
    metrics.artifacts.set(artifacts)
    waiting = [key.medium for each in shortages for key in each]
    for medium in Medium:
        metrics.cache_waiting.labels(medium.value).set(waiting.count(medium))
        metrics.cache_reserved.labels(medium.value).set(reserved.get(medium, 0))
        metrics.cache_used.labels(medium.value).set(used.get(medium, 0))
        metrics.cache_capacity.labels(medium.value).set(capacity.get(medium, 0))
        for entry_state in EntryState:
            metrics.cache_entries.labels(medium.value, entry_state.value).set(entries.get((medium, entry_state), 0))
