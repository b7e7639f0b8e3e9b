"""Builds the plan of a load from the parsed command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cli.parser import UsageError, is_set
from tonnage.contract.plan import (
    AddressingStyle,
    ComputedBuffers,
    Layout,
    Limits,
    Plan,
    Verify,
    Weights,
    decode_plan,
    file_selection,
)
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    import argparse

    from tonnage.cache.cache import Cache
    from tonnage.contract.plan import Source

MAX_PLAN_BYTES = 64 << 20
"""Bytes; a plan that pins 100,000 objects takes a third of this."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLAN_OPTIONS = (
    "weights",
    "include",
    "exclude",
    "ranks",
    "layout",
    "computed_buffers",
    "verify",
    "verify_on_hit",
    "expect_digest",
    "endpoint_url",
    "region",
    "addressing_style",
    "ca_bundle",
    "anonymous",
    "requester_pays",
    "workers",
    "connections",
    "part_size",
    "segment_size",
    "bandwidth_limit",
    "timeout",
)
"""Options that correspond to fields of a plan."""


def plan_from_arguments(arguments: argparse.Namespace) -> Plan:
    """Returns the plan of ``--plan``, or builds it from SOURCE and options.

    Raises:
        InvalidPlan: There is neither, or the plan is invalid.
    """
    text = read_plan_text(arguments)
    return build_plan(arguments) if text is None else parse_plan(text)


def read_plan_text(arguments: argparse.Namespace) -> str | None:
    """Returns the JSON of ``--plan``, or None if sources are given instead.

    A SOURCE on the command line overrides a plan from the environment; ``--plan`` overrides all options from there.

    Raises:
        InvalidPlan: Both or neither are given, or the plan can't be read.
    """
    plan, from_environment = arguments.plan, arguments.from_environment
    if plan is not None and "plan" in from_environment and arguments.sources:
        plan = None
    if plan is None:
        if not arguments.sources:
            raise _usage(arguments, "No source given. Pass a SOURCE such as s3://bucket/prefix/, or --plan.")
        return None
    if arguments.sources:
        raise _usage(arguments, "SOURCE and --plan can't be combined: a plan lists its sources.")
    for option in _PLAN_OPTIONS:
        if is_set(getattr(arguments, option, None)) and option not in from_environment:
            flag = "--" + option.replace("_", "-")
            raise _usage(arguments, f"{flag} and --plan can't be combined: set it in the plan instead.")
    return plan if plan.lstrip().startswith("{") else _read_plan(plan)


def parse_plan(text: str) -> Plan:
    """Parses a plan.

    Raises:
        InvalidPlan: It is invalid, or has no sources.
    """
    plan = decode_plan(text)
    if not plan.sources:
        raise InvalidPlan("The plan has no sources. Add at least one to its list `sources`.")
    if plan.expected_digest:
        _check_digest(plan.expected_digest, where="expected_digest in the plan")
    return plan


def build_plan(arguments: argparse.Namespace) -> Plan:
    """Builds the plan from SOURCE and options.

    Raises:
        InvalidPlan: Options contradict each other.
    """
    digest = getattr(arguments, "expect_digest", None) or ""
    if digest:
        _check_digest(digest, where="--expect-digest")
    return Plan(
        sources=parse_source_arguments(arguments),
        expected_digest=digest,
        layout=arguments.layout or Layout.SAFETENSORS,
        computed_buffers=arguments.computed_buffers or ComputedBuffers.SEPARATE,
        verify=getattr(arguments, "verify", None) or Verify.BEST,
        verify_on_hit=bool(getattr(arguments, "verify_on_hit", None)),
        files=file_selection(
            arguments.include or (), arguments.exclude or (), arguments.ranks, arguments.weights or Weights.AUTO
        ),
        limits=Limits(
            workers=getattr(arguments, "workers", None) or 0,
            connections=getattr(arguments, "connections", None) or 0,
            part_size=getattr(arguments, "part_size", None) or 0,
            segment_size=getattr(arguments, "segment_size", None) or 0,
            bandwidth=getattr(arguments, "bandwidth_limit", None) or 0,
            timeout=arguments.timeout or 0.0,
            capacity=getattr(arguments, "capacity", None) or 0,
        ),
    )


def parse_source_arguments(arguments: argparse.Namespace) -> tuple[Source, ...]:
    """Returns the sources, from SOURCE and the options of the server.

    Raises:
        InvalidPlan: A source is invalid, or options contradict each other.
    """
    from tonnage.source.source_uri import parse_sources

    endpoint = arguments.endpoint_url or ""
    if arguments.ca_bundle and endpoint.startswith("http://"):
        raise InvalidPlan("--ca-bundle is for https, but --endpoint-url begins with http://.")
    return parse_sources(
        arguments.sources,
        endpoint=endpoint,
        region=arguments.region or "",
        addressing_style=arguments.addressing_style or AddressingStyle.AUTO,
        ca_bundle=arguments.ca_bundle or "",
        anonymous=arguments.anonymous,
        requester_pays=arguments.requester_pays,
    )


def is_path(word: str) -> bool:
    """Returns whether a word of the command line is a folder of this machine, which no SOURCE is."""
    return word.startswith(("/", "./", "../")) or word in {".", ".."}


def cache_or_folder(arguments: argparse.Namespace) -> Path | Cache:
    """Returns the folder of ``--cache``, or the target of ``--into``.

    What the command line has takes precedence over the environment.

    Raises:
        InvalidPlan: Options contradict each other.
    """
    from_environment = arguments.from_environment
    if not arguments.into or ("into" in from_environment and arguments.cache and "cache" not in from_environment):
        if arguments.overwrite and "overwrite" not in from_environment:
            raise _usage(arguments, "--overwrite is for --into: a cache has an entry for each revision.")
        return cache_folder(arguments)
    for option in ("cache", "capacity", "hold", "stream"):
        if is_set(getattr(arguments, option)) and option not in from_environment:
            raise _usage(arguments, f"--{option} and --into can't be combined: it is for a cache.")
    from tonnage.cache.flat import Folder  # not imported for a hit in a cache

    return Folder(arguments.into, overwrites=arguments.overwrite)


def cache_folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of ``--cache``.

    Raises:
        InvalidPlan: It is not given.
    """
    if not arguments.cache:
        raise _usage(arguments, "No cache given. Pass --cache DIR or set TONNAGE_CACHE.")
    return Path(arguments.cache)


def _read_plan(path: str) -> str:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_PLAN_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_PLAN_BYTES + 1)
        if len(data) > MAX_PLAN_BYTES:
            raise InvalidPlan(f"The plan {path} is larger than {MAX_PLAN_BYTES:,} bytes.")
        return data.decode()
    except OSError as error:
        raise InvalidPlan(f"The plan {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidPlan(f"The plan {path} is not valid UTF-8: byte {error.start} is invalid.") from error


def _check_digest(digest: str, *, where: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidPlan(f"{where} must be sha256: and 64 hexadecimal digits, as printed by `tonnage resolve`.")


def _usage(arguments: argparse.Namespace, message: str) -> UsageError:
    return UsageError(message, command=f"tonnage {arguments.command}")
