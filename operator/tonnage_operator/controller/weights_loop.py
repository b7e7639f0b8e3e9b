"""Carries out the decision about one ``ModelWeights``: events, Jobs, status, in this order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.controller.events import Storyteller
from tonnage_operator.controller.launching import Word
from tonnage_operator.controller.loop import Loop, together, utc_now
from tonnage_operator.controller.pace import Pace
from tonnage_operator.controller.tally import Tally
from tonnage_operator.controller.workers import Forget, Outdated
from tonnage_operator.domain import conditions, news, units
from tonnage_operator.domain.conditions import Event, Observation
from tonnage_operator.domain.reasons import ConditionReason, EventReason
from tonnage_operator.domain.reconcile import decide, decide_farewell
from tonnage_operator.kube.gateway import ApiError
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES

if TYPE_CHECKING:
    from datetime import datetime

    from tonnage_operator.api.status import ModelWeightsStatus
    from tonnage_operator.controller.cluster import Cluster, WeightsRecord
    from tonnage_operator.controller.loop import Clock
    from tonnage_operator.domain.weights import Weights
    from tonnage_operator.domain.world import World
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.weights")

_LOOK_AGAIN: Final = 30.0
"""Seconds after which a deletion that waits looks again, though every change wakes it anyway."""
_COUNTS_EVERY: Final = 10.0
"""Seconds between two status writes of one object that bring other counts and no news, once some were at once."""

Body = dict[str, Any]


class WeightsLoop(Loop):
    """Brings one object after the other in order."""

    def __init__(self, cluster: Cluster, gateway: Gateway, metrics: Metrics, *, clock: Clock = utc_now) -> None:
        super().__init__(cluster, gateway, metrics, clock=clock)
        self._story = Storyteller(gateway, metrics, clock)
        self._tally = Tally(metrics)
        self._counts_pace = Pace(burst=10, every=_COUNTS_EVERY)

    async def reconcile(self, uid: str) -> float | None:
        """Brings one object in order. See ``Workers``."""
        record = self._cluster.weights.get(uid)
        if record is None:
            self._counts_pace.forget(uid)
            raise Forget
        try:
            return await self._reconcile(record)
        except ApiError as error:
            if error.not_found:
                # Gone meanwhile, perhaps; a whole list tells, and what isn't in it is forgotten.
                items, _ = await self._gateway.list(MODEL_WEIGHTS)
                self._cluster.weights.replace(items)
                if self._cluster.weights.get(uid) is None:
                    self._tally.forget(record.namespace, record.name)
                    raise Forget from error
            elif error.conflict:
                await self._launcher.check(_word(record))
                raise Outdated from error
            raise

    async def _reconcile(self, record: WeightsRecord) -> float | None:
        now = self._clock()
        if record.weights is None:
            if record.deleting:
                await self._release(record)
            elif not record.problem_told:
                await self._refuse(record, now)
            return None
        world = self._cluster.world(record, record.weights, now)
        self._tally.count_ended(world)
        if record.deleting:
            return await self._say_farewell(record, world)
        if record.weights.spec.cache.delivery is not Delivery.EMPTY_DIR and names.FINALIZER not in record.finalizers:
            await self._set_finalizers(record, (*record.finalizers, names.FINALIZER))
            return 0.0  # the record is another one now
        decision = decide(world)
        await self._story.tell(record, decision.events)
        await self._start(record, decision.apply)
        rest = self._patience(record, record.weights, decision.status)
        if not rest:
            await self._story.tell(record, decision.with_status)
            if decision.status != record.weights.status:
                status = decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)
                await self._write_status(record, status)
            await self._delete(decision.delete_with_status)
        await self._delete(decision.delete)
        self._tally.show(record.weights, decision.status)
        return min((each for each in (rest, decision.wake_after) if each), default=None)

    def _patience(self, record: WeightsRecord, weights: Weights, status: ModelWeightsStatus) -> float:
        """Returns the seconds until a status should be written that brings other counts and no news; 0: now."""
        if status == weights.status or news.is_news(weights.status, status):
            return 0.0
        wait = self._counts_pace.wait(record.uid)
        if not wait:
            self._counts_pace.spend(record.uid)
        return wait

    async def _start(self, record: WeightsRecord, jobs: tuple[Body, ...]) -> None:
        if not jobs:
            return
        own = _word(record)
        await self._launcher.check(own)

        async def start(job: Body) -> None:
            notes, role = job["metadata"]["annotations"], job["metadata"]["labels"][names.ROLE]
            node = notes.get(names.NODE, "")
            cache = self._cluster.cache(node)
            here = own
            if self._cluster.node(node):
                entry = notes[names.CACHE_KEY], Medium(notes[names.MEDIUM])
                here = Word(NODE_CACHES, node, cache.version if cache else "", about=entry)
            if await self._launcher.start(job, here):
                self._tally.started(record.namespace, record.name, role)
                about = self._about(record, job=job["metadata"]["name"], node=node or None)
                about["tonnage"]["revision"] = notes.get(names.REVISION)
                _LOG.info("Started a %s job", role, extra=about)

        await together(start, jobs)

    def _about(self, record: WeightsRecord, **more: object) -> dict[str, Any]:
        """Returns the fields of a log line about an object."""
        resolved = record.weights.status.resolved if record.weights else None
        return {"tonnage": {"object": record.ref, "revision": resolved.revision if resolved else None, **more}}

    async def _write_status(self, record: WeightsRecord, status: Body) -> None:
        # The uid keeps us from writing into another object that took the name, the version from undoing what another
        # controller has just recorded.
        body = await self._gateway.update_status(
            MODEL_WEIGHTS, record.name, record.namespace, uid=record.uid, version=record.version, status=status
        )
        self._cluster.weights.put(body)

    async def _refuse(self, record: WeightsRecord, now: datetime) -> None:
        """Says that an object can't be read; just by conditions, since the rest isn't understood either and stays."""
        observed = [
            Observation(kind, status=False, reason=ConditionReason.INVALID_SPEC, message=record.problem)
            for kind in ("Accepted", "Ready")
        ]
        merged = conditions.merge((), observed, now=units.format_time(now), generation=record.generation)
        told = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in merged]
        kinds = {each.type for each in merged}
        others = [each for each in record.raw_status.get("conditions") or () if each.get("type") not in kinds]
        await self._write_status(record, {**record.raw_status, "conditions": [*told, *others]})

    async def _say_farewell(self, record: WeightsRecord, world: World) -> float | None:
        if names.FINALIZER not in record.finalizers:
            return None
        farewell = decide_farewell(world)
        waiting = farewell.waiting
        try:
            await self._start(record, farewell.apply)
        except ApiError as error:
            if error.status not in {403, 404, 422}:
                raise
            # The namespace goes as well, or forbids it: nothing more can be done, and nothing may hang.
            _LOG.warning("A deleted object's claim can't be emptied: %s", error.message, extra=self._about(record))
            waiting = ""
        await self._delete(farewell.delete)
        await self._story.tell(record, farewell.events)
        if waiting:
            await self._story.tell(record, (Event(EventReason.DELETION_WAITING, waiting, key=waiting),))
            return min(_LOOK_AGAIN, farewell.wake_after or _LOOK_AGAIN)
        await self._release(record)
        self._tally.forget(record.namespace, record.name)
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


def _word(record: WeightsRecord) -> Word:
    return Word(MODEL_WEIGHTS, record.name, record.version, record.namespace)
