"""Carries out the decision about one ``ModelWeights``: events, Jobs, status, in this order."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery
from tonnage_operator.api.status import ModelWeightsStatus
from tonnage_operator.controller.workers import Forget
from tonnage_operator.domain import conditions, outcomes, units
from tonnage_operator.domain.conditions import Event, Observation
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.reasons import ConditionReason, EventReason
from tonnage_operator.domain.reconcile import decide, decide_farewell
from tonnage_operator.kube.gateway import ApiError
from tonnage_operator.kube.resources import EVENTS, JOBS, MODEL_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tonnage_operator.controller.cluster import Cluster, WeightsRecord
    from tonnage_operator.domain.facts import Job
    from tonnage_operator.domain.weights import Weights
    from tonnage_operator.domain.world import World
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.weights")

_LOOK_AGAIN: Final = 30.0
"""Seconds after which a deletion that waits looks again, though every change wakes it anyway."""

Body = dict[str, Any]


class WeightsLoop:
    """Brings one object after the other in order."""

    def __init__(
        self,
        cluster: Cluster,
        gateway: Gateway,
        metrics: Metrics,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._gateway = gateway
        self._metrics = metrics
        self._clock = clock
        self._counted: set[str] = set()

    async def reconcile(self, uid: str) -> float | None:
        """Brings one object in order. See ``Workers``."""
        record = self._cluster.weights.get(uid)
        if record is None:
            raise Forget
        try:
            return await self._reconcile(record)
        except ApiError as error:
            if error.not_found:
                # Gone meanwhile, perhaps; a whole list tells, and what isn't in it is forgotten.
                items, _ = await self._gateway.list(MODEL_WEIGHTS)
                self._cluster.weights.replace(items)
                if self._cluster.weights.get(uid) is None:
                    self._metrics.forget_model(record.namespace, record.name)
                    raise Forget from error
            raise

    async def _reconcile(self, record: WeightsRecord) -> float | None:
        now = self._clock()
        if record.weights is None:
            if record.deleting:
                await self._release(record)
            else:
                await self._refuse(record, now)
            return None
        world = self._cluster.world(record, record.weights, now)
        self._count_ended(world.jobs, world)
        if record.deleting:
            return await self._say_farewell(record, world)
        if record.weights.spec.cache.delivery is Delivery.HOST_PATH and names.FINALIZER not in record.finalizers:
            await self._set_finalizers(record, (*record.finalizers, names.FINALIZER))
        decision = decide(world)
        await self._post(record, decision.events)
        for job in decision.apply:
            await self._start(record, job)
        if decision.status != record.weights.status:
            await self._write_status(record, decision.status)
        await self._delete(decision.delete)
        self._gauges(record.weights, decision.status)
        return decision.wake_after

    async def _start(self, record: WeightsRecord, job: Body) -> None:
        body = await self._gateway.apply(JOBS, job)
        self._cluster.jobs.put(body)
        role = job["metadata"]["labels"][names.ROLE]
        if role == names.ROLE_LOAD:
            self._metrics.loads_started.labels(record.namespace, record.name).inc()
        notes = job["metadata"]["annotations"]
        _LOG.info(
            "Started a %s job",
            role,
            extra=self._about(record, job=body["metadata"]["name"], node=notes.get(names.NODE)),
        )

    def _about(self, record: WeightsRecord, **more: object) -> dict[str, Any]:
        """Returns the fields of a log line about an object."""
        resolved = record.weights.status.resolved if record.weights else None
        revision = resolved.revision if resolved else None
        return {"tonnage": {"object": f"{record.namespace}/{record.name}", "revision": revision, **more}}

    async def _write_status(self, record: WeightsRecord, status: ModelWeightsStatus) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.MODEL_WEIGHTS_KIND,
            # The uid keeps us from writing into another object that took the name.
            "metadata": {"name": record.name, "namespace": record.namespace, "uid": record.uid},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        self._cluster.weights.put(await self._gateway.apply(MODEL_WEIGHTS, body, subresource="status"))

    async def _refuse(self, record: WeightsRecord, now: datetime) -> None:
        """Says that an object can't be read; just the conditions, since the rest isn't understood either."""
        message = f"This operator can't read the spec: {record.problem}. Are operator and CRD of one release?"
        observed = (
            Observation("Accepted", status=False, reason=ConditionReason.INVALID_SPEC, message=message),
            Observation("Ready", status=False, reason=ConditionReason.INVALID_SPEC, message=message),
        )
        merged = conditions.merge((), observed, now=units.format_time(now), generation=record.generation)
        await self._write_status(record, ModelWeightsStatus(observed_generation=record.generation, conditions=merged))

    async def _say_farewell(self, record: WeightsRecord, world: World) -> float | None:
        if names.FINALIZER not in record.finalizers:
            return None
        farewell = decide_farewell(world)
        await self._delete(farewell.delete)
        if farewell.waiting:
            event = Event(EventReason.DELETION_WAITING, farewell.waiting, key=farewell.waiting)
            await self._post(record, (event,))
            return _LOOK_AGAIN
        await self._release(record)
        self._metrics.forget_model(record.namespace, record.name)
        return None

    async def _release(self, record: WeightsRecord) -> None:
        if names.FINALIZER in record.finalizers:
            kept = tuple(each for each in record.finalizers if each != names.FINALIZER)
            await self._set_finalizers(record, kept)
            _LOG.info("Let go of a deleted object", extra=self._about(record))

    async def _set_finalizers(self, record: WeightsRecord, finalizers: tuple[str, ...]) -> None:
        patch = {"metadata": {"resourceVersion": record.version, "finalizers": list(finalizers)}}
        body = await self._gateway.merge(MODEL_WEIGHTS, record.name, record.namespace, patch)
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self._cluster.weights.remove(record.uid, int(body["metadata"]["resourceVersion"]))
        else:
            self._cluster.weights.put(body)

    async def _delete(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            await self._gateway.delete(JOBS, job.name, job.namespace, uid=job.uid)

    async def _post(self, record: WeightsRecord, events: Iterable[Event]) -> None:
        """Posts events. One that is there already was posted before a restart, or by another controller."""
        for event in events:
            now = units.format_time(self._clock())
            body = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": event.name(record.name, record.uid), "namespace": record.namespace},
                "involvedObject": {
                    "apiVersion": names.API_VERSION,
                    "kind": names.MODEL_WEIGHTS_KIND,
                    "namespace": record.namespace,
                    "name": record.name,
                    "uid": record.uid,
                },
                "reason": event.reason,
                "message": event.message,
                "type": "Warning" if event.warning else "Normal",
                "source": {"component": names.MANAGER},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
            try:
                await self._gateway.create(EVENTS, body, record.namespace)
                self._metrics.events.labels(event.reason).inc()
            except ApiError as error:
                if not error.conflict:
                    # An event is a courtesy: a quota or a namespace that ends must not stop the work.
                    _LOG.warning("Event %s was not posted: %s", event.reason, error.message, extra=self._about(record))

    def _count_ended(self, jobs: Iterable[Job], world: World) -> None:
        """Counts each ended Job once in the life of this process."""
        for job in jobs:
            if job.state is JobState.ACTIVE or job.uid in self._counted:
                continue
            self._counted.add(job.uid)
            if len(self._counted) > 100_000:
                self._counted.clear()
            pod = world.pods.get(job.uid)
            good = outcomes.succeeded(job)
            reason = "" if good else outcomes.failure_of(job, pod).reason
            result = "success" if good else "failure"
            if job.role == names.ROLE_RESOLVE:
                self._metrics.resolves.labels(result, reason).inc()
            elif job.role == names.ROLE_LOAD:
                self._metrics.loads_finished.labels(result, reason).inc()
                report = outcomes.last_words(pod)
                if good and report:
                    self._metrics.load_seconds.labels(job.medium).observe(report.seconds)
                    self._metrics.load_bytes.labels(job.medium).inc(report.downloaded_bytes)

    def _gauges(self, weights: Weights, status: ModelWeightsStatus) -> None:
        labels = (weights.namespace, weights.name)
        for condition in status.conditions or ():
            for each in ("True", "False", "Unknown"):
                value = float(condition.status.value == each)
                self._metrics.condition.labels(*labels, condition.type, each).set(value)
        if status.nodes:
            self._metrics.desired.labels(*labels).set(status.nodes.desired)
            self._metrics.warm.labels(*labels).set(status.nodes.warm)
            self._metrics.failed.labels(*labels).set(status.nodes.failed)
        self._metrics.info.remove_by_labels({"namespace": weights.namespace, "name": weights.name})
        if status.resolved:
            self._metrics.info.labels(*labels, status.resolved.revision).set(1)
