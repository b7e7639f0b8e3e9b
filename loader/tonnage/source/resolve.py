"""Resolves a plan to a pinned revision: its objects, their kinds and ranks, and how to request each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.contract import ResolvedSource, S3Source, revision_digest, revision_id
from tonnage.errors import InvalidPlan, NoTensorFiles
from tonnage.source.client import Client
from tonnage.source.credentials import CredentialProvider
from tonnage.source.http_source import pin_http
from tonnage.source.pinned import RequestContext
from tonnage.source.s3_source import pin_s3
from tonnage.source.selection import check_path_conflicts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tonnage.contract import ObjectPin, Plan, Source
    from tonnage.source.pinned import PinnedSource
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import Kind


@dataclass(frozen=True, slots=True)
class ResolvedObject:
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


@dataclass(frozen=True, slots=True)
class ResolvedRevision:
    """A pinned revision.

    Attributes:
        objects: The objects to load, in the order of sources and paths.
        digest: Digest over all objects of the revision, including those of other ranks.
        revision: The revision's name, ``r-`` and 12 hex digits.
        notes: Remarks for the report.
        sources: All pinned objects of each of the plan's sources.
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
) -> ResolvedRevision:
    """Lists and pins the objects of a plan, or checks the pins that the plan already has.

    Args:
        plan: Sources and the selection of files.
        environment: AWS's variables and Tonnage's. botocore's chain and libcurl's proxy settings use the process's
            environment instead.
        deadline: Value of ``time.monotonic()`` by which resolving must have ended; None: no limit.
        canceled: Polled several times a second; True interrupts the requests.

    Raises:
        TonnageError: A source can't be read, or the sources have no model.
    """
    if not plan.sources:
        raise InvalidPlan("The plan has no source.")
    providers: list[CredentialProvider] = []
    pinned: list[PinnedSource] = []
    with Client(deadline=deadline, canceled=canceled) as client:
        for source in plan.sources:
            provider = _shared_provider(providers, source, environment)
            context = RequestContext(client, provider, environment)
            only_source = len(plan.sources) == 1
            if isinstance(source, S3Source):
                pinned.append(pin_s3(source, plan.files, context, need_tensors=only_source))
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
        raise NoTensorFiles("None of the sources has a matching .tensors file.")
    check_path_conflicts((each.path for each in objects), where="The plan's sources")
    digest = revision_digest((source.place, pin) for source in pinned for pin in source.pins)
    return ResolvedRevision(
        objects=objects,
        digest=digest,
        revision=revision_id(digest),
        notes=tuple(note for source in pinned for note in source.notes),
        sources=tuple(ResolvedSource(place=source.place, objects=source.pins) for source in pinned),
        providers=tuple(providers),
    )


def _shared_provider(
    providers: list[CredentialProvider], source: Source, environment: Mapping[str, str]
) -> CredentialProvider:
    """Returns one provider for all signed sources and one for all anonymous ones, so that credentials load only once.

    HTTP sources are anonymous: their URLs are public or presigned.
    """
    anonymous = source.anonymous if isinstance(source, S3Source) else True
    for provider in providers:
        if provider.anonymous == anonymous:
            return provider
    return CredentialProvider(anonymous=anonymous, environment=environment)
