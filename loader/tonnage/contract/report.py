"""Reports: the progress and the result of a load. The last line that ``tonnage load`` prints is a report."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from tonnage.contract.plan import (
    DECODE_ERRORS,
    SCHEMA_VERSION,
    Identity,
    ObjectPin,
    Size,
    StoreBehavior,
    WireStruct,
    check_version,
)
from tonnage.errors import InvalidPlan

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes of a container's termination message that Kubernetes keeps."""
OMITTED_OBJECTS_NOTE = (
    "The list of objects is too long for a termination message; it was sent to the report endpoint only."
)
"""Replaces the list of resolved objects in a termination message."""


VERIFIED_BY_LIMIT = 256
"""Maximum length of ``Report.verified_by``, in characters."""

# The operator records what pods report, and the API server refuses numbers and texts beyond its schema.
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e8)]
_Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]*\Z", max_length=64)]
_Name = Annotated[str, msgspec.Meta(max_length=1024)]
_Text = Annotated[str, msgspec.Meta(max_length=32768)]


class Outcome(enum.StrEnum):
    """The result of a load."""

    LOADED = "loaded"
    HIT = "hit"
    FAILED = "failed"


class ReportKind(enum.StrEnum):
    """The kind of a report."""

    RESOLVED = "resolved"
    PROGRESS = "progress"
    FINISHED = "finished"
    INVENTORY = "inventory"
    RESERVATION = "reservation"
    """Asks for room for ``bytes`` in all of ``entry``, before the first byte; see ``ReservationAnswer``."""
    PEERS = "peers"
    """Asks which peers have ``entry`` or parts of it, again and again during a load; see ``peers.PeersAnswer``."""


class Medium(WireStruct, frozen=True, kw_only=True):
    """The medium of the cache.

    ``filesystem`` is the kernel's name (``tmpfs``, ``ext4``); ``pages`` is ``4k`` or the ``huge=`` option of a tmpfs,
    empty elsewhere. Sizes in bytes.
    """

    filesystem: _Name
    pages: _Name = ""
    capacity_bytes: Size = 0
    free_bytes: Size = 0


class Progress(WireStruct, frozen=True, kw_only=True):
    """The progress of a load. ``remaining_seconds`` is -1 while unknown.

    ``waiting_for`` lists the visible processes that this one waits for. ``notes`` are the remarks of resolving, such as
    files that were left out.
    """

    phase: _Name
    """``resolving``, ``waiting`` (for another loader of the entry), ``loading``, ``verifying`` or ``publishing``; in
    ``tonnage serialize`` also ``serializing`` and ``uploading``."""
    loaded_bytes: Size = 0
    total_bytes: Size = 0
    bytes_per_second: Annotated[float, msgspec.Meta(ge=0, le=1e15)] = 0.0
    remaining_seconds: Annotated[float, msgspec.Meta(ge=-1, le=1e15)] = -1.0
    tensors_verified: Size = 0
    tensors: Size = 0
    retries: Size = 0
    waiting_for: _Text = ""
    notes: tuple[_Text, ...] = ()


MAX_ARTIFACTS_BYTES = 2**62
"""The size of artifacts that can't be measured, because they have too many files, or too many levels."""


class ArtifactsSize(WireStruct, frozen=True, kw_only=True):
    """A directory of engine artifacts, and the bytes that it takes on its medium."""

    name: _Name
    bytes: Size


class DroppedPeer(WireStruct, frozen=True, kw_only=True):
    """A peer that a load no longer asks. ``reason`` is a word, such as ``WrongBytes``, ``why`` a sentence."""

    node: _Name
    reason: _Word
    why: _Text = ""


class ResolvedSource(WireStruct, frozen=True, kw_only=True):
    """The pinned objects of a source of the plan, in order. ``place`` is from ``source_place``; empty for HTTP.

    ``behavior`` is how its store must be asked; None: in the ordinary way.
    """

    place: Annotated[str, msgspec.Meta(max_length=4096)]
    objects: tuple[ObjectPin, ...]
    behavior: StoreBehavior | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A report of a loader. ``kind`` determines which fields are set; the others have their defaults.

    ``bytes`` is the size of the entry's files, ``downloaded_bytes`` the bytes that this process downloaded, and
    ``resumed_bytes`` those that an earlier one had left on disk. ``seconds`` is the wall time of the whole load.
    ``peer_bytes`` are those of the downloaded bytes that peers have sent; the rest came from the source.
    ``dropped_peers`` are those whose answers were wrong, late or missing. ``headers_digest`` is the SHA-256 of the
    entry's headers file; empty if there is none, or if it came from a peer and could not be compared. A report of kind
    ``peers`` has it as soon as the load has read all headers from its source.
    ``verified`` is the lowest level of any object with weights; ``verified_by`` states how many objects were
    verified by which kind of checksum.
    """

    schema_version: int = SCHEMA_VERSION
    kind: ReportKind = ReportKind.FINISHED
    outcome: Outcome | None = None
    reason: _Word = ""
    message: _Text = ""
    remedy: _Text = ""
    revision: _Name = ""
    digest: _Name = ""
    entry: _Name = ""
    path: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    bytes: Size = 0
    downloaded_bytes: Size = 0
    resumed_bytes: Size = 0
    peer_bytes: Size = 0
    dropped_peers: Annotated[tuple[DroppedPeer, ...], msgspec.Meta(max_length=64)] = ()
    headers_digest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    seconds: _Seconds = 0.0
    tensors: Size = 0
    segments: Size = 0
    retries: Size = 0
    verified: _Word = ""
    verified_by: Annotated[str, msgspec.Meta(max_length=VERIFIED_BY_LIMIT)] = ""
    notes: tuple[str, ...] = ()
    served_by: _Name = ""
    medium: Medium | None = None
    progress: Progress | None = None
    resolved: tuple[ResolvedSource, ...] | None = None
    entries: tuple[str, ...] | None = None
    artifacts: Annotated[tuple[ArtifactsSize, ...], msgspec.Meta(max_length=64)] = ()
    identity: Identity | None = None
    node: _Name = ""
    pod: _Name = ""


class ReservationAnswer(WireStruct, frozen=True, kw_only=True):
    """The operator's answer to a report of kind ``reservation``.

    If the room is not ``granted``, ``wait`` means that it may be soon: ask again. ``message`` has the numbers, and
    names only what the sender's namespace may see.
    """

    granted: bool
    wait: bool = False
    message: _Text = ""


def encode_reservation_answer(answer: ReservationAnswer) -> bytes:
    """Returns the answer as a line of JSON."""
    return msgspec.json.encode(answer)


def decode_reservation_answer(data: bytes) -> ReservationAnswer:
    """Parses an answer.

    Raises:
        InvalidPlan: It is not one; a release that knows no reservations answers with an empty body.
    """
    try:
        return msgspec.json.decode(data, type=ReservationAnswer)
    except DECODE_ERRORS as error:
        raise InvalidPlan(f"The answer to the reservation is invalid: {error}.") from error


def encode_report(report: Report) -> bytes:
    """Returns the report as a line of JSON."""
    return msgspec.json.encode(report)


def decode_report(data: bytes | str) -> Report:
    """Parses a report.

    Raises:
        InvalidPlan: It is not JSON, has an unknown schema version, or a field is invalid.
    """
    check_version(data, document="report")
    try:
        return msgspec.json.decode(data, type=Report)
    except DECODE_ERRORS as error:
        raise InvalidPlan(f"The report is invalid: {error}.") from error


def termination_message(report: Report) -> bytes:
    """Returns the report in at most ``TERMINATION_MESSAGE_LIMIT`` bytes, still valid JSON.

    Default values are omitted, because in a pod with more than three containers Kubernetes divides 12 KiB among them.
    If the report is still too long, lists are dropped, with a note, and then the longest texts are shortened. Kind,
    outcome and reason are always kept.
    """
    data = _encode_without_defaults(report)
    if len(data) > TERMINATION_MESSAGE_LIMIT and report.resolved is not None:
        report = msgspec.structs.replace(report, resolved=None, notes=(*report.notes, OMITTED_OBJECTS_NOTE))
    less: list[dict[str, object]] = [
        {"entries": None},
        {"dropped_peers": ()},
        {"notes": report.notes[-1:]},
        {"notes": ()},
        {"progress": None},
    ]
    while len(data) > TERMINATION_MESSAGE_LIMIT:
        report = msgspec.structs.replace(report, **(less.pop(0) if less else _shortened(report)))
        data = _encode_without_defaults(report)
    return data


def _shortened(report: Report) -> dict[str, object]:
    """Returns the longest text, cut in half; if all are short, removes identity and medium."""
    longest = max(_TEXT_FIELDS, key=lambda name: len(getattr(report, name)))
    text = getattr(report, longest)
    return {longest: text[: len(text) // 2]} if len(text) > _MIN_TEXT_LENGTH else {"identity": None, "medium": None}


_TEXT_FIELDS = ("message", "remedy", "path", "entry", "revision", "digest", "verified", "node", "pod", "reason")
_MIN_TEXT_LENGTH = 32
"""Characters, of up to 6 bytes each. If all texts have at most this length, the report fits."""


def _encode_without_defaults(report: Report) -> bytes:
    """Returns the report as JSON without fields that have their default."""
    plain = Report()
    fields = {name: getattr(report, name) for name in report.__struct_fields__}
    needed = {"schema_version", "kind"}
    return msgspec.json.encode(
        {name: value for name, value in fields.items() if name in needed or value != getattr(plain, name)}
    )
