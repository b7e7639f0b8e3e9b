"""Settings of the installation, which the administrator controls: host paths, images, defaults."""

from __future__ import annotations

import enum
from typing import Annotated, Final, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from tonnage_operator.api.base import QUANTITY_PATTERN, ApiModel, Duration, Quantity, quantity_to_str
from tonnage_operator.api.modelweights import Medium, ResourceRequirements
from tonnage_operator.api.placement import GateSpec, TaintKey, Toleration
from tonnage_operator.domain import units
from tonnage_operator.domain.signing import SigningKeys


class Sharing(enum.StrEnum):
    """Which namespaces share the entries of a node: those whose store is proven, or none."""

    CLUSTER = "Cluster"
    NAMESPACE = "Namespace"


_FREE_PATTERN: Final = rf"^([1-9]?[0-9]%|{QUANTITY_PATTERN.removeprefix('^').removesuffix('$')})$"


class MediumLimits(NamedTuple):
    """Limits of one medium of a node in bytes; 0: none."""

    capacity: int = 0
    namespace_capacity: int = 0
    max_entry_size: int = 0

    @property
    def largest_entry(self) -> int:
        """Bytes that an entry can have at most; 0: no limit."""
        return min((limit for limit in self if limit), default=0)

    @property
    def needs_reservation(self) -> bool:
        """Whether loads may begin only when room is reserved for them."""
        return bool(self.capacity or self.namespace_capacity)


def _bytes_or_zero(quantity: str | None) -> int:
    return units.parse_quantity(quantity) if quantity else 0


class HostMedium(ApiModel):
    """One medium of the nodes.

    ``reserved`` means that the cache's memory is excluded from the nodes' allocatable memory, so loaders request only
    their overhead. ``min_free`` is what loads must leave free on the folder's file system: bytes, or a percentage of
    its size. The quantities that are absent don't limit anything.
    """

    model_config = ConfigDict(extra="forbid")

    host_path: str = Field(pattern=r"^/[^\s]*[^/\s]$", description="Folder on the nodes.")
    reserved: bool = False
    min_free: Annotated[str, BeforeValidator(quantity_to_str), Field(pattern=_FREE_PATTERN)] = "10%"
    capacity: Quantity | None = Field(default=None, description="Bytes that all entries of a node may have together.")
    namespace_capacity: Quantity | None = Field(
        default=None, description="Bytes that the entries of one namespace may have on a node."
    )
    max_entry_size: Quantity | None = Field(default=None, description="Bytes that one entry may have.")

    @property
    def limits(self) -> MediumLimits:
        """The limits in bytes."""
        return MediumLimits(*map(_bytes_or_zero, (self.capacity, self.namespace_capacity, self.max_entry_size)))

    @property
    def min_free_bytes(self) -> int:
        """Bytes that loads must leave free; 0 if it is a percentage."""
        return 0 if self.min_free.endswith("%") else units.parse_quantity(self.min_free)

    @property
    def min_free_percent(self) -> int:
        """Percentage of the file system that loads must leave free; 0 if it is a number of bytes."""
        return int(self.min_free[:-1]) if self.min_free.endswith("%") else 0


class ReportSettings(ApiModel):
    """Where loaders send reports, and how often."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="", description="URL of the controller's /v1/reports; empty: no reports.")
    ca_pem: str = Field(default="", description="PEM of the CA that signs the endpoint's certificate; copied to pods.")
    ca_file: str = Field(default="", description="File that contains that PEM; reloaded when it changes.")
    token_seconds: int = Field(default=3600, ge=600)
    interval: float = Field(default=2.0, gt=0, description="Seconds between progress reports.")


class EnvVar(ApiModel):
    """A variable of all loaders, for example of an egress proxy."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    value: str = ""


class PrewarmSettings(ApiModel):
    """Which nodes objects may have warmed."""

    model_config = ConfigDict(extra="forbid")

    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that nodes must have.")
    allowed_taints: tuple[str, ...] = Field(
        default=("*",),
        description="Keys of taints that objects may tolerate. A * at the end stands for any text, and alone for all "
        "keys but those of Kubernetes itself, such as those of control-plane nodes.",
    )

    def allows_taint(self, key: str) -> bool:
        """Returns whether objects may tolerate taints with this key."""
        of_kubernetes = key.partition("/")[0].endswith("kubernetes.io") and "/" in key
        return any(
            not of_kubernetes if each == "*" else key.startswith(each[:-1]) if each.endswith("*") else key == each
            for each in self.allowed_taints
        )


class GateMode(enum.StrEnum):
    """How the gate opens a node for pods: by removing the taint, or in a condition of the node."""

    TAINT = "Taint"
    CONDITION = "Condition"


class GateSettings(ApiModel):
    """Startup taints that keep pods from new nodes until models are warm there (``spec.placement.gate``)."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = False
    mode: GateMode = GateMode.TAINT
    taints: tuple[TaintKey, ...] = Field(default=("tonnage.dev/not-warm",), max_length=32, description="Their keys.")
    other_startup_taints: tuple[str, ...] = Field(
        default=("node.cilium.io/agent-not-ready",),
        description="Keys of taints that other programs remove from new nodes. A * at the end stands for any text.",
    )
    max_timeout: Duration = Field(default="30m", description="What the timeout of an object can be at most.")

    @property
    def max_seconds(self) -> float:
        """The longest time that a node may be kept from pods, in seconds."""
        return units.parse_duration(self.max_timeout)

    def taints_of(self, gate: GateSpec | None) -> frozenset[str]:
        """Returns the keys of the startup taints that wait for an object with this gate; none without a gate."""
        if gate is None or not self.enabled:
            return frozenset()
        return frozenset(self.taints if gate.taints is None else set(gate.taints) & set(self.taints))

    def is_temporary(self, key: str) -> bool:
        """Returns whether a taint leaves a new node by itself: Kubernetes', an autoscaler's, or another startup taint.

        Others stay, so a model whose Jobs don't tolerate one will never be warm there.
        """
        others = (each[:-1] if each.endswith("*") else None for each in self.other_startup_taints)
        return (
            key in self.taints
            or key in self.other_startup_taints
            or key.startswith(_TEMPORARY_TAINTS)
            or any(prefix is not None and key.startswith(prefix) for prefix in others)
        )


_TEMPORARY_TAINTS: Final = (
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
    "karpenter.sh/unregistered",
)


class ArtifactsSettings(ApiModel):
    """Directories for what engines compile (``tonnage.dev/artifacts``), and when they are emptied."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    max_bytes: Quantity = Field(default="10Gi", description="Bytes of one directory above which it is emptied.")
    max_node_bytes: Quantity = Field(
        default="50Gi",
        description="Bytes of all directories of a node above which the oldest are emptied.",
    )
    max_age: Duration = Field(default="168h", description="Time after the last use.")


class JobSettings(ApiModel):
    """What all Jobs of the operator have in addition, as the cluster's rules may require."""

    model_config = ConfigDict(extra="forbid")

    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict, description="Of the Jobs' pods, too.")
    tolerations: tuple[Toleration, ...] = ()
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Of Jobs that may run on any node: those that resolve, or load into a claim."
    )


class LoaderImage(ApiModel):
    """Image, user and default resources of loaders."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1)
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    uid: int = Field(default=0, ge=0, description="User ID for writing to host paths, which root usually owns.")
    unprivileged_uid: int = Field(default=65532, ge=1, description="User ID of loaders without a host path.")
    memory_overhead: Quantity = "512Mi"
    resources: ResourceRequirements = ResourceRequirements(requests={"cpu": "1", "memory": "512Mi"})
    env: tuple[EnvVar, ...] = ()
    ca_bundle: str = Field(
        default="",
        max_length=64 << 10,
        description="PEM of CAs that loaders trust beside those of their image, for sources without a caBundle.",
    )
    se_linux_options: dict[str, str] = Field(
        default_factory=dict, description="SELinux context of loaders and cleanup Jobs with a host path."
    )


class PeerNetwork(enum.StrEnum):
    """How the peers are reached: by the pod's address, by a port of the node, or as part of the node's network."""

    POD = "Pod"
    HOST_PORT = "HostPort"
    HOST_NETWORK = "HostNetwork"


class PeerSettings(ApiModel):
    """The peers, which serve entries of their node to loaders of other nodes."""

    model_config = ConfigDict(extra="forbid")

    secret: str = Field(default="", description="Name of their Secret in the operator's namespace; empty: no peers.")
    port: int = Field(default=9443, ge=1, le=65535)
    network: PeerNetwork = PeerNetwork.POD


class Installation(ApiModel):
    """All settings. Parsed from a YAML file that the chart renders."""

    model_config = ConfigDict(extra="forbid")

    namespace: str = "tonnage-system"
    media: dict[Medium, HostMedium] = Field(default_factory=dict)
    default_medium: Medium = Medium.MEMORY
    high_watermark_percent: int = Field(
        default=90, ge=1, le=100, description="Usage of a capacity above which unneeded entries are evicted."
    )
    low_watermark_percent: int = Field(default=80, ge=0, le=100, description="Usage down to which they are evicted.")
    sharing: Sharing = Sharing.NAMESPACE
    loader: LoaderImage
    jobs: JobSettings = JobSettings()
    prewarm: PrewarmSettings = PrewarmSettings()
    gate: GateSettings = GateSettings()
    artifacts: ArtifactsSettings = ArtifactsSettings()
    reports: ReportSettings = ReportSettings()
    peers: PeerSettings = PeerSettings()
    job_service_account: str = Field(
        default="default", description="ServiceAccount of Jobs of objects that don't name one."
    )
    cleanup_service_account: str = Field(
        default="default", description="ServiceAccount of cleanup Jobs in the operator's namespace."
    )
    cleanup_tolerate_all: bool = True
    signing_folder: str = Field(
        default="",
        description="Folder with the signing key in the file current, and the one before it in previous. A relative "
        "path starts at the folder of this file.",
    )
    signing: SigningKeys = Field(default=SigningKeys(), exclude=True, repr=False, description="The keys in it.")
    review_token: bool = Field(
        default=False,
        description="Whether paths of admission reviews must end with a token that is made from a signing key.",
    )
    retry_base: float = Field(
        default=10.0, gt=0, description="Seconds before the first retry; doubles with each retry."
    )
    retry_cap: float = Field(default=300.0, gt=0, description="Maximum seconds before a retry.")

    def limits(self, medium: Medium) -> MediumLimits:
        """Returns the limits of a medium on a node."""
        host = self.media.get(medium)
        return host.limits if host else MediumLimits()

    @property
    def has_peers(self) -> bool:
        """Whether nodes serve entries to each other. Loaders learn about peers by answers to their reports."""
        return bool(self.peers.secret and self.reports.url)

    @property
    def peer_server_name(self) -> str:
        """The name in the certificate of all peers."""
        return f"tonnage-peers.{self.namespace}.svc"

    def with_report_ca(self, ca_pem: str) -> Installation:
        """Returns a copy with another CA certificate for the report endpoint."""
        return self.model_copy(update={"reports": self.reports.model_copy(update={"ca_pem": ca_pem})})

    @model_validator(mode="after")
    def _check_watermarks(self) -> Installation:
        if self.low_watermark_percent > self.high_watermark_percent:
            raise ValueError("lowWatermarkPercent is above highWatermarkPercent")
        return self

    @model_validator(mode="after")
    def _check_default_medium(self) -> Installation:
        if self.media and self.default_medium not in self.media:
            raise ValueError(f"defaultMedium {self.default_medium.value} is not among media")
        return self
