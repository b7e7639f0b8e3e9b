"""``ModelWeights``: the spec that a person writes. The status is in ``status``."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import ApiModel, DnsName, Duration, LabelSelector, Quantity, validation_rules
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
]

MAX_RANKS = 4096
"""Ranks of one model at most. All of them fit into a plan, which has to fit into an environment variable."""

Glob = Annotated[str, Field(min_length=1, max_length=256)]


class Ranks(ApiModel):
    """How the objects of a rank-sharded model are named."""

    pattern: str = Field(
        default="model-rank-%03d.tensors",
        max_length=256,
        pattern=r"^[^%]*%(0[1-9])?d[^%]*$",
        description="Name of a rank's object, with one printf field (%d or %03d) for the rank.",
    )
    count: int | None = Field(
        default=None, ge=1, le=MAX_RANKS, description="How many ranks there must be; absent: as many as are there."
    )


class FilesSpec(ApiModel):
    """Which objects of the source count. Shell patterns, matched against the whole key and against its last part."""

    tensors: tuple[Glob, ...] = Field(
        default=("*.tensors",), min_length=1, max_length=100, description="Objects that hold tensors."
    )
    companions: tuple[Glob, ...] = Field(
        default=("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"),
        max_length=100,
        description="Small objects that engines read beside the tensors: configuration, tokenizer, templates.",
    )
    exclude: tuple[Glob, ...] = Field(default=(), max_length=100, description="Objects that are left out in any case.")
    ranks: Ranks | None = Field(default=None, description="Given when the model is sharded by rank.")


class RevisionPolicy(enum.StrEnum):
    """How often the source is looked at."""

    PINNED = "Pinned"
    TRACK = "Track"


class UpdatePolicy(enum.StrEnum):
    """What happens when the source has something new."""

    MANUAL = "Manual"
    AUTOMATIC = "Automatic"


class RevisionSpec(ApiModel):
    """Which version of the objects is used."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.policy == 'Track' || self.update != 'Automatic'",
                "update: Automatic needs policy: Track, which looks for new revisions",
            ),
            (
                "!has(self.pin) || self.update != 'Automatic'",
                "pin holds one revision and update: Automatic leaves it: give one of the two",
            ),
            (
                "!has(self.expectedDigest) || self.update != 'Automatic'",
                "expectedDigest admits one revision and update: Automatic leaves it: give one of the two",
            ),
            ("duration(self.interval) >= duration('1m')", "interval must be at least 1m"),
        )
    )

    policy: RevisionPolicy = Field(
        default=RevisionPolicy.PINNED,
        description="Pinned: resolve once for each change of source or files. Track: look again every interval.",
    )
    interval: Duration = Field(default="1h", description="With Track: time between two looks, at least 1m.")
    update: UpdatePolicy = Field(
        default=UpdatePolicy.MANUAL,
        description="With Track: Manual shows UpdateAvailable and waits for pin; Automatic warms the new "
        "revision beside "
        "the old one and moves on.",
    )
    pin: str | None = Field(
        default=None,
        pattern=r"^r-[0-9a-f]{12}$",
        description="Use this revision, one of those seen (status.resolved, status.available, status.history).",
    )
    expected_digest: str | None = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="Digest that the resolved object list must have; anything else is refused.",
    )


class Verify(enum.StrEnum):
    """How far the bytes are checked."""

    CRC32 = "CRC32"
    SHA256 = "SHA256"
    SIZE = "Size"
    NONE = "None"


class Medium(enum.StrEnum):
    """What kind of memory holds the cache."""

    MEMORY = "Memory"
    DISK = "Disk"


class Layout(enum.StrEnum):
    """In which form the cache holds the tensors."""

    SAFETENSORS = "Safetensors"
    TENSORIZER = "Tensorizer"


class Delivery(enum.StrEnum):
    """By which kind of volume a pod gets the weights."""

    HOST_PATH = "HostPath"
    CLAIM = "PersistentVolumeClaim"
    EMPTY_DIR = "EmptyDir"


class Retention(enum.StrEnum):
    """How long an entry stays that nobody references."""

    WHILE_REFERENCED = "WhileReferenced"
    EVICTABLE = "Evictable"


class CacheSpec(ApiModel):
    """Where and how the weights lie on a node."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.delivery == 'PersistentVolumeClaim' ? has(self.claimName) : !has(self.claimName)",
                "claimName is given with delivery: PersistentVolumeClaim, and only with it",
            ),
            (
                "self.delivery != 'PersistentVolumeClaim' || !has(self.medium) || self.medium == 'Disk'",
                "a PersistentVolumeClaim is not memory: leave medium out or give Disk",
            ),
        )
    )

    medium: Medium | None = Field(
        default=None,
        description="Memory (shared memory of the node) or Disk (NVMe); absent: the installation's default.",
    )
    layout: Layout = Field(
        default=Layout.SAFETENSORS,
        description="Safetensors: files that any engine reads. Tensorizer: the .tensors objects byte for byte; "
        "the only one "
        "for encrypted files.",
    )
    delivery: Delivery = Field(
        default=Delivery.HOST_PATH,
        description="HostPath: shared by the node's pods. PersistentVolumeClaim: in a claim of the namespace. "
        "EmptyDir: each "
        "pod's own copy, for namespaces that forbid the others.",
    )
    claim_name: DnsName | None = Field(
        default=None, description="With PersistentVolumeClaim: name of the claim, in the namespace of the pod."
    )
    retention: Retention = Field(
        default=Retention.WHILE_REFERENCED,
        description="WhileReferenced: emptied as soon as no object and no pod refers to it. Evictable: kept "
        "until its room is "
        "needed.",
    )


class LoaderForm(enum.StrEnum):
    """As what the loader is injected."""

    SIDECAR = "Sidecar"
    INIT = "Init"


class ResourceRequirements(ApiModel):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] | None = Field(default=None, description="What is set aside for the loader.")
    limits: dict[str, Quantity] | None = Field(
        default=None,
        description="What the loader may take at most. A memory limit below what it writes into Memory is raised "
        "to that.",
    )


_PART_SIZE_RULE = (
    "!has(self.partSize) || (type(self.partSize) == int "
    "? self.partSize >= 1048576 && self.partSize <= 1073741824 "
    ": quantity(self.partSize).compareTo(quantity('1Mi')) >= 0 "
    "&& quantity(self.partSize).compareTo(quantity('1Gi')) <= 0)"
)


class LoaderSettings(ApiModel):
    """How the loader runs."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            ("duration(self.timeout) >= duration('10s')", "timeout must be at least 10s"),
            (
                _PART_SIZE_RULE,
                "partSize must be between 1Mi and 1Gi",
            ),
        )
    )

    form: LoaderForm = Field(
        default=LoaderForm.SIDECAR,
        description="Sidecar: stays beside the pod and shows that the entry is in use. Init: loads and ends.",
    )
    resources: ResourceRequirements | None = Field(
        default=None,
        description="Requests and limits of the loader; absent: the installation's, plus what Memory needs.",
    )
    connections: int | None = Field(
        default=None, ge=1, le=1024, description="Connections to the source at once; absent: chosen by the loader."
    )
    part_size: Quantity | None = Field(
        default=None, description="Bytes of one request, 1Mi to 1Gi; absent: chosen by the loader (about 16Mi)."
    )
    bandwidth_limit: Quantity | None = Field(
        default=None, description="Bytes a second that one loader takes at most; absent: no limit."
    )
    timeout: Duration = Field(
        default="1h", description="After this long, a load fails and is tried again; at least 10s."
    )


class FromNamespaces(enum.StrEnum):
    """Which namespaces' pods may use the model."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class AllowedNamespaces(ApiModel):
    """Namespaces whose pods may name this object."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.from == 'Selector' ? has(self.selector) : !has(self.selector)",
                "selector is given with from: Selector, and only with it",
            )
        )
    )

    from_: FromNamespaces = Field(
        default=FromNamespaces.SAME,
        alias="from",
        description="Same: this namespace. All: every one. Selector: those whose labels match, and this one.",
    )
    selector: LabelSelector | None = Field(default=None, description="With Selector: labels of the namespaces.")


class AccessSpec(ApiModel):
    """Who may use the model."""

    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces(),
        description="Namespaces whose pods may ask for it as namespace/name. Each pod still reads the source "
        "with its own "
        "credentials.",
    )


class ModelWeightsSpec(ApiModel):
    """What a person wants."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.cache.delivery != 'EmptyDir' || self.placement.prewarm == 'None'",
                "an EmptyDir is one pod's own, so there is nothing to prewarm: use prewarm: None",
            ),
            (
                "self.cache.delivery == 'HostPath' || self.placement.scheduling != 'Require'",
                "scheduling: Require needs delivery: HostPath, since only that makes nodes warm",
            ),
            (
                "!has(self.source.http) || !has(self.credentials) || has(self.credentials.anonymous)",
                "an http source takes no credentials: presigned URLs come from source.http.urlsFrom",
            ),
        )
    )

    source: ModelSource = Field(description="Where the model's objects are. The only field that must be given.")
    credentials: Credentials | None = Field(
        default=None,
        description="With which identity they are read; absent: the ambient one of the pod that loads.",
    )
    files: FilesSpec = Field(default=FilesSpec(), description="Which objects count, and as what.")
    revision: RevisionSpec = Field(default=RevisionSpec(), description="Which version of the objects is used.")
    verify: Verify = Field(
        default=Verify.CRC32,
        description="How far bytes are checked while they arrive: CRC32 and SHA256 against the hashes in the "
        "file, Size, None.",
    )
    cache: CacheSpec = Field(default=CacheSpec(), description="Where and how the weights lie on a node.")
    placement: PlacementSpec = Field(
        default=PlacementSpec(), description="Which nodes are warmed, and how pods are steered."
    )
    loader: LoaderSettings = Field(default=LoaderSettings(), description="How the loader runs.")
    access: AccessSpec = Field(default=AccessSpec(), description="Who may use the model.")
    suspend: bool = Field(
        default=False, description="Start nothing new, keep what is there; pods of users are still served."
    )
