"""``GroupRevision``: the revision of a model that all pods of one group get. Only the webhook creates it."""

from __future__ import annotations

from pydantic import Field

from tonnage_operator.api.base import ApiModel
from tonnage_operator.api.modelweights import FilesSpec
from tonnage_operator.api.source import Credentials, ModelSource
from tonnage_operator.api.status import SeenRevision


class GroupRevisionSpec(ApiModel):
    """The revision, and where it is. It is never changed."""

    group: str = Field(
        max_length=512, description="The pods that get it, such as ReplicaSet web-5d9c, by what created them."
    )
    model: str = Field(max_length=317, description="The ModelWeights, as namespace/name.")
    revision: SeenRevision = Field(description="The revision that the first pod of the group got.")
    source: ModelSource = Field(description="The source that has it, as the ModelWeights had it then.")
    files: FilesSpec = Field(default=FilesSpec(), description="Which objects of the source are used.")
    credentials: Credentials | None = Field(
        default=None, description="Identity for reading that source; absent: the ambient identity of the loader's pod."
    )


class GroupRevisionResource(ApiModel):
    """The revision of a model that all pods of one group get, for the life of the group."""

    spec: GroupRevisionSpec = Field(description="The revision, and where it is.")
