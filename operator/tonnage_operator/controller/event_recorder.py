"""Posts Kubernetes events. The same occurrence always gets the same event name, so it is posted once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names
from tonnage_operator.domain import units
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.controller.state import WeightsRecord
    from tonnage_operator.domain.conditions import Event
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.weights")


@dataclass(frozen=True)
class InvolvedObject:
    """The object that an event is about. ``namespace`` is empty for a node."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class EventRecorder:
    """Posts events, which ``kubectl describe`` shows."""

    def __init__(self, client: KubeClient, metrics: Metrics, *, component: str = names.MANAGER) -> None:
        self._client = client
        self._metrics = metrics
        self._component = component

    async def record(self, record: WeightsRecord, events: Iterable[Event]) -> None:
        """Posts events of a ``ModelWeights``."""
        for event in events:
            kind = (names.API_VERSION, names.MODEL_WEIGHTS_KIND)
            await self.post(InvolvedObject(*kind, record.namespace, record.name, record.uid), event)

    async def post(self, involved_object: InvolvedObject, event: Event) -> None:
        """Posts one event. An event that exists was posted before a restart, or by another controller."""
        body = self._event_body(involved_object, event)
        try:
            await self._client.create(EVENTS, body, body["metadata"]["namespace"])
            self._metrics.events.labels(event.reason).inc()
        except ApiError as error:
            if not error.conflict:
                # Events are best effort: a quota or a terminating namespace must not fail the reconcile.
                log_extra = {"tonnage": {"object": f"{involved_object.namespace}/{involved_object.name}"}}
                level = logging.DEBUG if error.namespace_terminating else logging.WARNING
                _LOG.log(level, "Posting event %s failed: %s", event.reason, error.message, extra=log_extra)

    def _event_body(self, involved_object: InvolvedObject, event: Event) -> dict[str, Any]:
        now = units.format_time(datetime.now(UTC))
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": event.name(involved_object.name, involved_object.uid),
                "namespace": involved_object.namespace or "default",
            },
            "involvedObject": {
                "apiVersion": involved_object.api_version,
                "kind": involved_object.kind,
                **({"namespace": involved_object.namespace} if involved_object.namespace else {}),
                "name": involved_object.name,
                "uid": involved_object.uid,
            },
            "reason": event.reason,
            "message": event.message,
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": self._component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
