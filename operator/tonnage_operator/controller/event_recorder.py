"""Posts events about objects. The same occurrence has the same name, so it is posted once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names
from tonnage_operator.domain import units
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.controller.reconciler import Clock
    from tonnage_operator.controller.state import WeightsRecord
    from tonnage_operator.domain.conditions import Event
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.weights")


class EventRecorder:
    """Tells what happened to an object, for ``kubectl describe``."""

    def __init__(self, client: KubeClient, metrics: Metrics, clock: Clock) -> None:
        self._client = client
        self._metrics = metrics
        self._clock = clock

    async def record(self, involved_object: WeightsRecord, events: Iterable[Event]) -> None:
        """Posts events. One that is there already was posted before a restart, or by another controller."""
        for event in events:
            try:
                await self._client.create(EVENTS, self._event_body(involved_object, event), involved_object.namespace)
                self._metrics.events.labels(event.reason).inc()
            except ApiError as error:
                if not error.conflict:
                    # An event is a courtesy: a quota or a namespace that ends must not stop the work.
                    log_extra = {"tonnage": {"object": involved_object.ref}}
                    _LOG.warning("Event %s was not posted: %s", event.reason, error.message, extra=log_extra)

    def _event_body(self, involved_object: WeightsRecord, event: Event) -> dict[str, Any]:
        now = units.format_time(self._clock())
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": event.name(involved_object.name, involved_object.uid),
                "namespace": involved_object.namespace,
            },
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.MODEL_WEIGHTS_KIND,
                "namespace": involved_object.namespace,
                "name": involved_object.name,
                "uid": involved_object.uid,
            },
            "reason": event.reason,
            "message": event.message,
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": names.MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
