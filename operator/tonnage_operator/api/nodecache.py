"""``NodeCache``: the entries of one node. Only the controller writes it."""

from __future__ import annotations

import enum
from typing import NamedTuple

from pydantic import ConfigDict, Field

from tonnage.contract.report import VERIFIED_BY_LIMIT
from tonnage_operator.api.base import ApiModel, Condition, Int64, Time
from tonnage_operator.api.modelweights import Medium, Retention

MAX_MODELS = 1000
"""Maximum number of objects that an entry names."""


MAX_RECORDED_ENTRIES = 1000
"""Maximum number of entries in the record of a node."""


MAX_NAMESPACES = 64
"""Maximum number of namespaces whose usage is listed."""


class EntryState(enum.StrEnum):
    """State of an entry. Partial: not complete, and no loader is at work."""

    READY = "Ready"
    LOADING = "Loading"
    PARTIAL = "Partial"
    EVICTING = "Evicting"


class MediumStatus(ApiModel):
    """Capacity and usage of one medium of the node."""

    name: Medium = Field(description="Memory or Disk.")
    capacity_bytes: Int64 = Field(
        default=0,
        description="Bytes that all entries may have together: the chart's capacity, or the size of the file system if "
        "that is less or no capacity is set; 0: unknown.",
    )
    used_bytes: Int64 = Field(default=0, description="Bytes of the entries, and of what interrupted loads have left.")
    reserved_bytes: Int64 = Field(default=0, description="Bytes that are reserved for loads, in addition to usedBytes.")
    free_bytes: Int64 = Field(
        default=0,
        description="Bytes that new loads can reserve. Without a capacity in the chart: free bytes of the file system, "
        "as last reported by a loader.",
    )
    file_system_bytes: Int64 = Field(
        default=0, description="Size of the file system, as last reported by a loader; 0: unknown."
    )
    pressure: bool = Field(
        default=False,
        description="Usage has passed the high watermark, and not fallen to the low one since: entries that nothing "
        "refers to are evicted.",
    )
    namespaces: tuple[NamespaceUsage, ...] | None = Field(
        default=None,
        max_length=MAX_NAMESPACES,
        description="Bytes of the namespaces that use most, if the chart limits them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class NamespaceUsage(ApiModel):
    """What a namespace uses of one medium of the node."""

    name: str = Field(max_length=63, description="The namespace.")
    used_bytes: Int64 = Field(default=0, description="Bytes of its entries; shared entries count for each namespace.")
    reserved_bytes: Int64 = Field(default=0, description="Bytes that are reserved for its loads.")


class EntryKey(NamedTuple):
    """Identifies an entry on a node."""

    cache_key: str
    """The entry's path below the medium's folder; see ``naming.cache_key``."""
    medium: Medium


class CacheEntry(ApiModel):
    """An entry in the node's cache."""

    # There is one writer, and managed fields for each field of each entry would be large.
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: str = Field(description="Name of the entry; <namespace>/<entry> if caches are not shared between namespaces.")
    medium: Medium = Field(description="Medium that contains the entry.")
    state: EntryState = Field(
        description="Ready, Loading, Partial (room is reserved for a load that has not begun, or a load was "
        "interrupted and the next one resumes it) or Evicting."
    )
    bytes: Int64 = Field(default=0, description="Size in bytes.")
    reserved_bytes: Int64 = Field(default=0, description="Bytes that are reserved for a load, in addition to bytes.")
    ranks: str | None = Field(default=None, description="Ranks in the entry; absent: all.")
    models: tuple[str, ...] = Field(
        default=(), max_length=MAX_MODELS, description="ModelWeights that refer to the entry, as namespace/name."
    )
    retention: Retention = Field(
        default=Retention.WHILE_REFERENCED, description="When the entry is evicted once nothing refers to it."
    )
    last_used_time: Time | None = Field(default=None, description="When a loader last used the entry.")
    verified: str | None = Field(default=None, description="Level at which the bytes were verified.")
    verified_by: str | None = Field(
        default=None,
        max_length=VERIFIED_BY_LIMIT,
        description="How many objects were verified by which kind of checksum; as their loader reported it.",
    )
    revision: str | None = Field(default=None, description="Revision in the entry.")
    served_by: str | None = Field(
        default=None,
        description="The only command that serves the entry, where MODEL stands for its folder; absent: any engine "
        "reads it.",
    )
    image: str | None = Field(
        default=None,
        description="Image of the engine whose artifacts (compiled kernels) are in the entry; absent: it has weights.",
    )

    @property
    def entry_key(self) -> EntryKey:
        return EntryKey(self.name, self.medium)


class NodeCacheStatus(ApiModel):
    """Observed state of the node's cache."""

    boot_id: str | None = Field(
        default=None,
        alias="bootID",
        description="Boot ID of the node. After a reboot, Memory entries are dropped.",
    )
    media: tuple[MediumStatus, ...] | None = Field(
        default=None,
        max_length=4,
        description="Capacity and usage of each medium.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    entries: tuple[CacheEntry, ...] | None = Field(
        default=None,
        max_length=MAX_RECORDED_ENTRIES,
        description="Entries on the node.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "medium"]},
    )
    summary: NodeCacheSummary | None = Field(default=None, description="Totals for the columns of kubectl.")
    conditions: tuple[Condition, ...] | None = Field(
        default=None,
        max_length=8,
        description="Conditions Ready and CapacityPressure, and RecordTruncated while entries are left out.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class NodeCacheSummary(ApiModel):
    """Columns of ``kubectl get nodecaches``."""

    memory_used: str = Field(default="", description="Size of the entries in memory.")
    memory_reserved: str = Field(default="", description="Reserved for loads into memory.")
    memory_free: str = Field(default="", description="What new loads into memory can have.")
    disk_used: str = Field(default="", description="Size of the entries on disk.")
    disk_reserved: str = Field(default="", description="Reserved for loads onto the disk.")
    disk_free: str = Field(default="", description="What new loads onto the disk can have.")
    entries: int = Field(default=0, description="Number of ready entries.")
    loading: int = Field(default=0, description="Number of loading entries.")


class NodeCacheResource(ApiModel):
    """The entries in the cache of one node, which has the same name."""

    status: NodeCacheStatus | None = Field(default=None, description="Observed state; written by the controller.")


MediumStatus.model_rebuild()
NodeCacheStatus.model_rebuild()
NodeCacheResource.model_rebuild()
