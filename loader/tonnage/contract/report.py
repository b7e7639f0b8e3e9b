"""Reports: how a load goes and how it ended. The last line that ``tonnage load`` prints is one."""

from __future__ import annotations

import enum

import msgspec

from tonnage.contract.plan import SCHEMA_VERSION, Identity, ObjectPin, check_version
from tonnage.errors import InvalidPlan

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes that Kubernetes keeps of a container's termination message."""


class Outcome(enum.StrEnum):
    """How a load ended."""

    LOADED = "loaded"
    HIT = "hit"
    FAILED = "failed"


class ReportKind(enum.StrEnum):
    """What a report is about."""

    RESOLVED = "resolved"
    PROGRESS = "progress"
    FINISHED = "finished"
    RELEASED = "released"
    INVENTORY = "inventory"


class _Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """As in ``plan``: immutable, and silent about what has its default."""


class Medium(_Wire, frozen=True, kw_only=True):
    """What the cache lies on.

    ``filesystem`` is the kernel's name (``tmpfs``, ``ext4``); ``pages`` is ``4k`` or the ``huge=`` option of a tmpfs,
    empty elsewhere. Sizes in bytes.
    """

    filesystem: str
    pages: str = ""
    capacity_bytes: int = 0
    free_bytes: int = 0


class Progress(_Wire, frozen=True, kw_only=True):
    """How far a load is. ``remaining_seconds`` is -1 while it can't be known.

    ``waiting_for`` names the processes that this one waits for, as far as they can be seen.
    """

    phase: str
    """``resolving``, ``waiting`` (for another loader of the entry), ``loading``, ``verifying`` or ``publishing``."""
    loaded_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    remaining_seconds: float = -1.0
    tensors_verified: int = 0
    tensors: int = 0
    retries: int = 0
    waiting_for: str = ""


class ResolvedSource(_Wire, frozen=True, kw_only=True):
    """The pinned objects of one source of the plan, in its order. ``place`` is the bucket, or empty for HTTP."""

    place: str
    objects: tuple[ObjectPin, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a loader says. Which fields mean something depends on ``kind``; the others have their defaults.

    ``bytes`` is what the entry holds for this plan, ``downloaded_bytes`` what this process fetched of it,
    ``resumed_bytes`` what an earlier one had left on disk. ``seconds`` is the wall time of the whole load.
    """

    schema_version: int = SCHEMA_VERSION
    kind: ReportKind = ReportKind.FINISHED
    outcome: Outcome | None = None
    reason: str = ""
    message: str = ""
    remedy: str = ""
    revision: str = ""
    digest: str = ""
    entry: str = ""
    path: str = ""
    bytes: int = 0
    downloaded_bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    tensors: int = 0
    segments: int = 0
    retries: int = 0
    verified: str = ""
    notes: tuple[str, ...] = ()
    medium: Medium | None = None
    progress: Progress | None = None
    resolved: tuple[ResolvedSource, ...] | None = None
    entries: tuple[str, ...] | None = None
    identity: Identity | None = None
    node: str = ""
    pod: str = ""


def encode_report(report: Report) -> bytes:
    """Returns the report as one line of JSON."""
    return msgspec.json.encode(report)


def decode_report(data: bytes | str) -> Report:
    """Reads a report.

    Raises:
        InvalidPlan: It is not JSON, of an unknown schema version, or a field is wrong.
    """
    check_version(data, what="report")
    try:
        return msgspec.json.decode(data, type=Report)
    except msgspec.MsgspecError as error:
        raise InvalidPlan(f"The report can't be used: {error}.") from error


def termination_message(report: Report) -> bytes:
    """Returns the report cut to what Kubernetes keeps, still valid JSON.

    Lists go first, then the message is shortened, so that outcome and reason always survive.
    """
    data = encode_report(report)
    if len(data) <= TERMINATION_MESSAGE_LIMIT:
        return data
    slim = msgspec.structs.replace(report, resolved=None, entries=None, notes=())
    while len(data := encode_report(slim)) > TERMINATION_MESSAGE_LIMIT and slim.message:
        slim = msgspec.structs.replace(slim, message=slim.message[: len(slim.message) // 2])
    return data
