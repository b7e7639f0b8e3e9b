"""The loader's Python functions, for people who have no plan and no command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypedDict, Unpack

from tonnage.contract import Layout, Limits, Plan, Report, Verify, file_selection
from tonnage.contract.plan import AddressingStyle
from tonnage.loading.load import resolve_plan, run_plan
from tonnage.source.source_uri import parse_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tonnage.contract import Progress


class PlanOptions(TypedDict, total=False):
    """What ``load`` and ``resolve`` can be told of what is wanted; all of it may be left out.

    Attributes:
        layout: ``safetensors`` (shards that any engine reads, the default) or ``tensorizer`` (the objects as they are).
        verify: ``crc32`` (the default), ``sha256``, ``size`` or ``none``.
        include: Shell patterns: those that end in ``.tensors`` choose among the tensor files, others add companions
            to the usual ones.
        exclude: Shell patterns of keys to leave out.
        ranks: Of a rank-sharded model, which to take; None: all.
        endpoint_url: Of an S3 server that is not AWS.
        region: Of the bucket.
        addressing_style: ``auto`` (the default), ``path`` or ``virtual``.
        ca_bundle: A PEM file of authorities to trust.
        anonymous: Don't sign requests.
        limits: How much of machine and network to take.
        expected_digest: Refuse any other revision.
    """

    layout: Layout | str
    verify: Verify | str
    include: Sequence[str]
    exclude: Sequence[str]
    ranks: Sequence[int] | None
    endpoint_url: str
    region: str
    addressing_style: AddressingStyle | str
    ca_bundle: str
    anonymous: bool
    limits: Limits | None
    expected_digest: str


def make_plan(sources: str | Sequence[str], **options: Unpack[PlanOptions]) -> Plan:
    """Returns the plan that sources and options mean.

    Raises:
        InvalidPlan: One of them can't be used.
        TypeError: There is no such option.
    """
    unknown = sorted(options.keys() - PlanOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(PlanOptions.__annotations__)}")
    ranks = options.get("ranks")
    return Plan(
        sources=parse_sources(
            [sources] if isinstance(sources, str) else list(sources),
            endpoint=options.get("endpoint_url", ""),
            region=options.get("region", ""),
            addressing_style=AddressingStyle(options.get("addressing_style", AddressingStyle.AUTO)),
            ca_bundle=options.get("ca_bundle", ""),
            anonymous=options.get("anonymous", False),
        ),
        layout=Layout(options.get("layout", Layout.SAFETENSORS)),
        verify=Verify(options.get("verify", Verify.CRC32)),
        files=file_selection(
            options.get("include", ()), options.get("exclude", ()), None if ranks is None else tuple(ranks)
        ),
        limits=options.get("limits") or Limits(),
        expected_digest=options.get("expected_digest", ""),
    )


def load(
    sources: str | Sequence[str],
    *,
    cache: Path | str,
    environment: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    canceled: Callable[[], bool] = lambda: False,
    **options: Unpack[PlanOptions],
) -> Report:
    """Brings a model that tensorizer serialized from object storage into a cache on this machine.

    Any number of processes may call it for the same model at once: one loads, the others wait and find a hit.

    Args:
        sources: ``s3://bucket/key.tensors``, ``s3://bucket/prefix/`` or ``https://…/x.tensors``; several are one model.
        cache: The cache's root directory, in shared memory or on a disk.
        environment: Where to look for credentials and the like; None: ``os.environ``.
        on_progress: Told a few times a second how it goes.
        canceled: Asked several times a second whether to give up.
        options: As ``PlanOptions`` has them: ``layout``, ``verify``, ``include``, ``endpoint_url``, ….

    Returns:
        The report; its ``path`` is the directory to give to an engine.

    Raises:
        TonnageError: Of the class that belongs to the reason.
    """
    plan = make_plan(sources, **options)
    found = os.environ if environment is None else environment
    return run_plan(plan, cache=cache, environment=found, on_progress=on_progress, canceled=canceled).report


def resolve(
    sources: str | Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Unpack[PlanOptions]
) -> Report:
    """Lists and pins what ``sources`` name, without loading it; arguments as for ``load``.

    Raises:
        TonnageError: Of the class that belongs to the reason.
    """
    plan = make_plan(sources, **options)
    return resolve_plan(plan, environment=os.environ if environment is None else environment)
