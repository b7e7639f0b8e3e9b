"""Reconciles ``ModelWeights``: posts events, creates Jobs and writes the status, in this order."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.controller.event_recorder import EventRecorder
from tonnage_operator.controller.job_control import Precondition
from tonnage_operator.controller.lists import FreshLists, relist
from tonnage_operator.controller.rate_limiter import RateLimiter
from tonnage_operator.controller.reconciler import Reconciler, gather_bounded
from tonnage_operator.controller.workqueue import Gone, StaleCache
from tonnage_operator.domain import conditions, status_diff, units
from tonnage_operator.domain.conditions import Event, Observation
from tonnage_operator.domain.modelweights.deletion import plan_deletion
from tonnage_operator.domain.modelweights.reconcile import decide
from tonnage_operator.domain.modelweights.snapshot import POD_CREATION_TIMEOUT
from tonnage_operator.domain.reasons import ConditionReason, EventReason
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import EVENTS, JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import ModelWeightsStatus
    from tonnage_operator.controller.metrics_recorder import MetricsRecorder
    from tonnage_operator.controller.state import ControllerState, WeightsRecord
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.nodecache.capacity import LoadRequest
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.weights")

_DELETION_RECHECK_INTERVAL: Final = 30.0
"""Seconds between rechecks of a blocked deletion; changes also enqueue it."""
_COUNTS_WRITE_INTERVAL: Final = 10.0
"""Minimum seconds between status writes of one object that change only counts, after an initial burst."""


ObsoleteJob: TypeAlias = "tuple[Job, Precondition | None]"
"""A Job to delete, and the record of its node that makes it obsolete; None for one that is on no node."""


class ModelWeightsController(Reconciler):
    """Reconciles one ``ModelWeights`` at a time; the key is its uid."""

    def __init__(
        self,
        state: ControllerState,
        client: KubeClient,
        metrics: Metrics,
        metrics_recorder: MetricsRecorder,
        *,
        enqueue_node: Callable[[str], None],
    ) -> None:
        super().__init__(state, client, metrics)
        self._enqueue_node = enqueue_node
        self._event_recorder = EventRecorder(client, metrics)
        self._metrics_recorder = metrics_recorder
        self._record_lists = FreshLists(state, client, NODES, NODE_CACHES, JOBS)
        self._counts_rate_limiter = RateLimiter(burst=10, interval=_COUNTS_WRITE_INTERVAL)

    async def reconcile(self, uid: str) -> float | None:
        """Reconciles one object. See ``ReconcileFunc``."""
        record = self._state.weights.get(uid)
        if record is None:
            self._counts_rate_limiter.drop(uid)
            self._request_room(uid, {})
            raise Gone
        try:
            return await self._reconcile(record)
        except ApiError as error:
            if error.not_found:
                # The object may have been deleted; a fresh list removes it from the cache if so.
                await relist(self._state, self._client, MODEL_WEIGHTS)
                if self._state.weights.get(uid) is None:
                    self._metrics_recorder.drop(record.namespace, record.name)
                    raise Gone from error
            elif error.conflict:
                await self._job_control.check_precondition(_precondition(record))
                raise StaleCache from error
            raise

    async def _reconcile(self, record: WeightsRecord) -> float | None:
        now = datetime.now(UTC)
        if record.weights is None:
            if record.deleting:
                await self._remove_finalizer(record)
            elif not record.invalid_spec_reported:
                await self._report_invalid_spec(record, now)
            return None
        snapshot = self._state.snapshot(record, record.weights, now)
        await self._read_refusals(snapshot)
        self._metrics_recorder.record_finished_jobs(snapshot)
        if record.deleting:
            self._request_room(record.uid, {})
            return await self._finalize(record, snapshot)
        if record.weights.spec.cache.delivery is not Delivery.EMPTY_DIR and names.FINALIZER not in record.finalizers:
            await self._set_finalizers(record, (*record.finalizers, names.FINALIZER))
            return 0.0  # the write changed the record, so reconcile the new one
        decision = decide(snapshot)
        obsolete = self._obsolete_jobs(decision.delete)
        deferred = self._obsolete_jobs(decision.deferred_deletes)
        self._request_room(record.uid, decision.load_requests)
        await self._event_recorder.record(record, decision.events)
        await self._create_jobs(record, decision.apply)
        is_current = False
        remaining_seconds = self._status_write_delay(record, record.weights, decision.status)
        if not remaining_seconds:
            await self._event_recorder.record(record, decision.deferred_events)
            if decision.status != record.weights.status:
                status = decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)
                await self._write_status(record, status)
                is_current = True  # else it had been a conflict
            obsolete = (*deferred, *obsolete)
        await self._delete_jobs(record, obsolete, is_current=is_current)
        self._metrics_recorder.set_status_gauges(record.weights, decision.status)
        return min((each for each in (remaining_seconds, decision.requeue_after) if each), default=None)

    def _request_room(self, uid: str, requests: Mapping[str, LoadRequest]) -> None:
        """Lets the nodes reserve room, for which this object is enqueued again."""
        for node in self._state.set_load_requests(uid, requests):
            self._enqueue_node(node)

    async def _read_refusals(self, snapshot: Snapshot) -> None:
        """Reads why Jobs have no pod, once for each, from the events that Kubernetes posts about them."""
        for job in snapshot.jobs:
            if snapshot.seconds_without_pod(job) < POD_CREATION_TIMEOUT or job.uid in self._state.refusals:
                continue
            selector = f"involvedObject.uid={job.uid},reason=FailedCreate"
            try:
                events, _ = await self._client.list(EVENTS, namespace=job.namespace, field_selector=selector)
            except ApiError as error:
                _LOG.warning("Reading the events of Job %s failed: %s", job.name, error.message)
                return
            texts = [str(each.get("message") or "") for each in events]
            self._state.refusals[job.uid] = texts[-1] if texts else ""

    def _status_write_delay(self, record: WeightsRecord, weights: ModelWeights, status: ModelWeightsStatus) -> float:
        """Returns the seconds until the status should be written; 0: now. Changes of counts alone are delayed."""
        if status == weights.status or status_diff.is_significant(weights.status, status):
            return 0.0
        delay = self._counts_rate_limiter.delay(record.uid)
        if not delay:
            self._counts_rate_limiter.consume(record.uid)
        return delay

    async def _create_jobs(self, record: WeightsRecord, jobs: tuple[Body, ...]) -> None:
        if not jobs:
            return
        own_precondition = _precondition(record)
        await self._job_control.check_precondition(own_precondition)

        async def create(job: Body) -> None:
            annotations, role = job["metadata"]["annotations"], job["metadata"]["labels"][names.ROLE]
            node = annotations.get(names.NODE, "")
            precondition = own_precondition
            if self._state.node(node):
                entry_key = EntryKey(annotations[names.CACHE_KEY], Medium(annotations[names.MEDIUM]))
                request = self._state.load_requests.get(node, {}).get(record.uid)
                precondition = Precondition.of_node_cache(
                    node,
                    self._state.node_cache(node),
                    entry_key=entry_key,
                    required_bytes=request.bytes if request and role == names.ROLE_LOAD else 0,
                )
            if await self._job_control.create(job, precondition):
                self._metrics_recorder.record_job_created(record.namespace, record.name, role)
                log_extra = self._log_extra(record, job=job["metadata"]["name"], node=node or None)
                log_extra["tonnage"]["revision"] = annotations.get(names.REVISION)
                _LOG.info("Created a %s Job", role, extra=log_extra)

        await gather_bounded(create, jobs)

    def _obsolete_jobs(self, jobs: Iterable[Job]) -> tuple[ObsoleteJob, ...]:
        """Returns the Jobs with the records that make them obsolete, as they are in the cache now."""
        return tuple((job, self._node_precondition(job.node_name)) for job in jobs)

    def _node_precondition(self, node: str) -> Precondition | None:
        if not node:
            return None
        if self._state.node(node) is None:
            return Precondition(NODES, node, "")
        return Precondition.of_node_cache(node, self._state.node_cache(node))

    async def _delete_jobs(
        self, record: WeightsRecord, jobs: tuple[ObsoleteJob, ...], *, is_current: bool = False
    ) -> None:
        if jobs and not is_current:
            await self._job_control.check_precondition(_precondition(record))
        await gather_bounded(lambda each: self._job_control.delete(*each), jobs)

    def _log_extra(self, record: WeightsRecord, **fields: object) -> dict[str, Any]:
        """Returns the ``extra`` of a log line about an object."""
        resolved = record.weights.status.resolved if record.weights else None
        return {"tonnage": {"object": record.ref, "revision": resolved.revision if resolved else None, **fields}}

    async def _write_status(self, record: WeightsRecord, status: Body) -> None:
        # The uid prevents a write to a new object of the same name; the resource version prevents a write that
        # overwrites what another controller has just recorded.
        body = await self._client.update_status(
            MODEL_WEIGHTS,
            record.name,
            record.namespace,
            uid=record.uid,
            resource_version=record.resource_version,
            status=status,
        )
        self._state.weights.put(body)

    async def _report_invalid_spec(self, record: WeightsRecord, now: datetime) -> None:
        """Sets the conditions of an object with an invalid spec; the rest of its status stays as it is."""
        observed = [
            Observation(kind, status=False, reason=ConditionReason.INVALID_SPEC, message=record.spec_error)
            for kind in ("Accepted", "Ready")
        ]
        merged = conditions.merge((), observed, now=units.format_time(now), generation=record.generation)
        reported = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in merged]
        condition_types = {each.type for each in merged}
        other_conditions = [
            each for each in record.raw_status.get("conditions") or () if each.get("type") not in condition_types
        ]
        await self._write_status(record, {**record.raw_status, "conditions": [*reported, *other_conditions]})

    async def _finalize(self, record: WeightsRecord, snapshot: Snapshot) -> float | None:
        if names.FINALIZER not in record.finalizers:
            return None
        deletion = plan_deletion(snapshot)
        obsolete = self._obsolete_jobs(deletion.delete)
        waiting, given_up = deletion.waiting_message, False
        try:
            await self._create_jobs(record, deletion.apply)
        except ApiError as error:
            if error.status not in {403, 404, 422}:
                raise
            # The namespace is terminating or forbids the Job. Give up, so that the finalizer does not block deletion.
            _LOG.warning("Emptying a deleted object's claim failed: %s", error.message, extra=self._log_extra(record))
            waiting, given_up = "", True
        await self._delete_jobs(record, obsolete)
        await self._event_recorder.record(record, deletion.events)
        if waiting:
            await self._event_recorder.record(record, (Event(EventReason.DELETION_WAITING, waiting, key=waiting),))
            return min(_DELETION_RECHECK_INTERVAL, deletion.requeue_after or _DELETION_RECHECK_INTERVAL)
        await self._record_lists.refresh()
        if not given_up and plan_deletion(self._state.snapshot(record, snapshot.weights, snapshot.now)).waiting_message:
            raise StaleCache
        await self._remove_finalizer(record)
        self._metrics_recorder.drop(record.namespace, record.name)
        return None

    async def _remove_finalizer(self, record: WeightsRecord) -> None:
        if names.FINALIZER in record.finalizers:
            kept = tuple(each for each in record.finalizers if each != names.FINALIZER)
            await self._set_finalizers(record, kept)
            _LOG.info("Removed the finalizer of a deleted object", extra=self._log_extra(record))

    async def _set_finalizers(self, record: WeightsRecord, finalizers: tuple[str, ...]) -> None:
        patch = {"metadata": {"resourceVersion": record.resource_version, "finalizers": list(finalizers)}}
        body = await self._client.merge_patch(MODEL_WEIGHTS, record.name, record.namespace, patch)
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self._state.weights.remove(record.uid, int(body["metadata"]["resourceVersion"]))
        else:
            self._state.weights.put(body)


def _precondition(record: WeightsRecord) -> Precondition:
    return Precondition(MODEL_WEIGHTS, record.name, record.resource_version, record.namespace)
