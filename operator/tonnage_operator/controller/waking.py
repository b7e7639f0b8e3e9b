"""Who has to look again when something changes. Too many wakes cost time, one too few costs truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tonnage_operator.api.placement import PrewarmMode

if TYPE_CHECKING:
    from tonnage_operator.controller.cluster import CacheRecord, Cluster, WeightsRecord
    from tonnage_operator.domain.facts import Job, Node, Pod

Wake = Callable[[str], None]


class Waking:
    """Connects the stores with the workers."""

    def __init__(self, cluster: Cluster, *, wake_weights: Wake, wake_node: Wake) -> None:
        self._cluster = cluster
        self._weights = wake_weights
        self._node = wake_node

    def connect(self) -> None:
        """Listens from now on."""
        cluster = self._cluster
        cluster.weights.listen(self._weights_changed)
        cluster.nodes.listen(self._node_changed)
        cluster.jobs.listen(self._job_changed)
        cluster.pods.listen(self._pod_changed)
        cluster.caches.listen(self._cache_changed)

    def wake_all(self) -> None:
        """Has everything looked at: after the start, and now and then for safety."""
        for record in self._cluster.weights:
            self._weights(record.uid)
        for node in self._cluster.nodes:
            self._node(node.name)

    def _weights_changed(self, before: WeightsRecord | None, after: WeightsRecord | None) -> None:
        record = after or before
        if record is None:
            return
        self._weights(record.uid)
        old = before.weights.references(self._cluster.installation) if before and before.weights else frozenset()
        new = after.weights.references(self._cluster.installation) if after and after.weights else frozenset()
        was_going, is_going = bool(before and before.deleting), bool(after and after.deleting)
        if old == new and was_going == is_going and (before is None) == (after is None):
            return
        ref = f"{record.namespace}/{record.name}"
        for cache in self._cluster.caches:
            entries = cache.status.entries or ()
            if any(ref in each.models or (each.name, each.medium) in old | new for each in entries):
                self._node(cache.name)

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        node = after or before
        if node is None:
            return
        self._node(node.name)
        for record in self._cluster.weights:
            if record.deleting or (record.weights and record.weights.spec.placement.prewarm is not PrewarmMode.NONE):
                self._weights(record.uid)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        job = after or before
        if job is None:
            return
        if job.model_uid:
            self._weights(job.model_uid)
        if job.node:
            self._node(job.node)

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        pod = after or before
        if pod is None:
            return
        if pod.model_uid:
            self._weights(pod.model_uid)
            if pod.node:
                self._node(pod.node)
        for claim in pod.claims:
            self._weights(claim.uid)
        if pod.claims:
            moved = before is None or after is None or (before.node, before.over) != (after.node, after.over)
            for node in {each.node for each in (before, after) if each and each.node}:
                self._node(node)
            if moved and after is None and not pod.node:
                self._wake_holders({claim.key for claim in pod.claims})

    def _wake_holders(self, keys: set[str]) -> None:
        for cache in self._cluster.caches:
            if any(entry.name in keys for entry in cache.status.entries or ()):
                self._node(cache.name)

    def _cache_changed(self, before: CacheRecord | None, after: CacheRecord | None) -> None:
        cache = after or before
        if cache is None:
            return
        self._node(cache.name)
        old = {
            (each.name, each.medium, each.state, each.models)
            for each in (before.status.entries if before else None) or ()
        }
        new = {
            (each.name, each.medium, each.state, each.models)
            for each in (after.status.entries if after else None) or ()
        }
        changed = {(name, medium) for name, medium, _, _ in old ^ new}
        refs = {ref for _, _, _, models in old ^ new for ref in models}
        rebooted = before is not None and after is not None and before.status.boot_id != after.status.boot_id
        for record in self._cluster.weights:
            if record.weights is None:
                continue
            concerned = rebooted or record.weights.ref in refs
            if concerned or record.weights.references(self._cluster.installation) & changed:
                self._weights(record.uid)
        for uid in {job.model_uid for job in self._cluster.jobs_on(cache.name) if job.model_uid} if changed else ():
            self._weights(uid)
