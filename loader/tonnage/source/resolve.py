"""Resolves a plan to a pinned revision: its objects, their kinds and ranks, and how to request each of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tonnage.contract import (
    HubSource,
    Layout,
    ResolvedSource,
    S3Source,
    Verify,
    parse_checksum,
    revision_digest,
    revision_id,
)
from tonnage.contract.selection import SAFETENSORS_SUFFIX
from tonnage.errors import FormatUnsupported, InvalidPlan, NoChecksum, NoTensorFiles
from tonnage.record import Record
from tonnage.source.client import Client
from tonnage.source.credentials import Botocore, CredentialProvider
from tonnage.source.http_source import pin_http
from tonnage.source.pinned import RequestContext
from tonnage.source.s3_source import pin_s3
from tonnage.source.selection import check_path_conflicts
from tonnage.source.stated_checksums import reaches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.contract import ObjectChecksum, ObjectPin, Plan, Source
    from tonnage.contract.selection import Kind
    from tonnage.source.pinned import PinnedSource
    from tonnage.source.request_target import RequestTarget


class ResolvedObject(Record, frozen=True):
    """An object to load.

    Attributes:
        source: Index of its source in the plan.
        place: Endpoint and bucket; empty for HTTP.
        pin: Its size, ETag and version.
        kind: ``tensors`` or ``companion``.
        path: Path of its file below the model's directory: relative and safe to join.
        rank: Its rank in a rank-sharded model; None if it belongs to all ranks.
        target: How to request it.
    """

    source: int
    place: str
    pin: ObjectPin
    kind: Kind
    path: str
    rank: int | None
    target: RequestTarget


class ResolvedRevision(Record, frozen=True):
    """A pinned revision.

    Attributes:
        objects: The objects to load, in the order of sources and paths.
        digest: Digest over all objects of the revision, including those of other ranks.
        revision: The revision's name, ``r-`` and 32 hex digits.
        notes: Remarks for the report.
        sources: All pinned objects of each of the plan's sources, and how its store must be asked.
        providers: The credentials of each of the plan's sources.
    """

    objects: tuple[ResolvedObject, ...]
    digest: str
    revision: str
    notes: tuple[str, ...]
    sources: tuple[ResolvedSource, ...]
    providers: tuple[CredentialProvider, ...]


def resolve(
    plan: Plan,
    *,
    environment: Mapping[str, str],
    deadline: float | None = None,
    canceled: Callable[[], bool] | None = None,
    on_retry: Callable[[], None] = lambda: None,
    asks: bool = True,
) -> ResolvedRevision:
    """Lists and pins the objects of a plan, or checks the pins that the plan already has.

    Args:
        plan: Sources and the selection of files.
        environment: AWS's variables and Tonnage's. libcurl's proxy settings are those of the process's environment.
        deadline: Value of ``time.monotonic()`` by which resolving must have ended; None: no limit.
        canceled: Polled several times a second; True interrupts the requests.
        on_retry: Called for each retry of a request.
        asks: Whether stores are asked about pins; if not, they have been checked in another way.

    Raises:
        TonnageError: A source can't be read, or the sources have no model.
    """
    if not plan.sources:
        raise InvalidPlan("The plan has no source.")
    providers: list[CredentialProvider] = []
    pinned: list[PinnedSource] = []
    botocore = Botocore(environment, deadline=deadline, canceled=canceled)
    with (
        contextlib.closing(botocore),
        Client(deadline=deadline, canceled=canceled, on_retry=on_retry) as client,
    ):
        for source in plan.sources:
            if isinstance(source, HubSource):
                from tonnage.source.hub_source import HubTokenProvider, pin_hub  # not imported for other sources

                hub_token = HubTokenProvider(anonymous=source.anonymous, botocore=botocore)
                context = RequestContext(client, hub_token, environment, botocore, plan.verify)
                pinned.append(pin_hub(source, plan.files, context, need_tensors=len(plan.sources) == 1))
                providers.append(hub_token)
                continue
            provider = _shared_provider(providers, source, botocore)
            context = RequestContext(client, provider, environment, botocore, plan.verify)
            only_source = len(plan.sources) == 1
            if isinstance(source, S3Source):
                pinned.append(pin_s3(source, plan.files, context, need_tensors=only_source, asks=asks))
            else:
                pinned.append(pin_http(source, plan.files, context, need_tensors=only_source))
            providers.append(provider)
    objects = tuple(
        ResolvedObject(
            source=number,
            place=source.place,
            pin=each.pin,
            kind=each.selected.kind,
            path=each.selected.path,
            rank=each.selected.rank,
            target=each.target,
        )
        for number, source in enumerate(pinned)
        for each in source.objects
    )
    if not any(each.kind == "tensors" for each in objects):
        raise NoTensorFiles("None of the sources has a matching .tensors or .safetensors file.")
    check_layout(plan.layout, objects)
    check_checksums(plan.verify, objects)
    check_path_conflicts((each.path for each in objects), where="The plan's sources")
    digest = revision_digest((source.place, pin) for source in pinned for pin in source.pins)
    return ResolvedRevision(
        objects=objects,
        digest=digest,
        revision=revision_id(digest),
        notes=tuple(note for source in pinned for note in source.notes),
        sources=tuple(
            ResolvedSource(place=source.place, objects=source.pins, behavior=source.behavior) for source in pinned
        ),
        providers=tuple(providers),
    )


def check_layout(layout: Layout, objects: Sequence[ResolvedObject]) -> None:
    """Checks that the layout is one that the objects can have in the cache.

    Raises:
        FormatUnsupported: The Tensorizer layout, for safetensors files.
    """
    if layout is not Layout.TENSORIZER:
        return
    found = next((each for each in objects if each.kind == "tensors" and each.path.endswith(SAFETENSORS_SUFFIX)), None)
    if found is not None:
        raise FormatUnsupported(
            f"{found.target.label} is a safetensors file, and the Tensorizer layout has copies of .tensors files only.",
            remedy="Use the Safetensors layout (--layout safetensors, spec.cache.layout), which keeps these files "
            "unchanged; or load .tensors files.",
        )


def check_checksums(level: Verify, objects: Sequence[ResolvedObject]) -> None:
    """Checks that safetensors files can be verified at the level, as their format has no hashes.

    Raises:
        NoChecksum: The source of one states no checksum that reaches the level.
    """
    for each in objects:
        if each.kind == "tensors" and each.path.endswith(SAFETENSORS_SUFFIX):
            checksum = parse_checksum(each.pin.checksum)
            if not reaches(checksum, level):
                raise no_checksum(each.target.label, checksum, level)


def no_checksum(label: str, checksum: ObjectChecksum | None, level: Verify) -> NoChecksum:
    """Returns the error for a file without hashes that can't be verified at the level."""
    what = "SHA-256" if level is Verify.SHA256 else "checksum"
    stated = f" (only {checksum.words})" if checksum is not None else ""
    return NoChecksum(f"{label} holds no hashes of its tensors, and its source states no {what} of it{stated}.")


def _shared_provider(providers: list[CredentialProvider], source: Source, botocore: Botocore) -> CredentialProvider:
    """Returns one provider for all signed sources and one for all anonymous ones, so that credentials load only once.

    HTTP sources are anonymous: their URLs are public or presigned.
    """
    anonymous = source.anonymous if isinstance(source, S3Source) else True
    for provider in providers:
        if type(provider) is CredentialProvider and provider.anonymous == anonymous:
            return provider
    return CredentialProvider(anonymous=anonymous, botocore=botocore)
