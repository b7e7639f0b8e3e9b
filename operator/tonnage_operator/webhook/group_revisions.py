"""Reads and creates ``GroupRevision`` objects: the first pod of a group decides, all others get the same revision."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from tonnage_operator.api.grouprevision import GroupRevisionResource
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.admission.pod_groups import build_group_revision, has_other_owner, object_names
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import GROUP_REVISIONS

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.grouprevision import GroupRevisionSpec
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.admission.pod_groups import PodGroup
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.kube.client import KubeClient

_TIMEOUT: Final = 2.0
"""Seconds for one request. A review makes at most three of them one after the other."""

MAX_IN_NAMESPACE: Final = 5_000
"""Objects of a namespace above which no group is added. Each is of a few KiB, and any author of pods causes them."""


@dataclass(frozen=True)
class KeptRevision:
    """The revision of a group."""

    name: str
    """Name of the ``GroupRevision``."""
    spec: GroupRevisionSpec


class GroupRevisions:
    """The revisions that the groups of one namespace keep."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def find(self, group: PodGroup, model: str) -> KeptRevision | None:
        """Returns the revision that a group has of a model (``namespace/name``); None if it has none yet.

        Raises:
            AdmissionDenied: The group's name was another one's, whose revision is about to be removed.
            ApiError: A request failed.
        """
        names = object_names(group, model)
        found = await asyncio.gather(*(self._read(group, name) for name in names))
        return next((each for each in found if each), None)

    async def keep(self, group: PodGroup, weights: ModelWeights, seen: SeenRevision) -> KeptRevision:
        """Returns the revision that a group has from now on: this one, unless another pod was earlier.

        Raises:
            AdmissionDenied: The namespace has too many groups, or forbids the object.
            ApiError: A request failed.
        """
        name = object_names(group, weights.ref)[-1]
        if await self._client.count(GROUP_REVISIONS, self._namespace, timeout=_TIMEOUT) >= MAX_IN_NAMESPACE:
            raise AdmissionDenied(
                f"Namespace {self._namespace} has {MAX_IN_NAMESPACE} GroupRevisions, and no more are created: delete "
                "those whose groups have no pods, or set tonnage.dev/same-revision to false."
            )
        body = build_group_revision(group, name, self._namespace, weights, seen)
        try:
            created = await self._client.create(GROUP_REVISIONS, body, self._namespace, timeout=_TIMEOUT)
        except ApiError as error:
            if error.conflict and (earlier := await self._read(group, name)):
                return earlier
            if error.status == 403:
                raise AdmissionDenied(
                    f"The revision of {group.title} can't be kept for its other pods: {error.message}"
                ) from error
            raise
        return KeptRevision(name, _parse(created))

    async def _read(self, group: PodGroup, name: str) -> KeptRevision | None:
        try:
            body = await self._client.get(GROUP_REVISIONS, name, self._namespace, timeout=_TIMEOUT)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        if has_other_owner(group, body):
            raise AdmissionDenied(
                f"GroupRevision {name} is of an earlier {group.title}, and is about to be removed: try again."
            )
        return KeptRevision(name, _parse(body))


def _parse(body: Body) -> GroupRevisionSpec:
    try:
        return GroupRevisionResource.model_validate(body).spec
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AdmissionDenied(
            f"GroupRevision {body['metadata']['name']} can't be read: {where}: {first['msg']}. Once it is deleted, the "
            "next pod of its group decides."
        ) from error
