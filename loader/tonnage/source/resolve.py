"""From a plan to a pinned revision: which objects, what they are, and how each is requested."""

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
    """One object that a load is for.

    Attributes:
        source: Which of the plan's sources it is from, from 0.
        place: Endpoint and bucket; empty for HTTP.
        pin: Its revision.
        kind: ``tensors`` or ``companion``.
        path: Its file below the model's directory: relative, and safe to join.
        rank: Of a rank-sharded model; None for what belongs to all ranks.
        target: How it is requested.
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
        objects: What this load is for, in the order of sources and paths.
        digest: Over all objects of the revision, also those of ranks that this load is not for.
        revision: Its short name.
        notes: Remarks for the report.
        sources: All pinned objects, of each of the plan's sources.
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
    """Lists what a plan names and pins it, or asks again for what it has pinned already.

    Args:
        plan: Sources and the selection of files.
        environment: AWS's variables and Tonnage's. botocore's chain, and libcurl's proxies, read the process's own.
        deadline: The moment of ``time.monotonic()`` by which it must be done; None: no limit.
        canceled: Asked several times a second whether to give up.

    Raises:
        TonnageError: Of the reason why the sources can't be had, or are no model.
    """
    if not plan.sources:
        raise InvalidPlan("The plan names no source.")
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
        raise NoTensorFiles("None of the sources has a .tensors file that counts.")
    check_path_conflicts((each.path for each in objects), where="The sources together")
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
