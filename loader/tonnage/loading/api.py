"""The loader's Python functions, for people who have no plan and no command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tonnage.contract import Layout, Limits, Plan, Report, Verify, file_selection
from tonnage.contract.plan import AddressingStyle
from tonnage.loading.run import load_plan, resolve_plan
from tonnage.source.uri import parse_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tonnage.contract import Progress


def make_plan(
    sources: str | Sequence[str],
    *,
    layout: Layout | str = Layout.SAFETENSORS,
    verify: Verify | str = Verify.CRC32,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ranks: Sequence[int] | None = None,
    endpoint_url: str = "",
    region: str = "",
    addressing_style: AddressingStyle | str = AddressingStyle.AUTO,
    ca_bundle: str = "",
    anonymous: bool = False,
    limits: Limits | None = None,
    expected_digest: str = "",
) -> Plan:
    """Returns the plan that these arguments mean; ``load`` describes them.

    Raises:
        InvalidPlan: An argument can't be used.
    """
    texts = [sources] if isinstance(sources, str) else list(sources)
    return Plan(
        sources=parse_sources(
            texts,
            endpoint=endpoint_url,
            region=region,
            addressing_style=AddressingStyle(addressing_style),
            ca_bundle=ca_bundle,
            anonymous=anonymous,
        ),
        layout=Layout(layout),
        verify=Verify(verify),
        files=file_selection(include, exclude, None if ranks is None else tuple(ranks)),
        limits=limits or Limits(),
        expected_digest=expected_digest,
    )


def load(
    sources: str | Sequence[str],
    *,
    cache: Path | str,
    layout: Layout | str = Layout.SAFETENSORS,
    verify: Verify | str = Verify.CRC32,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ranks: Sequence[int] | None = None,
    endpoint_url: str = "",
    region: str = "",
    addressing_style: AddressingStyle | str = AddressingStyle.AUTO,
    ca_bundle: str = "",
    anonymous: bool = False,
    limits: Limits | None = None,
    expected_digest: str = "",
    environment: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    canceled: Callable[[], bool] = lambda: False,
) -> Report:
    """Brings a model that tensorizer serialized from object storage into a cache on this machine.

    Any number of processes may call it for the same model at once: one loads, the others wait and find a hit.

    Args:
        sources: ``s3://bucket/key.tensors``, ``s3://bucket/prefix/`` or ``https://…/x.tensors``; several are one model.
        cache: The cache's root directory, in shared memory or on a disk.
        layout: ``safetensors`` (shards that any engine reads) or ``tensorizer`` (the objects as they are).
        verify: ``crc32``, ``sha256``, ``size`` or ``none``.
        include: Shell patterns: those that end in ``.tensors`` choose among the tensor files, others add companions
            to the usual ones.
        exclude: Shell patterns of keys to leave out.
        ranks: Of a rank-sharded model, which to take; None: all.
        endpoint_url: Of an S3 server that is not AWS.
        region: Of the bucket.
        addressing_style: ``auto``, ``path`` or ``virtual``.
        ca_bundle: A PEM file of authorities to trust.
        anonymous: Don't sign requests.
        limits: How much of machine and network to take.
        expected_digest: Refuse any other revision.
        environment: Where to look for credentials and the like; None: ``os.environ``.
        on_progress: Told a few times a second how it goes.
        canceled: Asked several times a second whether to give up.

    Returns:
        The report; its ``path`` is the directory to give to an engine.

    Raises:
        TonnageError: Of the class that belongs to the reason.
    """
    plan = make_plan(
        sources,
        layout=layout,
        verify=verify,
        include=include,
        exclude=exclude,
        ranks=ranks,
        endpoint_url=endpoint_url,
        region=region,
        addressing_style=addressing_style,
        ca_bundle=ca_bundle,
        anonymous=anonymous,
        limits=limits,
        expected_digest=expected_digest,
    )
    found = os.environ if environment is None else environment
    return load_plan(plan, cache=cache, environment=found, on_progress=on_progress, canceled=canceled).report


def resolve(
    sources: str | Sequence[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    endpoint_url: str = "",
    region: str = "",
    anonymous: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Lists and pins what ``sources`` name, without loading it; arguments as for ``load``.

    Raises:
        TonnageError: Of the class that belongs to the reason.
    """
    plan = make_plan(
        sources, include=include, exclude=exclude, endpoint_url=endpoint_url, region=region, anonymous=anonymous
    )
    return resolve_plan(plan, environment=os.environ if environment is None else environment)
