"""Reconciles nodes: writes each node's ``NodeCache`` and creates its cleanup Jobs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.controller.job_control import Precondition
from tonnage_operator.controller.lists import FreshLists
from tonnage_operator.controller.reconciler import Reconciler, gather_bounded
from tonnage_operator.controller.workqueue import Gone, StaleCache
from tonnage_operator.domain import status_diff
from tonnage_operator.domain.nodecache.reconcile import decide_node
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES, NODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import NodeCacheStatus
    from tonnage_operator.controller.state import CacheRecord, ControllerState
    from tonnage_operator.domain.nodecache.reconcile import NodeDecision
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.nodes")

_LOAD_START_GRACE_PERIOD: Final = 2.0
"""Seconds before a started load is written to the ``NodeCache``, so that short loads cost one write."""


class NodeCacheController(Reconciler):
    """Reconciles one node at a time; the key is its name."""

    def __init__(
        self, state: ControllerState, client: KubeClient, metrics: Metrics, *, enqueue_weights: Callable[[str], None]
    ) -> None:
        super().__init__(state, client, metrics)
        self._enqueue_weights = enqueue_weights
        self._weights_lists = FreshLists(state, client, MODEL_WEIGHTS)
        self._load_started_at: dict[str, float] = {}
        """Monotonic time of the start of a load that is not in the ``NodeCache`` yet, by node."""

    async def reconcile(self, name: str) -> float | None:
        """Reconciles one node. See ``ReconcileFunc``."""
        node = self._state.node(name)
        if node is None:
            self._load_started_at.pop(name, None)
            await self._delete_cleanup_jobs(name)
            raise Gone
        try:
            return await self._reconcile(node)
        except ApiError as error:
            if not error.conflict:
                raise
            await self._job_control.check_precondition(Precondition.of_node_cache(name, self._state.node_cache(name)))
            raise StaleCache from error

    async def _reconcile(self, node: Node) -> float | None:
        decision = decide_node(self._state.node_snapshot(node, datetime.now(UTC)))
        if decision.apply:
            # Evict only after a fresh list of ModelWeights: the cache may lag by minutes.
            await self._weights_lists.refresh()
            decision = decide_node(self._state.node_snapshot(node, datetime.now(UTC)))
        for uid in self._state.set_shortages(node.name, decision.shortages):
            self._enqueue_weights(uid)
        cache = self._state.node_cache(node.name)
        if decision.status is not None:
            if delay := self._status_write_delay(node.name, cache, decision):
                return delay
            cache = await self._write_status(node, cache, decision.status)
        self._load_started_at.pop(node.name, None)
        precondition = Precondition.of_node_cache(node.name, cache)
        await self._create_jobs(node, precondition, decision.apply)
        if decision.delete:
            await self._job_control.check_precondition(precondition)
            await gather_bounded(self._job_control.delete, decision.delete)
        return decision.requeue_after

    def _status_write_delay(self, name: str, cache: CacheRecord | None, decision: NodeDecision) -> float:
        """Returns the seconds until the status should be written; 0: now. Started loads alone are delayed."""
        if cache is None or decision.status is None or decision.apply or decision.delete or decision.reserves:
            return 0.0
        if cache.status == decision.status or not status_diff.only_load_started(cache.status, decision.status):
            return 0.0
        now = time.monotonic()
        return max(0.0, self._load_started_at.setdefault(name, now) + _LOAD_START_GRACE_PERIOD - now)

    async def _create_jobs(self, node: Node, precondition: Precondition, jobs: Iterable[Body]) -> None:
        async def create(job: dict[str, Any]) -> None:
            if not await self._job_control.create(job, precondition):
                return
            annotations = job["metadata"]["annotations"]
            self._metrics.evictions.labels(annotations[names.MEDIUM], annotations[names.CAUSE]).inc()
            fields = {"node": node.name, "entry": annotations[names.CACHE_KEY], "object": annotations[names.MODEL_REF]}
            _LOG.info("Created a cleanup Job", extra={"tonnage": fields})

        await gather_bounded(create, jobs)

    async def _delete_cleanup_jobs(self, name: str) -> None:
        """Deletes the cleanup Jobs of a deleted node. Its load Jobs are deleted by ``ModelWeightsController``."""
        jobs = [job for job in self._state.jobs_on(name) if job.role == names.ROLE_CLEANUP and not job.deleting]
        await gather_bounded(lambda job: self._job_control.delete(job, Precondition(NODES, name, "")), jobs)

    async def _write_status(self, node: Node, cache: CacheRecord | None, status: NodeCacheStatus) -> CacheRecord:
        """Writes the status of a node's ``NodeCache``, and creates the object if it does not exist."""
        if cache is None or cache.hostname != node.hostname:
            cache = await self._create_node_cache(node)
        if cache.status == status:
            return cache
        previous, status_body = cache.status, status.model_dump(mode="json", by_alias=True, exclude_none=True)
        # The resource version prevents two controllers from overwriting each other's records: the later one conflicts.
        body = await self._client.update_status(
            NODE_CACHES, cache.name, "", uid=cache.uid, resource_version=cache.resource_version, status=status_body
        )
        self._state.node_caches.put(body)
        self._count_evicted(previous, status)
        return replace(cache, resource_version=body["metadata"]["resourceVersion"], status=status)

    def _count_evicted(self, before: NodeCacheStatus, after: NodeCacheStatus) -> None:
        remaining = {(each.name, each.medium) for each in after.entries or ()}
        for entry in before.entries or ():
            if entry.state is EntryState.EVICTING and entry.entry_key not in remaining:
                self._metrics.evicted_bytes.labels(entry.medium.value).inc(entry.bytes)

    async def _create_node_cache(self, node: Node) -> CacheRecord:
        owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
        body: dict[str, Any] = {
            "apiVersion": names.API_VERSION,
            "kind": names.NODE_CACHE_KIND,
            "metadata": {
                "name": node.name,
                "labels": {names.MANAGED_BY: names.MANAGER, names.HOSTNAME_LABEL: node.hostname},
                "ownerReferences": [owner],
            },
        }
        self._state.node_caches.put(await self._client.apply(NODE_CACHES, body))
        cache = self._state.node_cache(node.name)
        if cache is None:
            raise Gone
        return cache
