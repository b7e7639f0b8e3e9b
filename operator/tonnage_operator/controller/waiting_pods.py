"""Posts events on pods that wait for a warm node, which ``kubectl describe pod`` shows.

Every tenant may create such pods, so their events are limited, and never delay or fail anything else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tonnage_operator.controller.event_recorder import InvolvedObject
from tonnage_operator.controller.rate_limiter import RateLimiter
from tonnage_operator.domain.gate.waiting_pods import describe_wait

if TYPE_CHECKING:
    from tonnage_operator.controller.event_recorder import EventRecorder
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.conditions import Event
    from tonnage_operator.domain.observed.pod import Pod

_MAX_WAITING: Final = 200
"""Events that wait to be posted; more are dropped."""


class WaitingPods:
    """Posts an event on each pod that no node takes, at most a few for each namespace and minute."""

    def __init__(self, state: ControllerState, event_recorder: EventRecorder) -> None:
        self._state = state
        self._event_recorder = event_recorder
        self._rate_limiter = RateLimiter(burst=10, interval=60.0)
        self._waiting: asyncio.Queue[tuple[InvolvedObject, Event]] = asyncio.Queue(_MAX_WAITING)
        state.pods.add_event_handler(self._pod_changed)

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        if after is None or not after.unschedulable_message or not after.held_entries:
            return
        if (before and before.unschedulable_message == after.unschedulable_message) or self._waiting.full():
            return
        records = (self._state.weights.get(held.uid) for held in after.held_entries)
        models = {record.uid: record.weights for record in records if record and record.weights}
        event = describe_wait(after, models, self._state.nodes, self._state.cache_index, self._state.installation)
        if event is None or self._rate_limiter.delay(after.namespace):
            return
        self._rate_limiter.consume(after.namespace)
        self._waiting.put_nowait((InvolvedObject("v1", "Pod", after.namespace, after.name, after.uid), event))

    async def run(self) -> None:
        """Posts events until cancelled."""
        while True:
            involved_object, event = await self._waiting.get()
            await self._event_recorder.post(involved_object, event)
