"""Creates each Job once and deletes only obsolete ones, even if two controllers run by accident.

Job names are deterministic, so duplicates conflict. A controller with a stale cache could still create a Job again that
another one has already recorded and deleted. Two reads at the API server prevent that: first that the Job does not
exist, then that the record which requires it is unchanged. A Job that was deleted before the first read had its outcome
recorded before the second one; a Job that another controller creates after the first read can't finish before our own
create request is sent.

A controller with a stale cache could also delete a Job that another one needs: one that is running, or one whose
outcome is not recorded yet. So a Job is deleted only if the records that make it obsolete are unchanged at the API
server.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.controller.workqueue import StaleCache
from tonnage_operator.domain import signing, units
from tonnage_operator.domain.nodecache.capacity import has_room
from tonnage_operator.domain.specs.namespace_limits import fit_job
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import JOBS, NODE_CACHES
from tonnage_operator.namespace_rules import NamespaceRules

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.controller.state import CacheRecord, ControllerState
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource

_LOG = logging.getLogger("tonnage.jobs")

_CREATE_TIMEOUT: Final = 5.0
"""Seconds for creating a Job: less than any Job takes from its creation until its outcome is recorded."""


@dataclass(frozen=True)
class Precondition:
    """The state that a record must still have when a Job is created or deleted.

    ``resource_version`` is empty if the record must not exist. ``entry_key`` is the entry of a ``NodeCache`` that the
    Job will load; other changes of the ``NodeCache`` don't matter then.
    """

    resource: Resource
    name: str
    resource_version: str
    namespace: str = ""
    entry_key: EntryKey | None = None
    required_bytes: int = 0
    """Bytes that must be reserved for this entry; 0: none."""

    @classmethod
    def of_node_cache(
        cls, node: str, cache: CacheRecord | None, *, entry_key: EntryKey | None = None, required_bytes: int = 0
    ) -> Precondition:
        """Returns that a node's ``NodeCache`` is still the given one; None: that the node still has none."""
        version = cache.resource_version if cache else ""
        return cls(NODE_CACHES, node, version, entry_key=entry_key, required_bytes=required_bytes)


class JobControl:
    """Creates and deletes Jobs, and checks the preconditions."""

    def __init__(self, state: ControllerState, client: KubeClient) -> None:
        self._state = state
        self._client = client
        self._namespace_rules = NamespaceRules(client)

    async def create(self, job: Body, precondition: Precondition) -> bool:
        """Creates a Job; returns False if it exists.

        Args:
            job: The Job manifest.
            precondition: The record that requires the Job.

        Raises:
            StaleCache: The record has changed, or a Job of the same name was not ours.
            ApiError: The Job can't be created.
        """
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        limits = await self._namespace_rules.get(namespace)
        job = fit_job(job, limits, memory_floor=self._memory_floor(job["metadata"].get("annotations") or {}))
        if await self._refresh_job(name, namespace):
            return False
        await self.check_precondition(precondition)
        job = signing.stamp_job(job, self._state.installation.signing, self._client.server_time())
        try:
            created = await self._client.create(JOBS, job, namespace, timeout=_CREATE_TIMEOUT, attempts=1)
        except ApiError as error:
            if error.conflict and await self._refresh_job(name, namespace):
                return False
            raise
        self._state.record_created_job(created)
        return True

    async def delete(self, job: Job, precondition: Precondition | None = None) -> None:
        """Deletes a Job and its pods; succeeds if it is gone.

        Args:
            job: The Job.
            precondition: The record that makes the Job obsolete; None: it has been checked.

        Raises:
            StaleCache: The record has changed, so the Job may be needed.
            ApiError: The Job can't be deleted.
        """
        if precondition:
            await self.check_precondition(precondition)
        await self._client.delete(JOBS, job.name, job.namespace, uid=job.uid)
        # Its watch event comes later, and decisions until then would delete it again.
        self._state.jobs.amend(job.uid, lambda known: replace(known, deleting=True))

    def _memory_floor(self, annotations: Body) -> int:
        """Returns the bytes that a Job's loader may need: those that it writes to memory, and its overhead."""
        written = int(annotations.get(names.BYTES, "0")) if annotations.get(names.MEDIUM) == Medium.MEMORY.value else 0
        return written + units.parse_quantity(self._state.installation.loader.memory_overhead) if written else 0

    async def check_precondition(self, precondition: Precondition) -> None:
        """Compares a record at the API server with the cache, and updates the cache if they differ.

        Raises:
            StaleCache: The record has changed.
        """
        if (
            await self._client.get_resource_version(precondition.resource, precondition.name, precondition.namespace)
            != precondition.resource_version
        ):
            if body := await self._client.get_or_none(precondition.resource, precondition.name, precondition.namespace):
                self._state.store_for(precondition.resource).put(body)
            if precondition.entry_key is None:
                raise StaleCache
        if precondition.entry_key and self._is_ready_or_evicting(precondition.name, precondition.entry_key):
            raise StaleCache
        if precondition.entry_key and precondition.required_bytes:
            entry = self._state.cache_index.entry(precondition.name, *precondition.entry_key)
            if not has_room(entry, precondition.required_bytes):
                raise StaleCache

    def _is_ready_or_evicting(self, node: str, key: EntryKey) -> bool:
        """Returns whether an entry is complete, or must be evicted before it can be loaded."""
        entry = self._state.cache_index.entry(node, *key)
        if entry is None:
            return False
        return entry.state is EntryState.EVICTING or (entry.state is EntryState.READY and not entry.ranks)

    async def _refresh_job(self, name: str, namespace: str) -> bool:
        """Returns whether a Job of ours exists. One that isn't ours is deleted, because it takes the name of ours."""
        found = await self._client.get_or_none(JOBS, name, namespace)
        if found is None:
            return False
        self._state.jobs.put(found)
        uid = found["metadata"]["uid"]
        job = self._state.jobs.get(uid)
        if job and self._state.is_ours(job):
            return True
        _LOG.warning("Deleting Job %s/%s, which has the name of one of ours and is not ours", namespace, name)
        await self._client.delete(JOBS, name, namespace, uid=uid)
        raise StaleCache
