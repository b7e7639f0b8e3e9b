"""The spec of ``ModelWeights``. Its status is in ``status``."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import (
    ApiModel,
    DnsName,
    Duration,
    IntOrPercent,
    LabelSelector,
    Quantity,
    sentence,
    validation_rules,
)
from tonnage_operator.api.placement import PlacementSpec, PrewarmMode, Scheduling
from tonnage_operator.api.source import Credentials, ModelSource

__all__ = [
    "AccessSpec",
    "CacheSpec",
    "Delivery",
    "FilesSpec",
    "LoaderForm",
    "LoaderSettings",
    "Medium",
    "ModelWeightsSpec",
    "PrewarmMode",
    "Retention",
    "RevisionPolicy",
    "RevisionSpec",
    "Scheduling",
    "UpdatePolicy",
    "Verify",
    "Weights",
]

MAX_RANKS = 4096
"""Maximum number of ranks of a model. A list of all of them fits into a plan, whose size is limited."""

Glob = Annotated[str, Field(min_length=1, max_length=256)]


class Ranks(ApiModel):
    """How the objects of a rank-sharded model are named."""

    pattern: str = Field(
        default="model-rank-%03d.tensors",
        max_length=256,
        pattern=r"^[^%]*%(0[1-9])?d[^%]*$",
        json_schema_extra=sentence("pattern has exactly one field for the rank, such as %d or %03d"),
        description="Name of a rank's object, with one printf field (%d or %03d) for the rank. With the default, "
        "safetensors files are named model-rank-%d-part-*.safetensors; there, * stands for any text.",
    )
    count: int | None = Field(
        default=None, ge=1, le=MAX_RANKS, description="Expected number of ranks; absent: all ranks that exist."
    )


class Weights(enum.StrEnum):
    """Which files of the source are the weights."""

    AUTO = "Auto"
    TENSORIZER = "Tensorizer"
    SAFETENSORS = "Safetensors"


class FilesSpec(ApiModel):
    """Which objects of the source are used. Shell patterns, matched against the whole key and its last part."""

    weights: Weights = Field(
        default=Weights.AUTO,
        description="Which objects are the weights. Tensorizer: .tensors files. Safetensors: .safetensors files, as "
        "their index lists them. Auto: .tensors files; where none match, .safetensors files.",
    )
    tensors: tuple[Glob, ...] = Field(
        default=("*.tensors",),
        min_length=1,
        max_length=100,
        description="Objects that contain tensors. A pattern that ends in .tensors or .safetensors selects only files "
        "of that kind. With the default, all .safetensors files match where they are the weights.",
    )
    companions: tuple[Glob, ...] = Field(
        default=("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"),
        max_length=100,
        description="Small objects that engines need besides the tensors: configuration, tokenizer, templates.",
    )
    exclude: tuple[Glob, ...] = Field(
        default=(), max_length=100, description="Objects to exclude, even if another pattern matches."
    )
    ranks: Ranks | None = Field(default=None, description="Set if the model is sharded by rank.")


class RevisionPolicy(enum.StrEnum):
    """When the source is resolved."""

    PINNED = "Pinned"
    TRACK = "Track"


class UpdatePolicy(enum.StrEnum):
    """What happens if the source has a newer revision."""

    MANUAL = "Manual"
    AUTOMATIC = "Automatic"


class RolloutSpec(ApiModel):
    """How a revision replaces the one in use on nodes that are warmed."""

    max_unavailable: IntOrPercent = Field(
        default="0",
        description="How many of the desired nodes that have the revision in use may lack the new one when new pods "
        "get it: a number, or a percentage, rounded down. 0: all of them have it first. 100%: new pods get it at once.",
    )


class RevisionSpec(ApiModel):
    """Which revision of the source is used."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.policy == 'Track' || self.update != 'Automatic'",
                "update: Automatic requires policy: Track, which looks for new revisions",
            ),
            (
                "!has(self.pin) || self.update != 'Automatic'",
                "pin selects a fixed revision, so it can't be combined with update: Automatic",
            ),
            (
                "!has(self.expectedDigest) || self.update != 'Automatic'",
                "expectedDigest allows one revision, so it can't be combined with update: Automatic",
            ),
            ("duration(self.interval) >= duration('1m')", "interval must be at least 1m"),
        )
    )

    policy: RevisionPolicy = Field(
        default=RevisionPolicy.PINNED,
        description="Pinned: resolve once after each change of source or files. Track: resolve again at each interval.",
    )
    interval: Duration = Field(default="1h", description="With Track: time between two resolves; at least 1m.")
    update: UpdatePolicy = Field(
        default=UpdatePolicy.MANUAL,
        description="With Track: Manual sets the condition UpdateAvailable and waits for pin. Automatic loads the new "
        "revision and then uses it.",
    )
    pin: str | None = Field(
        default=None,
        pattern=r"^r-[0-9a-f]{12}([0-9a-f]{20})?$",
        json_schema_extra=sentence("pin is a revision of this object's status, such as r-3f9c2a71b0de"),
        description="Use this revision from status.resolved, status.available or status.history.",
    )
    expected_digest: str | None = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        json_schema_extra=sentence("expectedDigest is sha256: and 64 hex digits, as `tonnage resolve` prints it"),
        description="Digest that the revision must have; others are rejected.",
    )
    rollout: RolloutSpec = Field(
        default=RolloutSpec(), description="How a new revision replaces the one in use on the nodes that are warmed."
    )


class Verify(enum.StrEnum):
    """Level at which the bytes are verified."""

    BEST = "Best"
    CRC32 = "CRC32"
    SHA256 = "SHA256"
    SIZE = "Size"
    NONE = "None"


class Medium(enum.StrEnum):
    """Kind of storage that contains the cache."""

    MEMORY = "Memory"
    DISK = "Disk"


class Layout(enum.StrEnum):
    """Format of the tensor files in the cache."""

    SAFETENSORS = "Safetensors"
    TENSORIZER = "Tensorizer"


class ComputedBuffers(enum.StrEnum):
    """Where the Safetensors layout has buffers that engines compute themselves."""

    SEPARATE = "Separate"
    IN_SHARDS = "InShards"


class Delivery(enum.StrEnum):
    """Kind of volume that provides the weights to pods."""

    HOST_PATH = "HostPath"
    CLAIM = "PersistentVolumeClaim"
    EMPTY_DIR = "EmptyDir"


class Retention(enum.StrEnum):
    """How long an unreferenced entry is kept."""

    WHILE_REFERENCED = "WhileReferenced"
    EVICTABLE = "Evictable"


class CacheSpec(ApiModel):
    """Where and how the weights are cached."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.delivery == 'PersistentVolumeClaim' ? has(self.claimName) : !has(self.claimName)",
                "claimName is required with delivery: PersistentVolumeClaim and forbidden otherwise",
            ),
            (
                "self.delivery != 'PersistentVolumeClaim' || !has(self.medium) || self.medium == 'Disk'",
                "a PersistentVolumeClaim is not memory: remove medium or set it to Disk",
            ),
        )
    )

    medium: Medium | None = Field(
        default=None,
        description="Memory (tmpfs on the node) or Disk (NVMe); absent: the installation's default.",
    )
    layout: Layout = Field(
        default=Layout.SAFETENSORS,
        description="Safetensors: files that all engines can read; .safetensors objects stay as they are. Tensorizer: "
        "copies of the .tensors objects; required for encrypted files.",
    )
    computed_buffers: ComputedBuffers = Field(
        default=ComputedBuffers.SEPARATE,
        description="Where the Safetensors layout has buffers that engines compute themselves, such as rotary "
        "frequencies. Separate: in a file that engines don't list. InShards: with all other tensors.",
    )
    delivery: Delivery = Field(
        default=Delivery.HOST_PATH,
        description="HostPath: shared by all pods on the node. PersistentVolumeClaim: in a claim in the "
        "namespace. EmptyDir: a copy for each pod, for namespaces that forbid the others.",
    )
    claim_name: DnsName | None = Field(
        default=None, description="With PersistentVolumeClaim: name of the claim, in the namespace of the pod."
    )
    retention: Retention = Field(
        default=Retention.WHILE_REFERENCED,
        description="WhileReferenced: evicted as soon as no object and no pod refers to the entry. Evictable: "
        "kept until the space is needed.",
    )


class LoaderForm(enum.StrEnum):
    """Kind of container that the loader is injected as."""

    SIDECAR = "Sidecar"
    INIT = "Init"


_REQUEST_RULE = (
    "!has(self.requests) || !has(self.limits) || ['cpu', 'memory', 'ephemeral-storage'].all(name, "
    "!(name in self.requests) || !(name in self.limits) || "
    "!isQuantity(string(self.requests[name])) || !isQuantity(string(self.limits[name])) || "
    "quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)"
)


class ResourceRequirements(ApiModel):
    """Resource requests and limits of a container."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                _REQUEST_RULE,
                "a request is at most the limit of the same resource",
            )
        )
    )

    requests: dict[str, Quantity] | None = Field(
        default=None, max_length=16, description="Resource requests of the loader."
    )
    limits: dict[str, Quantity] | None = Field(
        default=None,
        max_length=16,
        description="Resource limits of the loader. A memory limit that is too low for the bytes that it writes to "
        "Memory is raised.",
    )


_PART_SIZE_RULE = (
    "!has(self.partSize) || (type(self.partSize) == int "
    "? self.partSize >= 1048576 && self.partSize <= 1073741824 "
    ": !isQuantity(self.partSize) || quantity(self.partSize).compareTo(quantity('1Mi')) >= 0 "
    "&& quantity(self.partSize).compareTo(quantity('1Gi')) <= 0)"
)


_BANDWIDTH_RULE = (
    "!has(self.bandwidthLimit) || !isQuantity(string(self.bandwidthLimit)) || "
    "quantity(string(self.bandwidthLimit)).compareTo(quantity('1Ki')) >= 0"
)


class LoaderSettings(ApiModel):
    """Settings of the loader."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            ("duration(self.timeout) >= duration('10s')", "timeout must be at least 10s"),
            (
                _PART_SIZE_RULE,
                "partSize must be between 1Mi and 1Gi",
            ),
            (
                _BANDWIDTH_RULE,
                "bandwidthLimit must be at least 1Ki; remove it for no limit",
            ),
        )
    )

    form: LoaderForm = Field(
        default=LoaderForm.SIDECAR,
        description="Sidecar: the loader ends, and a holder marks the entry as in use while the pod runs. Init: no "
        "holder, for pods that should have no second container.",
    )
    resources: ResourceRequirements | None = Field(
        default=None,
        description="Requests and limits of the loader; absent: the installation's, plus the size of an entry in "
        "Memory.",
    )
    connections: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Maximum number of connections to the source; absent: the loader chooses.",
    )
    part_size: Quantity | None = Field(
        default=None, description="Size of one request, 1Mi to 1Gi; absent: the loader chooses (about 16Mi)."
    )
    bandwidth_limit: Quantity | None = Field(
        default=None, description="Maximum bytes per second of one loader, at least 1Ki; absent: no limit."
    )
    timeout: Duration = Field(default="1h", description="Time after which a load fails and is retried; at least 10s.")


class FromNamespaces(enum.StrEnum):
    """Which namespaces' pods may use the model."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class AllowedNamespaces(ApiModel):
    """Namespaces whose pods may use this object."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.from == 'Selector' ? has(self.selector) : !has(self.selector)",
                "selector is required with from: Selector and forbidden otherwise",
            )
        )
    )

    from_: FromNamespaces = Field(
        default=FromNamespaces.SAME,
        alias="from",
        description="Same: this namespace. All: all namespaces. Selector: this one, and those whose labels match.",
    )
    selector: LabelSelector | None = Field(default=None, description="With Selector: label selector for namespaces.")


class AccessSpec(ApiModel):
    """Access from other namespaces."""

    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces(),
        description="Namespaces whose pods may request the model as namespace/name. Each pod still reads the source "
        "with its own credentials.",
    )


class ModelWeightsSpec(ApiModel):
    """Desired state."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.cache.delivery != 'EmptyDir' || self.placement.prewarm == 'None'",
                "an EmptyDir belongs to one pod and can't be prewarmed: use prewarm: None",
            ),
            (
                "self.cache.delivery == 'HostPath' || self.placement.scheduling != 'Require'",
                "scheduling: Require requires delivery: HostPath, because only that makes nodes warm",
            ),
            (
                "self.cache.delivery == 'HostPath' || !has(self.placement.gate)",
                "placement.gate requires delivery: HostPath, because only that makes nodes warm",
            ),
            (
                "!has(self.source.http) || !has(self.credentials) || has(self.credentials.anonymous)",
                "an http source has no credentials: use source.http.urlsFrom for presigned URLs",
            ),
            (
                "self.files.weights != 'Safetensors' || self.cache.layout != 'Tensorizer'",
                "layout: Tensorizer has copies of .tensors files only; safetensors files need layout: Safetensors",
            ),
        )
    )

    source: ModelSource = Field(description="Location of the model's objects. The only required field.")
    credentials: Credentials | None = Field(
        default=None,
        description="Identity for reading the source; absent: the ambient identity of the loader's pod.",
    )
    files: FilesSpec = Field(default=FilesSpec(), description="Which objects of the source are used, and how.")
    revision: RevisionSpec = Field(default=RevisionSpec(), description="Which revision of the source is used.")
    verify: Verify = Field(
        default=Verify.BEST,
        description="How bytes are verified during a load: Best, by the best checksum that the files or their store "
        "have; CRC32, which refuses safetensors files without any checksum; SHA256 likewise; Size, or None.",
    )
    verify_on_hit: bool = Field(
        default=False,
        description="Loaders verify what is already on the node with SHA-256 hashes that they read from the source "
        "with their own identity, and load it again if it is not what the source has. Bytes without a SHA-256 are read "
        "from the source again. For caches that others may write to.",
    )
    cache: CacheSpec = Field(default=CacheSpec(), description="Where and how the weights are cached.")
    placement: PlacementSpec = Field(
        default=PlacementSpec(), description="Which nodes are warmed, and whether pods prefer or require them."
    )
    loader: LoaderSettings = Field(default=LoaderSettings(), description="Settings of the loader.")
    access: AccessSpec = Field(default=AccessSpec(), description="Access from other namespaces.")
    suspend: bool = Field(
        default=False, description="Start no new Jobs and keep existing entries. Pods are still injected."
    )
