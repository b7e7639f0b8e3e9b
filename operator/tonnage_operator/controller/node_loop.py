"""Carries out the decision about one node: its ``NodeCache``, and cleanup Jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.controller.launching import Word
from tonnage_operator.controller.loop import Loop, together, utc_now
from tonnage_operator.controller.workers import Forget, Outdated
from tonnage_operator.domain import news
from tonnage_operator.domain.nodecache import decide_node
from tonnage_operator.kube.gateway import ApiError
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES

if TYPE_CHECKING:
    from tonnage_operator.api.nodecache import NodeCacheStatus
    from tonnage_operator.controller.cluster import CacheRecord, Cluster
    from tonnage_operator.controller.loop import Clock
    from tonnage_operator.domain.facts import Node
    from tonnage_operator.domain.nodecache import NodeDecision
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.nodes")

_FRESH: Final = 5.0
"""Seconds for which a list of all objects counts as fresh before bytes are removed."""
_BEGINNING: Final = 2.0
"""Seconds that a load may have been going on before the node's record says so: short ones are written once."""


class NodeLoop(Loop):
    """Brings one node's record after the other in order."""

    def __init__(self, cluster: Cluster, gateway: Gateway, metrics: Metrics, *, clock: Clock = utc_now) -> None:
        super().__init__(cluster, gateway, metrics, clock=clock)
        self._listed = float("-inf")
        self._listing = asyncio.Lock()
        self._begun: dict[str, float] = {}
        """When a load began that isn't on record yet, by node."""

    async def reconcile(self, name: str) -> float | None:
        """Brings one node's record in order. See ``Workers``."""
        node = self._cluster.node(name)
        if node is None:
            self._begun.pop(name, None)
            await self._drop_jobs(name)
            raise Forget
        try:
            return await self._reconcile(node)
        except ApiError as error:
            if not error.conflict:
                raise
            await self._launcher.check(_word(node, self._cluster.cache(name)))
            raise Outdated from error

    async def _reconcile(self, node: Node) -> float | None:
        decision = decide_node(self._cluster.node_world(node, self._clock()))
        if decision.apply:
            # Bytes are removed only on the word of a list just read: the local picture may miss what is minutes old.
            await self._refresh_weights()
            decision = decide_node(self._cluster.node_world(node, self._clock()))
        cache = self._cluster.cache(node.name)
        if decision.status is not None:
            if wait := self._patience(node.name, cache, decision):
                return wait
            cache = await self._record(node, cache, decision.status)
        self._begun.pop(node.name, None)
        await self._start(node, cache, decision)
        await self._delete(decision.delete)
        return decision.wake_after

    def _patience(self, name: str, cache: CacheRecord | None, decision: NodeDecision) -> float:
        """Returns the seconds until a record that tells of a beginning alone should be written."""
        if cache is None or decision.status is None or decision.apply or decision.delete:
            return 0.0
        if cache.status == decision.status or not news.only_begins(cache.status, decision.status):
            return 0.0
        now = time.monotonic()
        return max(0.0, self._begun.setdefault(name, now) + _BEGINNING - now)

    async def _start(self, node: Node, cache: CacheRecord | None, decision: NodeDecision) -> None:
        own = _word(node, cache)

        async def start(job: dict[str, Any]) -> None:
            if not await self._launcher.start(job, own):
                return
            notes = job["metadata"]["annotations"]
            self._metrics.evictions.labels(notes[names.MEDIUM], notes[names.CAUSE]).inc()
            about = {"node": node.name, "entry": notes[names.CACHE_KEY], "object": notes[names.MODEL_REF]}
            _LOG.info("Started a cleanup job", extra={"tonnage": about})

        await together(start, decision.apply)

    async def _drop_jobs(self, name: str) -> None:
        """Deletes cleanup Jobs for a node that is gone; load Jobs are their objects' business."""
        jobs = self._cluster.jobs_on(name)
        await self._delete(job for job in jobs if job.role == names.ROLE_CLEANUP and not job.deleting)

    async def _refresh_weights(self) -> None:
        async with self._listing:
            if time.monotonic() - self._listed < _FRESH:
                return
            items, _ = await self._gateway.list(MODEL_WEIGHTS)
            self._cluster.weights.replace(items)
            self._listed = time.monotonic()

    async def _record(self, node: Node, cache: CacheRecord | None, status: NodeCacheStatus) -> CacheRecord:
        """Writes a node's record, and makes the object where there is none."""
        if cache is None or cache.hostname != node.hostname:
            cache = await self._create(node)
        if cache.status == status:
            return cache
        before, said = cache.status, status.model_dump(mode="json", by_alias=True, exclude_none=True)
        # The version keeps two controllers from undoing each other's records: the later one looks again.
        body = await self._gateway.update_status(
            NODE_CACHES, cache.name, "", uid=cache.uid, version=cache.version, status=said
        )
        self._cluster.caches.put(body)
        self._count_emptied(before, status)
        return self._cluster.cache(node.name) or cache

    def _count_emptied(self, before: NodeCacheStatus, after: NodeCacheStatus) -> None:
        left = {(each.name, each.medium) for each in after.entries or ()}
        for entry in before.entries or ():
            if entry.state is EntryState.EVICTING and (entry.name, entry.medium) not in left:
                self._metrics.evicted_bytes.labels(entry.medium.value).inc(entry.bytes)

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


def _word(node: Node, cache: CacheRecord | None) -> Word:
    return Word(NODE_CACHES, node.name, cache.version if cache else "")
