"""Who has to look again when something changes. Too many wakes cost time, one too few costs truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.api.placement import PrewarmMode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.modelweights import Medium
    from tonnage_operator.api.nodecache import EntryState
    from tonnage_operator.controller.cluster import CacheRecord, Cluster, WeightsRecord
    from tonnage_operator.domain.caches import Key
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
        for name in {node.name for node in self._cluster.nodes} | {job.host for job in self._cluster.jobs if job.host}:
            self._node(name)  # Jobs may be there still for nodes that are gone

    def _weights_changed(self, before: WeightsRecord | None, after: WeightsRecord | None) -> None:
        record = after or before
        if record is None:
            return
        self._weights(record.uid)
        old, new = self._references(before), self._references(after)
        was_going, is_going = bool(before and before.deleting), bool(after and after.deleting)
        if old == new and was_going == is_going and (before is None) == (after is None):
            return
        self._wake_holders(old | new)
        for node in self._cluster.contents.naming(record.ref):
            self._node(node)

    def _references(self, record: WeightsRecord | None) -> frozenset[Key]:
        return record.weights.references(self._cluster.installation) if record and record.weights else frozenset()

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
        if job.host:
            self._node(job.host)

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        pod = after or before
        if pod is None:
            return
        if pod.role != names.ROLE_INJECTED:
            self._loader_changed(pod, ended=_ended(before) != _ended(after))
        for claim in pod.claims:
            self._weights(claim.uid)
        if pod.claims:
            moved = before is None or after is None or (before.node, before.over) != (after.node, after.over)
            for node in {each.node for each in (before, after) if each and each.node}:
                self._node(node)
            if moved and after is None and not pod.node:
                self._wake_holders((claim.key, claim.medium) for claim in pod.claims)

    def _loader_changed(self, pod: Pod, *, ended: bool) -> None:
        """Wakes whom the pod of a Job concerns: its object always, its node when its last words are in."""
        if pod.model_uid:
            self._weights(pod.model_uid)
        job = self._cluster.jobs.get(pod.job_uid)
        if ended and job and job.host:
            self._node(job.host)

    def _wake_holders(self, keys: Iterable[Key]) -> None:
        for key, medium in keys:
            for node in self._cluster.contents.holders(key, medium):
                self._node(node)

    def _cache_changed(self, before: CacheRecord | None, after: CacheRecord | None) -> None:
        cache = after or before
        if cache is None:
            return
        self._node(cache.name)
        old, new = _essence(before), _essence(after)
        changed = old ^ new
        rebooted = before is not None and after is not None and before.status.boot_id != after.status.boot_id
        if rebooted:
            changed = old | new
        keys = {(name, medium) for name, medium, _, _, _ in changed}
        refs = {ref for _, _, _, _, models in changed for ref in models}
        for uid in self._cluster.referrers.uids_of(keys, refs):
            self._weights(uid)
        for uid in {job.model_uid for job in self._cluster.jobs_on(cache.name) if job.model_uid} if changed else ():
            self._weights(uid)


def _ended(pod: Pod | None) -> bool:
    return pod is not None and (pod.over or any(each.ended for each in pod.loaders))


def _essence(cache: CacheRecord | None) -> set[tuple[str, Medium, EntryState, str | None, tuple[str, ...]]]:
    """Returns what objects care about in a node's record."""
    entries = (cache.status.entries if cache else None) or ()
    return {(each.name, each.medium, each.state, each.ranks, each.models) for each in entries}
