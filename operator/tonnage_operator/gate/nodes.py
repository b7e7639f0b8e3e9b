"""Acts on one node: removes startup taints or writes the condition, as decided, and posts the events."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.controller.event_recorder import InvolvedObject
from tonnage_operator.controller.workqueue import Gone, StaleCache
from tonnage_operator.domain import units
from tonnage_operator.domain.gate.decision import GateSnapshot, decide_gate
from tonnage_operator.domain.gate.observed import CONDITION_TYPE, GatedNode, parse_gated_node
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import NODES

if TYPE_CHECKING:
    from tonnage_operator.controller.event_recorder import EventRecorder
    from tonnage_operator.domain.conditions import Event
    from tonnage_operator.domain.gate.decision import GateDecision, NewCondition
    from tonnage_operator.gate.state import GateState
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.gate")

_MAX_POSTED: Final = 10_000
"""Events whose posting is remembered, so that they aren't sent again with each reconcile."""


class NodeGate:
    """Reconciles one node at a time; the key is its name."""

    def __init__(self, state: GateState, client: KubeClient, recorder: EventRecorder, metrics: Metrics) -> None:
        self._state = state
        self._client = client
        self._recorder = recorder
        self._metrics = metrics
        self._posted: dict[str, None] = {}

    async def reconcile(self, name: str) -> float | None:
        """Reconciles one node. See ``ReconcileFunc``."""
        gated = self._state.node(name)
        if gated is None:
            raise Gone
        decision = self._decide(gated)
        if decision.remove or decision.condition:
            # The lists may be older than what this process has seen: a removed taint doesn't come back.
            body = await self._client.get_or_none(NODES, name)
            if body is None:
                raise Gone
            gated = parse_gated_node(body)
            decision = self._decide(gated)
            await self._post(gated, decision)
            await self._act(body, decision)
        else:
            await self._post(gated, decision)
        return decision.requeue_after

    def _decide(self, gated: GatedNode) -> GateDecision:
        return decide_gate(
            GateSnapshot(
                now=self._client.server_time(),
                installation=self._state.installation,
                gated=gated,
                models=self._state.models,
                entries=self._state.entries(gated.node.name),
            )
        )

    async def _act(self, body: dict[str, Any], decision: GateDecision) -> None:
        name = body["metadata"]["name"]
        try:
            if decision.remove:
                self._state.put_node(await self._remove_taints(body, decision.remove))
                self._metrics.gate_opened.labels(_result(decision)).inc()
                _LOG.info("Removed startup taints", extra={"tonnage": {"node": name, "taints": decision.remove}})
            if decision.condition:
                self._state.put_node(await self._write_condition(name, decision.condition))
                if decision.condition.status:
                    self._metrics.gate_opened.labels(_result(decision)).inc()
        except ApiError as error:
            if error.not_found:
                raise Gone from error
            if error.conflict:
                raise StaleCache from error
            raise

    async def _remove_taints(self, body: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        """Removes taints of a node as it was just read; if it has changed since, this conflicts."""
        metadata, taints = body["metadata"], body["spec"].get("taints") or ()
        kept = [each for each in taints if each["key"] not in keys]
        patch = {
            "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
            "spec": {"taints": kept or None},
        }
        return await self._client.merge_patch(NODES, metadata["name"], "", patch)

    async def _write_condition(self, name: str, new: NewCondition) -> dict[str, Any]:
        now = units.format_time(self._client.server_time())
        before = self._state.node(name)
        status = "True" if new.status else "False"
        since = now
        if before and before.condition and before.condition.status == status and before.condition.since:
            since = units.format_time(before.condition.since)
        condition = {
            "type": CONDITION_TYPE,
            "status": status,
            "reason": new.reason,
            "message": new.message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since,
        }
        return await self._client.patch_status_by_keys(NODES, name, {"status": {"conditions": [condition]}})

    async def _post(self, gated: GatedNode, decision: GateDecision) -> None:
        """Posts the events, before the taint goes: after a crash in between they are posted once more, as the same."""
        node = gated.node
        for event in decision.events:
            await self._post_once(InvolvedObject("v1", "Node", "", node.name, node.uid), event)
        for model, event in decision.model_events:
            kind = (names.API_VERSION, names.MODEL_WEIGHTS_KIND)
            await self._post_once(InvolvedObject(*kind, model.namespace, model.name, model.uid), event)

    async def _post_once(self, involved_object: InvolvedObject, event: Event) -> None:
        name = event.name(involved_object.name, involved_object.uid)
        if name in self._posted:
            return
        await self._recorder.post(involved_object, event)
        self._posted[name] = None
        while len(self._posted) > _MAX_POSTED:
            del self._posted[next(iter(self._posted))]


def _result(decision: GateDecision) -> str:
    return "timed_out" if any(each.warning for each in decision.events) else "warm"
