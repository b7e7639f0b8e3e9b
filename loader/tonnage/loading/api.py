"""The loader's public Python functions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypedDict, Unpack

from tonnage.contract import ComputedBuffers, Layout, Limits, Plan, Report, Verify, file_selection
from tonnage.contract.plan import AddressingStyle, Weights
from tonnage.loading.load import run_plan
from tonnage.loading.resolve_only import resolve_plan
from tonnage.source.source_uri import parse_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tonnage.contract import Progress


class PlanOptions(TypedDict, total=False):
    """Options of ``load`` and ``resolve``; all are optional.

    Attributes:
        layout: ``safetensors`` (files that any engine reads, the default; safetensors files keep their names and bytes)
            or ``tensorizer`` (the unmodified ``.tensors`` objects).
        computed_buffers: Where the safetensors layout has buffers that engines compute themselves: ``separate`` (in a
            file that engines don't list, the default) or ``in-shards``.
        verify: ``best`` (the default), ``crc32``, ``sha256``, ``size`` or ``none``.
        verify_on_hit: Verify what is already in the cache with hashes that are read from the source now.
        weights: ``auto`` (``.tensors`` files, or ``.safetensors`` files where none match; the default), ``tensorizer``
            or ``safetensors``.
        include: Shell patterns. Those that end in ``.tensors`` or ``.safetensors`` select weights; others add
            companions to the default ones.
        exclude: Shell patterns of keys to exclude.
        ranks: The ranks of a rank-sharded model to load; None for all.
        endpoint_url: URL of an S3-compatible server; empty for AWS.
        region: Region of the bucket.
        addressing_style: ``auto`` (the default), ``path`` or ``virtual``.
        ca_bundle: Path of a PEM file with trusted CA certificates.
        anonymous: Don't sign requests.
        requester_pays: Agree to pay for requests and transfer.
        limits: Limits on the use of machine and network.
        expected_digest: Fail if the source has another revision.
    """

    layout: Layout | str
    computed_buffers: ComputedBuffers | str
    verify: Verify | str
    verify_on_hit: bool
    weights: Weights | str
    include: Sequence[str]
    exclude: Sequence[str]
    ranks: Sequence[int] | None
    endpoint_url: str
    region: str
    addressing_style: AddressingStyle | str
    ca_bundle: str
    anonymous: bool
    requester_pays: bool
    limits: Limits | None
    expected_digest: str


def make_plan(sources: str | Sequence[str], **options: Unpack[PlanOptions]) -> Plan:
    """Returns the plan for the given sources and options.

    Raises:
        InvalidPlan: A source or option is invalid.
        TypeError: An option doesn't exist.
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
            requester_pays=options.get("requester_pays", False),
        ),
        layout=Layout(options.get("layout", Layout.SAFETENSORS)),
        computed_buffers=ComputedBuffers(options.get("computed_buffers", ComputedBuffers.SEPARATE)),
        verify=Verify(options.get("verify", Verify.BEST)),
        verify_on_hit=options.get("verify_on_hit", False),
        files=file_selection(
            options.get("include", ()),
            options.get("exclude", ()),
            None if ranks is None else tuple(ranks),
            Weights(options.get("weights", Weights.AUTO)),
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
    """Loads a model, in tensorizer's or safetensors' format, from object storage into a cache on this machine.

    Several processes may call it for the same model at the same time: one loads, the others wait and get a hit.

    Args:
        sources: ``s3://bucket/prefix/``, ``s3://bucket/key.tensors`` or ``https://…/x.safetensors``; several sources
            form one model.
        cache: The cache's root directory, in shared memory or on a disk.
        environment: Environment variables with credentials and other settings; None for ``os.environ``.
        on_progress: Called with the progress a few times a second.
        canceled: Polled several times a second; return True to cancel.
        options: See ``PlanOptions``: ``layout``, ``verify``, ``include``, ``endpoint_url`` and others.

    Returns:
        The report; its ``path`` is the directory to pass to an engine.

    Raises:
        TonnageError: The load failed. The class corresponds to the reason.
    """
    plan = make_plan(sources, **options)
    found = os.environ if environment is None else environment
    return run_plan(plan, cache=cache, environment=found, on_progress=on_progress, canceled=canceled).report


def resolve(
    sources: str | Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Unpack[PlanOptions]
) -> Report:
    """Lists and pins the objects of ``sources`` without loading them. Arguments as for ``load``.

    Raises:
        TonnageError: Resolving failed. The class corresponds to the reason.
    """
    plan = make_plan(sources, **options)
    return resolve_plan(plan, environment=os.environ if environment is None else environment)
