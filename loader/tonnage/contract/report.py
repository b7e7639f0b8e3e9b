"""Reports: how a load goes and how it ended. The last line that ``tonnage load`` prints is one."""

from __future__ import annotations

import enum

import msgspec

from tonnage.contract.plan import SCHEMA_VERSION, Identity, ObjectPin, WireStruct, check_version
from tonnage.errors import InvalidPlan

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes that Kubernetes keeps of a container's termination message."""
OMITTED_OBJECTS_NOTE = "The list of objects is too long for a termination message; only the report endpoint got it."
"""What a termination message says in place of the list of what was resolved."""


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


class Medium(WireStruct, frozen=True, kw_only=True):
    """What the cache lies on.

    ``filesystem`` is the kernel's name (``tmpfs``, ``ext4``); ``pages`` is ``4k`` or the ``huge=`` option of a tmpfs,
    empty elsewhere. Sizes in bytes.
    """

    filesystem: str
    pages: str = ""
    capacity_bytes: int = 0
    free_bytes: int = 0


class Progress(WireStruct, frozen=True, kw_only=True):
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


class ResolvedSource(WireStruct, frozen=True, kw_only=True):
    """The pinned objects of one source of the plan, in its order. ``place`` is that of `place_of`; empty for HTTP."""

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
    check_version(data, document="report")
    try:
        return msgspec.json.decode(data, type=Report)
    except msgspec.MsgspecError as error:
        raise InvalidPlan(f"The report can't be used: {error}.") from error


def termination_message(report: Report) -> bytes:
    """Returns the report in at most ``TERMINATION_MESSAGE_LIMIT`` bytes, still valid JSON.

    Fields that have their defaults are left out, since of a pod with more than three containers Kubernetes keeps only
    its share of 12 KiB. Then lists go, which is noted, then what is longest is shortened: kind, outcome and reason
    always survive.
    """
    data = _encode_without_defaults(report)
    if len(data) > TERMINATION_MESSAGE_LIMIT and report.resolved is not None:
        report = msgspec.structs.replace(report, resolved=None, notes=(*report.notes, OMITTED_OBJECTS_NOTE))
    less: list[dict[str, object]] = [
        {"entries": None},
        {"notes": report.notes[-1:]},
        {"notes": ()},
        {"progress": None},
    ]
    while len(data) > TERMINATION_MESSAGE_LIMIT:
        report = msgspec.structs.replace(report, **(less.pop(0) if less else _shortened(report)))
        data = _encode_without_defaults(report)
    return data


def _shortened(report: Report) -> dict[str, object]:
    """Returns the longest text, cut in half; when all are short, what else can go."""
    longest = max(_TEXT_FIELDS, key=lambda name: len(getattr(report, name)))
    text = getattr(report, longest)
    return {longest: text[: len(text) // 2]} if len(text) > _MIN_TEXT_LENGTH else {"identity": None, "medium": None}


_TEXT_FIELDS = ("message", "remedy", "path", "entry", "revision", "digest", "verified", "node", "pod", "reason")
_MIN_TEXT_LENGTH = 32
"""Characters, of up to 6 bytes each: as many texts of this length always fit."""


def _encode_without_defaults(report: Report) -> bytes:
    """Returns the report without the fields that say nothing."""
    plain = Report()
    fields = {name: getattr(report, name) for name in report.__struct_fields__}
    needed = {"schema_version", "kind"}
    return msgspec.json.encode(
        {name: value for name, value in fields.items() if name in needed or value != getattr(plain, name)}
    )
