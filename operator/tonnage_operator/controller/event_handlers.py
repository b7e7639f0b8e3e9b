"""Maps object changes to reconcile keys. A spurious enqueue costs time; a missed one leaves a stale status."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.api.placement import PrewarmMode
from tonnage_operator.controller.group_entries import grouped_entries

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.modelweights import Medium, Retention
    from tonnage_operator.api.nodecache import EntryState
    from tonnage_operator.controller.state import CacheRecord, ControllerState, WeightsRecord
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.domain.observed.pod import Pod

Enqueue = Callable[[str], None]


class EventHandlers:
    """Enqueues the keys that a change in one of the stores concerns."""

    def __init__(self, state: ControllerState, *, enqueue_weights: Enqueue, enqueue_node: Enqueue) -> None:
        self._state = state
        self._enqueue_weights = enqueue_weights
        self._enqueue_node = enqueue_node

    def register(self) -> None:
        self._state.add_event_handlers(
            weights=self._weights_changed,
            nodes=self._node_changed,
            jobs=self._job_changed,
            pods=self._pod_changed,
            node_caches=self._cache_changed,
        )

    def enqueue_all(self) -> None:
        """Enqueues all keys: after the start, and at each resync."""
        for record in self._state.weights:
            self._enqueue_weights(record.uid)
        for name in {node.name for node in self._state.nodes} | {
            job.node_name for job in self._state.jobs if job.node_name
        }:
            self._enqueue_node(name)  # deleted nodes may still have Jobs

    def _weights_changed(self, before: WeightsRecord | None, after: WeightsRecord | None) -> None:
        record = after or before
        if record is None:
            return
        self._enqueue_weights(record.uid)
        old, new = self._references(before), self._references(after)
        was_deleting, is_deleting = bool(before and before.deleting), bool(after and after.deleting)
        if old == new and was_deleting == is_deleting and (before is None) == (after is None):
            return
        self._enqueue_nodes_with(old | new)
        for node in self._state.cache_index.nodes_referencing(record.ref):
            self._enqueue_node(node)

    def _references(self, record: WeightsRecord | None) -> frozenset[EntryKey]:
        return record.weights.references(self._state.installation) if record and record.weights else frozenset()

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        node = after or before
        if node is None:
            return
        self._enqueue_node(node.name)
        for record in self._state.weights:
            if record.deleting or (record.weights and record.weights.spec.placement.prewarm is not PrewarmMode.NONE):
                self._enqueue_weights(record.uid)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        job = after or before
        if job is None:
            return
        if job.model_uid:
            self._enqueue_weights(job.model_uid)
        if job.node_name:
            self._enqueue_node(job.node_name)

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        pod = after or before
        if pod is None:
            return
        if pod.role != names.ROLE_INJECTED:
            self._loader_changed(pod, ended=_has_terminated(before) != _has_terminated(after))
        for held in pod.held_entries:
            self._enqueue_weights(held.uid)
        if pod.held_entries:
            placement_changed = (
                before is None or after is None or (before.node, before.is_terminal) != (after.node, after.is_terminal)
            )
            for node in {each.node for each in (before, after) if each and each.node}:
                self._enqueue_node(node)
            if placement_changed and after is None and not pod.node:
                self._enqueue_nodes_with(held.entry_key for held in pod.held_entries)
            elif before and (ended := grouped_entries(before) - grouped_entries(after)):
                self._enqueue_nodes_with(ended)  # it may have been the last pod of its group

    def _loader_changed(self, pod: Pod, *, ended: bool) -> None:
        """Enqueues the object of a Job's pod, and its node when a loader in the pod has terminated."""
        if pod.model_uid:
            self._enqueue_weights(pod.model_uid)
        job = self._state.jobs.get(pod.job_uid)
        if ended and job and job.node_name:
            self._enqueue_node(job.node_name)

    def _enqueue_nodes_with(self, keys: Iterable[EntryKey]) -> None:
        for key, medium in keys:
            for node in self._state.cache_index.nodes_with(key, medium):
                self._enqueue_node(node)

    def _cache_changed(self, before: CacheRecord | None, after: CacheRecord | None) -> None:
        cache = after or before
        if cache is None:
            return
        self._enqueue_node(cache.name)
        old, new = _relevant_fields(before), _relevant_fields(after)
        changed = old ^ new
        rebooted = before is not None and after is not None and before.status.boot_id != after.status.boot_id
        if rebooted:
            changed = old | new
        keys = {EntryKey(entry[0], entry[1]) for entry in changed}
        refs = {ref for entry in changed for ref in entry[-1]}
        for uid in self._state.references.uids_for(keys, refs):
            self._enqueue_weights(uid)
        for uid in {job.model_uid for job in self._state.jobs_on(cache.name) if job.model_uid} if changed else ():
            self._enqueue_weights(uid)


def _has_terminated(pod: Pod | None) -> bool:
    return pod is not None and (pod.is_terminal or any(each.terminated for each in pod.loaders))


_Relevant = tuple[str, "Medium", "EntryState", str | None, "Retention", int, tuple[str, ...]]


def _relevant_fields(cache: CacheRecord | None) -> set[_Relevant]:
    """Returns the fields of a ``NodeCache`` on which decisions about objects depend."""
    entries = (cache.status.entries if cache else None) or ()
    return {
        (each.name, each.medium, each.state, each.ranks, each.retention, each.reserved_bytes, each.models)
        for each in entries
    }
