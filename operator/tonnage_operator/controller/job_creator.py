"""Starts Jobs, each once, even where two controllers run by accident.

Names are deterministic, so the same Job can't be there twice at a time. It could be made anew after the other
controller has recorded its outcome and removed it, by one whose picture is a moment behind. So the last look before a
Job is made is at the server: first that there is no such Job, then that the records which ask for it are still as they
were. A Job that was removed before the first look had its outcome recorded before the second; and one that is made
after the first look can't have ended before ours is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.controller.workqueue import StaleCache
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import JOBS

if TYPE_CHECKING:
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.nodecache.index import EntryKey
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource

_CREATE_TIMEOUT: Final = 5.0
"""Seconds for making a Job: less than any Job takes from its creation to its record."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Precondition:
    """The version of a record on whose word a Job is started; empty: there is no record.

    ``entry_key`` is the entry of a node's record that the Job is to load: what else changes there doesn't matter.
    """

    resource: Resource
    name: str
    resource_version: str
    namespace: str = ""
    entry_key: EntryKey | None = None


class JobCreator:
    """Makes Jobs."""

    def __init__(self, state: ControllerState, client: KubeClient) -> None:
        self._state = state
        self._client = client

    async def create(self, job: Body, precondition: Precondition) -> bool:
        """Makes a Job and returns whether it is new.

        Args:
            job: The whole object.
            precondition: The record that asks for it.

        Raises:
            Outdated: That says something else by now.
            ApiError: It can't be made.
        """
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        if await self._refresh_job(name, namespace):
            return False
        await self.check_precondition(precondition)
        try:
            created = await self._client.create(JOBS, job, namespace, timeout=_CREATE_TIMEOUT, attempts=1)
        except ApiError as error:
            if error.conflict and await self._refresh_job(name, namespace):
                return False
            raise
        self._state.jobs.put(created)
        return True

    async def check_precondition(self, precondition: Precondition) -> None:
        """Looks whether a record is as it was known, and takes it in where it isn't.

        Raises:
            Outdated: It says something else by now.
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

    def _is_ready_or_evicting(self, node: str, key: EntryKey) -> bool:
        """Returns whether an entry is there, or has to be emptied first."""
        entry = self._state.cache_index.entry(node, *key)
        if entry is None:
            return False
        return entry.state is EntryState.EVICTING or (entry.state is EntryState.READY and not entry.ranks)

    async def _refresh_job(self, name: str, namespace: str) -> bool:
        found = await self._client.get_or_none(JOBS, name, namespace)
        if found:
            self._state.jobs.put(found)
        return found is not None
