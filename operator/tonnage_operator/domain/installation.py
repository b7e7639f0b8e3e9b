"""What the administrator decided: host paths, images, defaults. Users never name any of it."""

from __future__ import annotations

import enum

from pydantic import ConfigDict, Field, model_validator

from tonnage_operator.api.base import ApiModel, Quantity
from tonnage_operator.api.modelweights import Medium, ResourceRequirements


class Sharing(enum.StrEnum):
    """Between whom the entries of a node are shared."""

    CLUSTER = "Cluster"
    NAMESPACE = "Namespace"


class HostMedium(ApiModel):
    """One medium of the nodes.

    ``reserved`` says that the administrator keeps the cache's memory outside of the nodes' allocatable memory, so that
    loaders request their overhead alone. ``min_free`` are bytes of the folder's file system that loads leave alone.
    """

    model_config = ConfigDict(extra="forbid")

    host_path: str = Field(pattern=r"^/[^\s]*[^/\s]$", description="Folder on the nodes.")
    reserved: bool = False
    min_free: Quantity = "0"


class ReportSettings(ApiModel):
    """Where and how often loaders report."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="", description="URL of the controller's /v1/reports; empty: no reports.")
    ca_pem: str = Field(default="", description="PEM of the CA that signs the endpoint's certificate; goes into pods.")
    ca_file: str = Field(default="", description="File with that PEM, which is read again when it changes.")
    token_seconds: int = Field(default=3600, ge=600)
    interval: float = Field(default=2.0, gt=0, description="Seconds between two reports of progress.")


class LoaderImage(ApiModel):
    """The loader's container."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1)
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    uid: int = Field(default=0, ge=0, description="User that writes to host paths, which belong to root as a rule.")
    unprivileged_uid: int = Field(default=65532, ge=1, description="User where no host path is involved.")
    memory_overhead: Quantity = "512Mi"
    resources: ResourceRequirements = ResourceRequirements(requests={"cpu": "1", "memory": "512Mi"})


class Installation(ApiModel):
    """All of it. Read from a YAML file that the chart renders."""

    model_config = ConfigDict(extra="forbid")

    namespace: str = "tonnage-system"
    media: dict[Medium, HostMedium] = Field(default_factory=dict)
    default_medium: Medium = Medium.MEMORY
    sharing: Sharing = Sharing.CLUSTER
    loader: LoaderImage
    reports: ReportSettings = ReportSettings()
    job_service_account: str = Field(default="default", description="Identity of Jobs where the object names none.")
    cleanup_service_account: str = Field(default="default", description="Identity of cleanup Jobs, in our namespace.")
    cleanup_tolerate_all: bool = True
    retry_base: float = Field(default=10.0, gt=0, description="Seconds before the first retry; doubles each time.")
    retry_cap: float = Field(default=300.0, gt=0, description="Seconds that a retry waits at most.")

    def with_report_ca(self, ca_pem: str) -> Installation:
        """Returns the same with another CA of the report endpoint."""
        return self.model_copy(update={"reports": self.reports.model_copy(update={"ca_pem": ca_pem})})

    @model_validator(mode="after")
    def _check_default_medium(self) -> Installation:
        if self.media and self.default_medium not in self.media:
            raise ValueError(f"defaultMedium {self.default_medium.value} is not among media")
        return self
