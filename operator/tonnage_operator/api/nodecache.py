"""``NodeCache``: what lies on one node, written by the controller alone."""

from __future__ import annotations

import enum
from typing import NamedTuple

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import ApiModel, Condition, Int64, Time
from tonnage_operator.api.modelweights import Medium, Retention

MAX_MODELS = 1000
"""Objects that an entry names at most."""


class EntryState(enum.StrEnum):
    """What an entry is fit for. Partial: a load ended early, and the next one resumes it."""

    READY = "Ready"
    LOADING = "Loading"
    PARTIAL = "Partial"
    EVICTING = "Evicting"


class MediumStatus(ApiModel):
    """Room of one medium of the node."""

    name: Medium = Field(description="Memory or Disk.")
    capacity_bytes: Int64 = Field(default=0, description="Size of the medium, as a loader last reported it; 0 unknown.")
    used_bytes: Int64 = Field(default=0, description="Bytes of the entries below.")
    free_bytes: Int64 = Field(default=0, description="Free bytes, as a loader last reported them.")


class EntryKey(NamedTuple):
    """Identifies an entry on a node."""

    cache_key: str
    """The entry's path below the medium's folder; see ``naming.cache_key``."""
    medium: Medium


class CacheEntry(ApiModel):
    """One revision in the cache of the node."""

    # One writer, so no field of it needs an owner of its own: a hundred entries would have a thousand of them.
    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: str = Field(description="The entry; <namespace>/<entry> where caches are not shared between namespaces.")
    medium: Medium = Field(description="Where it lies.")
    state: EntryState = Field(
        description="Ready, Loading, Partial (a load ended early; the next resumes it) or Evicting."
    )
    bytes: Int64 = Field(default=0, description="Its size.")
    ranks: str | None = Field(default=None, description="The ranks that it holds; absent: all.")
    models: tuple[str, ...] = Field(
        default=(), max_length=MAX_MODELS, description="The ModelWeights that refer to it, as namespace/name."
    )
    retention: Retention = Field(
        default=Retention.WHILE_REFERENCED, description="Whether it stays when nothing refers to it any more."
    )
    last_used_time: Time | None = Field(default=None, description="When a loader last used it, to the minute.")
    verified: str | None = Field(default=None, description="How far its bytes were checked.")
    revision: str | None = Field(default=None, description="The revision that it holds.")

    @property
    def entry_key(self) -> EntryKey:
        return EntryKey(self.name, self.medium)


class NodeCacheStatus(ApiModel):
    """What lies on the node."""

    boot_id: str | None = Field(
        default=None,
        alias="bootID",
        description="Boot of the node that Memory entries belong to; another boot forgets them.",
    )
    media: tuple[MediumStatus, ...] | None = Field(
        default=None,
        max_length=4,
        description="Room of each medium.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    entries: tuple[CacheEntry, ...] | None = Field(
        default=None,
        max_length=1000,
        description="What lies there.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "medium"]},
    )
    summary: NodeCacheSummary | None = Field(default=None, description="The same for people.")
    conditions: tuple[Condition, ...] | None = Field(
        default=None,
        max_length=8,
        description="Ready, CapacityPressure.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class NodeCacheSummary(ApiModel):
    """Columns of ``kubectl get nodecaches``."""

    memory_used: str = Field(default="", description="Bytes of entries in memory.")
    memory_free: str = Field(default="", description="Free bytes of the memory medium.")
    disk_used: str = Field(default="", description="Bytes of entries on disk.")
    entries: int = Field(default=0, description="Entries that are ready.")
    loading: int = Field(default=0, description="Entries that are being loaded.")


class NodeCacheResource(ApiModel):
    """What lies in the weights cache of one node; the name is the node's."""

    status: NodeCacheStatus | None = Field(default=None, description="What lies there.")


NodeCacheStatus.model_rebuild()
NodeCacheResource.model_rebuild()
