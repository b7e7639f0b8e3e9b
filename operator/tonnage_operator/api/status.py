"""The status of ``ModelWeights``, written by the controller alone."""

from __future__ import annotations

from pydantic import Field

from tonnage_operator.api.base import ApiModel, Condition, Int64, Time
from tonnage_operator.api.modelweights import Medium, ModelWeightsSpec

MAX_OBJECTS = 2000
"""Objects of a revision that a status holds at most; longer lists are pinned by their digest alone."""
MAX_FAILURES = 10
MAX_HISTORY = 2


class PinnedObject(ApiModel):
    """One object of a revision, as every request pins it."""

    key: str = Field(max_length=4096, description="Key in the bucket, or URL without its query.")
    size: Int64 = Field(ge=0, description="Size in bytes.")
    etag: str = Field(default="", max_length=1024, description="Entity tag without quotes; empty where there is none.")
    version_id: str = Field(default="", max_length=1024, description="Version; empty where the bucket has none.")


class SeenRevision(ApiModel):
    """A revision that was seen at the source."""

    revision: str = Field(description="Short name: r- and 12 hex digits of the digest.")
    digest: str = Field(description="sha256 over the object list.")
    total_bytes: Int64 = Field(default=0, description="Bytes of all objects together.")
    object_count: Int64 = Field(default=0, description="How many objects there are.")
    objects: tuple[PinnedObject, ...] | None = Field(
        default=None,
        max_length=MAX_OBJECTS,
        description="The objects; absent where they are more than 2000, or their names take more than 96 KiB: then "
        "the digest alone pins them.",
    )
    source_hash: str = Field(default="", description="Of the source and files that it was resolved for.")
    time: Time = Field(description="When it was first seen.")


class NodeCounts(ApiModel):
    """How many nodes have the weights."""

    desired: int = Field(default=0, description="Nodes that should be warm now.")
    warm: int = Field(default=0, description="Those of them that are.")
    loading: int = Field(default=0, description="Nodes that load now.")
    failed: int = Field(default=0, description="Nodes whose last load failed.")
    summary: str = Field(default="0/0", description="warm/desired, for people.")


class LoadProgress(ApiModel):
    """How far the slowest loading node is."""

    node: str = Field(description="The slowest node that loads.")
    percent: int = Field(description="0 to 100; -1 unknown.")
    loaded_bytes: Int64 = Field(default=0, description="Bytes that are there.")
    total_bytes: Int64 = Field(default=0, description="Bytes that there will be.")
    bytes_per_second: Int64 = Field(default=0, description="Current rate.")
    remaining_seconds: Int64 = Field(default=-1, description="Estimated time to the end; -1 unknown.")
    eta: str = Field(default="", description="The same for people, such as 2m10s; empty when unknown.")


class Consumers(ApiModel):
    """Who uses the weights now."""

    pods: int = Field(default=0, description="Pods that were admitted with this model and still exist.")
    namespaces: int = Field(default=0, description="How many namespaces they are in.")


class NodeFailure(ApiModel):
    """Why a node is not warm."""

    node: str = Field(description="The node; for a claim: pvc/<name>.")
    reason: str = Field(description="The loader's reason; docs/guides/operations/reasons.md lists each.")
    message: str = Field(default="", description="A sentence about it.")
    attempts: int = Field(default=1, description="How often it was tried since the last success.")
    time: Time = Field(description="When it last failed.")


class ModelWeightsStatus(ApiModel):
    """What is."""

    observed_generation: Int64 | None = Field(
        default=None, description="Generation of the spec that this status is about."
    )
    resolved: SeenRevision | None = Field(default=None, description="The revision in use.")
    available: SeenRevision | None = Field(
        default=None, description="A newer revision, seen at the source and not in use."
    )
    history: tuple[SeenRevision, ...] | None = Field(
        default=None,
        max_length=MAX_HISTORY,
        description="Revisions used before, newest first, for going back with pin.",
    )
    last_checked_time: Time | None = Field(
        default=None, description="When the source was last looked at, to the interval."
    )
    medium: Medium | None = Field(default=None, description="The medium in effect.")
    source: str | None = Field(default=None, description="Where the objects are, for people.")
    size: str | None = Field(default=None, description="Bytes of the revision in use, for people.")
    nodes: NodeCounts | None = Field(default=None, description="How many nodes have the weights.")
    progress: LoadProgress | None = Field(default=None, description="How far the slowest loading node is.")
    progress_summary: str | None = Field(default=None, description="Its percentage, for people.")
    consumers: Consumers | None = Field(default=None, description="Who uses the weights now.")
    failures: tuple[NodeFailure, ...] | None = Field(
        default=None,
        max_length=MAX_FAILURES,
        description="At most 10 nodes whose last load failed, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node"]},
    )
    conditions: tuple[Condition, ...] | None = Field(
        default=None,
        max_length=16,
        description="Accepted, Resolved, Progressing, Warm, Ready, Degraded, UpdateAvailable.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class ModelWeightsResource(ApiModel):
    """A model in object storage that pods of this cluster can ask for by name."""

    spec: ModelWeightsSpec = Field(description="What is wanted.")
    status: ModelWeightsStatus | None = Field(default=None, description="What is; written by the controller.")
