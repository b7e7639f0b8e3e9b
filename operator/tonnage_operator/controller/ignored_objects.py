"""Posts events on objects that the operator ignores: those that it can't read, and those that it did not write.

Every tenant may create such objects, so their events are limited, and never delay or fail anything else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.controller.event_recorder import InvolvedObject
from tonnage_operator.controller.rate_limiter import RateLimiter
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.reasons import EventReason
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS

if TYPE_CHECKING:
    from tonnage_operator.controller.event_recorder import EventRecorder
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.pod import Pod
    from tonnage_operator.kube.resources import Resource

_MAX_WAITING: Final = 200
"""Events that wait to be posted; more are dropped."""
_MESSAGE_LIMIT: Final = 300
_FORGED_JOB: Final = "it has the operator's label, but not the operator's signature over its annotations and its owner"
_FORGED_POD: Final = "its annotation lists entries with which the webhook did not admit it, or was changed since"


class IgnoredObjects:
    """Posts an event on each ignored object, at most a few for each namespace and minute."""

    def __init__(self, state: ControllerState, event_recorder: EventRecorder) -> None:
        self._event_recorder = event_recorder
        self._rate_limiter = RateLimiter(burst=10, interval=60.0)
        self._waiting: asyncio.Queue[tuple[InvolvedObject, Event]] = asyncio.Queue(_MAX_WAITING)
        for resource in (MODEL_WEIGHTS, NODE_CACHES, NODES, JOBS, PODS):
            state.store_for(resource).add_unreadable_handler(self._handler(resource))
        state.jobs.add_event_handler(self._job_changed)
        state.pods.add_event_handler(self._pod_changed)

    def _handler(self, resource: Resource) -> Any:  # noqa: ANN401 - a callback
        def unreadable(metadata: dict[str, Any], why: str) -> None:
            namespace = metadata.get("namespace") or ""
            self._add(resource, namespace, metadata["name"], metadata["uid"], f"it can't be read: {why}")

        return unreadable

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        if after and not after.signature and (before is None or before.signature):
            self._add(JOBS, after.namespace, after.name, after.uid, _FORGED_JOB)

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        if after and after.forged and not (before and before.forged):
            self._add(PODS, after.namespace, after.name, after.uid, _FORGED_POD)

    def _add(self, resource: Resource, namespace: str, name: str, uid: str, why: str) -> None:
        if self._waiting.full() or self._rate_limiter.delay(namespace):
            return
        self._rate_limiter.consume(namespace)
        message = f"Tonnage ignores this object: {why}."[:_MESSAGE_LIMIT]
        involved_object = InvolvedObject(resource.api_version, resource.kind, namespace, name, uid)
        self._waiting.put_nowait((involved_object, Event(EventReason.IGNORED, message, key=message, warning=True)))

    async def run(self) -> None:
        """Posts events until cancelled."""
        while True:
            involved_object, event = await self._waiting.get()
            await self._event_recorder.post(involved_object, event)
