"""The operator's own reasons. Their names are part of the API: scripts and alerts depend on them.

Each has a row in ``docs/guides/operations/reasons.md``; a test checks this. The loader's reasons are in
``tonnage.errors``.
"""

from __future__ import annotations

import enum


class ConditionReason(enum.StrEnum):
    """Reasons of ``ModelWeights`` and ``NodeCache`` conditions that are not failures of a Job."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    SPEC_TOO_LARGE = "SpecTooLarge"
    MEDIUM_NOT_CONFIGURED = "MediumNotConfigured"
    RESOLVED = "Resolved"
    RESOLVING = "Resolving"
    NOT_RESOLVED = "NotResolved"
    LOADING = "Loading"
    WAITING_FOR_SPACE = "WaitingForSpace"
    ENTRY_TOO_LARGE = "EntryTooLarge"
    UPDATING = "Updating"
    ROLLOUT_BLOCKED = "RolloutBlocked"
    SUSPENDED = "Suspended"
    BACKOFF = "Backoff"
    IDLE = "Idle"
    NOTHING_TO_PREWARM = "NothingToPrewarm"
    NO_MATCHING_NODES = "NoMatchingNodes"
    ALL_NODES_WARM = "AllNodesWarm"
    TOO_FEW_NODES = "TooFewNodes"
    PARTIALLY_WARM = "PartiallyWarm"
    WARM = "Warm"
    LOADED_ON_DEMAND = "LoadedOnDemand"
    NO_WARM_NODE = "NoWarmNode"
    ALL_NODES_HEALTHY = "AllNodesHealthy"
    NODE_LOAD_FAILED = "NodeLoadFailed"
    POD_LOAD_FAILED = "PodLoadFailed"
    UP_TO_DATE = "UpToDate"
    SOURCE_CHANGED = "SourceChanged"
    NODE_READY = "NodeReady"
    NODE_NOT_READY = "NodeNotReady"
    ROOM_LEFT = "RoomLeft"
    ALMOST_FULL = "AlmostFull"
    EVICTING = "Evicting"
    LOADS_WAITING = "LoadsWaiting"
    TOO_MANY_ENTRIES = "TooManyEntries"
    GATED = "Gated"
    NO_GATE = "NoGate"
    GATE_NOT_CONFIGURED = "GateNotConfigured"


class FailureReason(enum.StrEnum):
    """Why a Job failed or can't start, where the loader couldn't report it. In conditions, failures and events."""

    REPORT_LOST = "ReportLost"
    REPORT_CONTRADICTS_ITSELF = "ReportContradictsItself"
    PIN_UNKNOWN = "PinUnknown"
    POD_NOT_CREATED = "PodNotCreated"
    JOB_SUSPENDED = "JobSuspended"
    LOADER_KILLED = "LoaderKilled"
    LOADER_UNSCHEDULABLE = "LoaderUnschedulable"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"


class EventReason(enum.StrEnum):
    """Reasons of events that don't belong to a condition."""

    LOAD_STARTED = "LoadStarted"
    LOAD_COMPLETED = "LoadCompleted"
    PEER_DROPPED = "PeerDropped"
    WAITING_FOR_SPACE = "WaitingForSpace"
    REVISION_CHANGED = "RevisionChanged"
    ROLLOUT_STARTED = "RolloutStarted"
    ROLLOUT_COMPLETED = "RolloutCompleted"
    DELETION_WAITING = "DeletionWaiting"
    CLAIM_NOT_EMPTIED = "ClaimNotEmptied"
    IGNORED = "Ignored"
    GATE_WAITING = "GateWaiting"
    GATE_OPENED = "GateOpened"
    GATE_TIMED_OUT = "GateTimedOut"
    WAITING_FOR_WARM_NODE = "WaitingForWarmNode"
