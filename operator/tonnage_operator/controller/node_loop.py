"""Carries out the decision about one node: its ``NodeCache``, and cleanup Jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState, NodeCacheStatus
from tonnage_operator.controller.workers import Forget
from tonnage_operator.domain.nodecache import decide_node
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage_operator.controller.cluster import CacheRecord, Cluster
    from tonnage_operator.domain.facts import Node
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.nodes")

_FRESH: Final = 5.0
"""Seconds for which a list of all objects counts as fresh before bytes are removed."""


class NodeLoop:
    """Brings one node's record after the other in order."""

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
        self._listed = float("-inf")
        self._listing = asyncio.Lock()

    async def reconcile(self, name: str) -> float | None:
        """Brings one node's record in order. See ``Workers``."""
        node = self._cluster.node(name)
        if node is None:
            await self._drop_jobs(name)
            raise Forget
        decision = decide_node(self._cluster.node_world(node, self._clock()))
        if decision.apply:
            # Bytes are removed only on the word of a list just read: the local picture may miss what is minutes old.
            await self._refresh_weights()
            decision = decide_node(self._cluster.node_world(node, self._clock()))
        cache = self._cluster.cache(name)
        if decision.status is not None:
            if cache is None or cache.hostname != node.hostname:
                cache = await self._create(node)
            if decision.status != cache.status:
                await self._write_status(cache, decision.status)
        for job in decision.apply:
            self._cluster.jobs.put(await self._gateway.apply(JOBS, job))
            notes = job["metadata"]["annotations"]
            self._metrics.evictions.labels(notes[names.MEDIUM]).inc()
            about = {"node": name, "entry": notes[names.CACHE_KEY], "object": notes[names.MODEL_REF]}
            _LOG.info("Started a cleanup job", extra={"tonnage": about})
        for each in decision.delete:
            await self._gateway.delete(JOBS, each.name, each.namespace, uid=each.uid)
        return decision.wake_after

    async def _drop_jobs(self, name: str) -> None:
        """Deletes cleanup Jobs for a node that is gone; load Jobs are their objects' business."""
        for job in self._cluster.jobs_on(name):
            if job.role == names.ROLE_CLEANUP and not job.deleting:
                await self._gateway.delete(JOBS, job.name, job.namespace, uid=job.uid)

    async def _refresh_weights(self) -> None:
        async with self._listing:
            if time.monotonic() - self._listed < _FRESH:
                return
            items, _ = await self._gateway.list(MODEL_WEIGHTS)
            self._cluster.weights.replace(items)
            self._listed = time.monotonic()

    async def _create(self, node: Node) -> CacheRecord:
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
        self._cluster.caches.put(await self._gateway.apply(NODE_CACHES, body))
        cache = self._cluster.cache(node.name)
        if cache is None:
            raise Forget
        return cache

    async def _write_status(self, cache: CacheRecord, status: NodeCacheStatus) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.NODE_CACHE_KIND,
            # The version keeps two controllers from undoing each other's records: the later one looks again.
            "metadata": {"name": cache.name, "uid": cache.uid, "resourceVersion": cache.version},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        self._cluster.caches.put(await self._gateway.apply(NODE_CACHES, body, subresource="status"))

    def gauges(self) -> None:
        """Sums all nodes up, when metrics are asked for."""
        entries: dict[tuple[Medium, EntryState], int] = {}
        used: dict[Medium, int] = {}
        capacity: dict[Medium, int] = {}
        for cache in self._cluster.caches:
            for entry in cache.status.entries or ():
                entries[entry.medium, entry.state] = entries.get((entry.medium, entry.state), 0) + 1
            for state in cache.status.media or ():
                used[state.name] = used.get(state.name, 0) + state.used_bytes
                capacity[state.name] = capacity.get(state.name, 0) + state.capacity_bytes
        for medium in Medium:
            self._metrics.cache_used.labels(medium.value).set(used.get(medium, 0))
            self._metrics.cache_capacity.labels(medium.value).set(capacity.get(medium, 0))
            for entry_state in EntryState:
                count = entries.get((medium, entry_state), 0)
                self._metrics.cache_entries.labels(medium.value, entry_state.value).set(count)
