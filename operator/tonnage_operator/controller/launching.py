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
from tonnage_operator.controller.workers import Outdated
from tonnage_operator.kube.gateway import ApiError
from tonnage_operator.kube.resources import JOBS

if TYPE_CHECKING:
    from tonnage_operator.controller.cluster import Cluster
    from tonnage_operator.domain.caches import Key
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.kube.resources import Resource

_TIMEOUT: Final = 5.0
"""Seconds for making a Job: less than any Job takes from its creation to its record."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Word:
    """The version of a record on whose word a Job is started; empty: there is no record.

    ``about`` is the entry of a node's record that the Job is to load: what else changes there doesn't matter.
    """

    resource: Resource
    name: str
    version: str
    namespace: str = ""
    about: Key | None = None


class Launcher:
    """Makes Jobs."""

    def __init__(self, cluster: Cluster, gateway: Gateway) -> None:
        self._cluster = cluster
        self._gateway = gateway

    async def start(self, job: Body, word: Word) -> bool:
        """Makes a Job and returns whether it is new.

        Args:
            job: The whole object.
            word: The record that asks for it.

        Raises:
            Outdated: That says something else by now.
            ApiError: It can't be made.
        """
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        if await self._take_in(name, namespace):
            return False
        await self.check(word)
        try:
            made = await self._gateway.create(JOBS, job, namespace, timeout=_TIMEOUT, attempts=1)
        except ApiError as error:
            if error.conflict and await self._take_in(name, namespace):
                return False
            raise
        self._cluster.jobs.put(made)
        return True

    async def check(self, word: Word) -> None:
        """Looks whether a record is as it was known, and takes it in where it isn't.

        Raises:
            Outdated: It says something else by now.
        """
        if await self._gateway.version(word.resource, word.name, word.namespace) != word.version:
            if body := await self._gateway.find(word.resource, word.name, word.namespace):
                self._cluster.store(word.resource).put(body)
            if word.about is None:
                raise Outdated
        if word.about and self._needs_no_load(word.name, word.about):
            raise Outdated

    def _needs_no_load(self, node: str, key: Key) -> bool:
        """Returns whether an entry is there, or has to be emptied first."""
        entry = self._cluster.contents.entry(node, *key)
        if entry is None:
            return False
        return entry.state is EntryState.EVICTING or (entry.state is EntryState.READY and not entry.ranks)

    async def _take_in(self, name: str, namespace: str) -> bool:
        found = await self._gateway.find(JOBS, name, namespace)
        if found:
            self._cluster.jobs.put(found)
        return found is not None
