"""The status of ``ModelWeights``. Only the controller writes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tonnage.contract.report import VERIFIED_BY_LIMIT
from tonnage_operator.api.base import ApiModel, Condition, Int64, Time
from tonnage_operator.api.modelweights import Medium, ModelWeightsSpec
from tonnage_operator.api.source import AddressingStyle

MAX_OBJECTS = 2000
"""Maximum number of objects of a revision in a status. Longer lists are pinned by their digest."""
MAX_CHECKSUM = 160
"""Maximum number of characters of an object's checksum: those of a SHA-512, its name and a number of parts."""
MAX_NOTES = 8
MAX_NOTE = 600
"""Maximum number of notes, and of characters of each."""
MAX_FAILURES = 10
MAX_HISTORY = 10
MAX_SOURCE = 512
"""Maximum number of characters of a revision's location."""


class PinnedObject(ApiModel):
    """One object of a revision, with the version that requests are pinned to."""

    key: str = Field(max_length=4096, description="Key in the bucket, or URL without query string.")
    size: Int64 = Field(ge=0, description="Size in bytes.")
    etag: str = Field(default="", max_length=1024, description="ETag without quotes; empty if there is none.")
    version_id: str = Field(
        default="", max_length=1024, description="Version ID; empty if the bucket is not versioned."
    )
    checksum: str = Field(
        default="",
        max_length=MAX_CHECKSUM,
        description="Checksum that the source states, such as crc64nvme:8e49c46600c8d49d; empty if there is none.",
    )


class StoreBehavior(ApiModel):
    """How the store of a revision must be asked, as resolving found it by asking."""

    addressing_style: AddressingStyle = Field(
        default=AddressingStyle.AUTO,
        description="The addressing style that the store demands where spec.source.s3.addressingStyle is Auto; Auto: "
        "it demands none.",
    )
    region: str = Field(
        default="",
        pattern=r"^[a-z0-9-]{0,64}$",
        description="The bucket's region, if it is not the configured one; otherwise empty.",
    )
    etag_only: bool = Field(
        default=False, description="Objects have version IDs, but are pinned by ETag: they can't be requested by ID."
    )


class SeenRevision(ApiModel):
    """A revision of the source."""

    revision: str = Field(description="Name of the revision: r- and 32 hex digits of the digest.")
    digest: str = Field(description="SHA-256 of the object list.")
    total_bytes: Int64 = Field(default=0, description="Total size of the objects in bytes.")
    object_count: Int64 = Field(default=0, description="Number of objects.")
    objects: tuple[PinnedObject, ...] | None = Field(
        default=None,
        max_length=MAX_OBJECTS,
        description="The objects; absent if there are more than 2000 or their names exceed 96 KiB. Then the digest "
        "pins them.",
    )
    behavior: StoreBehavior | None = Field(
        default=None,
        description="How the store must be asked, so that no load has to find it out; absent: in the ordinary way.",
    )
    headers_digest: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="SHA-256 of the headers of its tensors, as the first load reported it that verified them with the "
        "source; by it loaders believe the bytes of other nodes while the source can't be reached. Empty: unknown.",
    )
    source_hash: str = Field(default="", description="Hash of the source and files that it was resolved for.")
    time: Time = Field(description="When it was first resolved.")
    number: int | None = Field(
        default=None,
        description="Counts the changes of the revision in use, from 1; a rollback gets a new number. Absent: it was "
        "never in use.",
    )
    used_time: Time | None = Field(default=None, description="Since when new pods have got it, or got it then.")
    source: str | None = Field(default=None, max_length=MAX_SOURCE, description="Readable location of its objects.")


class NodeCounts(ApiModel):
    """Number of nodes by state."""

    desired: int = Field(default=0, description="Number of nodes that should be warm.")
    warm: int = Field(default=0, description="Number of desired nodes that are warm.")
    loading: int = Field(default=0, description="Number of loading nodes.")
    updated: int = Field(
        default=0,
        description="Number of desired nodes that have the newest revision: the one that is rolled out, or else the "
        "one in use.",
    )
    failed: int = Field(default=0, description="Number of nodes whose last load failed.")
    summary: str = Field(
        default="0/0",
        description="warm/desired, for the column of kubectl; without prewarming the number of nodes that are warm.",
    )


class Rollout(ApiModel):
    """A revision that replaces another one, node by node."""

    revision: str = Field(description="The revision that is rolled out.")
    previous: str = Field(description="The revision that it replaces.")
    start_time: Time = Field(description="When it began.")
    max_unavailable: int = Field(
        description="Of the desired nodes that have the previous revision, how many may lack the new one when new pods "
        "get it."
    )
    outdated: int = Field(
        default=0, description="Number of desired nodes that have the previous revision and lack the new one."
    )
    in_use: bool = Field(default=False, description="Whether new pods get the new revision already.")


class LoadProgress(ApiModel):
    """Progress of the slowest loading node."""

    node: str = Field(description="The slowest loading node.")
    percent: int = Field(description="0 to 100; -1: unknown.")
    loaded_bytes: Int64 = Field(default=0, description="Bytes that have been loaded.")
    total_bytes: Int64 = Field(default=0, description="Bytes to load in total.")
    bytes_per_second: Int64 = Field(default=0, description="Current rate in bytes per second.")
    remaining_seconds: Int64 = Field(
        default=-1, description="Estimated seconds until the load is complete; -1: unknown."
    )
    eta: str = Field(default="", description="remainingSeconds as text, such as 2m10s; empty if unknown.")


class Consumers(ApiModel):
    """Pods that use the weights."""

    pods: int = Field(
        default=0, description="Number of pods that were admitted with this model and have not terminated."
    )
    namespaces: int = Field(default=0, description="Number of namespaces of these pods.")
    failing: int = Field(default=0, description="Number of pods whose loader has failed and is not ready since.")


class NodeFailure(ApiModel):
    """The last failure on a node or claim: of a load Job, or of the loader in a pod that uses the model."""

    node: str = Field(description="Name of the node; for a claim: pvc/<name>.")
    reason: str = Field(description="Stable reason in CamelCase; see docs/guides/operations/reasons.md.")
    message: str = Field(default="", description="Readable explanation.")
    attempts: int = Field(default=1, description="Number of attempts since the last success.")
    time: Time = Field(description="Time of the last failure.")
    next_attempt_time: Time | None = Field(
        default=None,
        description="When the load is tried again; a new value of the annotation tonnage.dev/retry starts it at once.",
    )
    pod: str | None = Field(
        default=None, description="The pod whose loader failed, as namespace/name; absent: a load Job failed."
    )


class ModelWeightsStatus(ApiModel):
    """Observed state."""

    observed_generation: Int64 | None = Field(
        default=None, description="Generation of the spec that this status is based on."
    )
    resolved: SeenRevision | None = Field(default=None, description="The revision in use.")
    available: SeenRevision | None = Field(
        default=None, description="A newer revision of the source that is not in use."
    )
    history: tuple[SeenRevision, ...] | None = Field(
        default=None,
        max_length=MAX_HISTORY,
        description="Previously used revisions, newest first, for a rollback with spec.revision.pin. Lists of objects "
        "are left out where they would exceed 192 KiB together; the digest pins such a revision.",
    )
    rollout: Rollout | None = Field(default=None, description="The rollout that is in progress; absent: none is.")
    last_checked_time: Time | None = Field(default=None, description="When the source was last resolved.")
    medium: Medium | None = Field(default=None, description="The medium in effect.")
    source: str | None = Field(default=None, description="Readable location of the objects.")
    size: str | None = Field(default=None, description="Readable size of the revision in use.")
    nodes: NodeCounts | None = Field(default=None, description="Number of nodes by state.")
    progress: LoadProgress | None = Field(default=None, description="Progress of the slowest loading node.")
    progress_summary: str | None = Field(default=None, description="Readable percentage of the progress.")
    consumers: Consumers | None = Field(default=None, description="Pods that use the weights.")
    failures: tuple[NodeFailure, ...] | None = Field(
        default=None,
        max_length=MAX_FAILURES,
        description="Nodes whose last load failed, newest first; at most 10.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node"]},
    )
    verified_by: str | None = Field(
        default=None,
        max_length=VERIFIED_BY_LIMIT,
        description="How many objects were verified by which kind of checksum, when the revision in use was loaded.",
    )
    notes: tuple[Annotated[str, Field(max_length=MAX_NOTE)], ...] | None = Field(
        default=None,
        max_length=MAX_NOTES,
        description="Remarks about the revision in use, such as files left out, or flags that serve its files.",
    )
    conditions: tuple[Condition, ...] | None = Field(
        default=None,
        max_length=16,
        description="Conditions Accepted, Resolved, Progressing, Warm, Ready, Degraded and UpdateAvailable.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class ModelWeightsResource(ApiModel):
    """A model in object storage that pods can request by name."""

    spec: ModelWeightsSpec = Field(description="Desired state.")
    status: ModelWeightsStatus | None = Field(default=None, description="Observed state; written by the controller.")
