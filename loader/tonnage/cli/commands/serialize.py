"""``tonnage serialize``."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cli import output
from tonnage.cli.parser import UsageError
from tonnage.cli.plan_arguments import parse_source_arguments
from tonnage.cli.progress_output import progress_view
from tonnage.contract.plan import S3Source, file_selection
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InvalidPlan, escape_unprintable

if TYPE_CHECKING:
    import argparse

    from tonnage.cli.invocation import Invocation
    from tonnage.serialize.run import Request, Result

_PACKAGES = ("torch", "tensorizer", "boto3")
MAX_KEY_BYTES = 64


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Writes ``.tensors`` files from a checkpoint to a folder or a bucket, and verifies them.

    Raises:
        TonnageError: It failed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidPlan(f"tonnage serialize needs {', '.join(missing)}.", remedy="pip install 'tonnage[serialize]'")
    *sources, target = arguments.sources
    request = _request(arguments, sources, target)
    from tonnage.serialize.run import serialize

    with progress_view(arguments.progress) as view:
        result = serialize(
            request,
            environment=invocation.environment,
            on_progress=view.show,
            canceled=invocation.cancellation.canceled,
        )
    if arguments.json:
        output.write_json(result)
    else:
        print(_summary(result))
    return 0


def _request(arguments: argparse.Namespace, sources: list[str], target: str) -> Request:
    if not sources:
        raise _usage("Only one of SOURCE and TARGET is given.")
    local = [word for word in sources if "://" not in word]
    if local and len(local) < len(sources):
        raise _usage("Files on this machine and URLs can't be combined; serialize them separately.")
    arguments.sources = sources
    parsed = () if local else parse_source_arguments(arguments)
    written_to = _target(arguments, target)
    key = _read_key(arguments.encryption_key) if arguments.encryption_key else None
    from tonnage.serialize.run import Request  # imports torch, which takes seconds

    return Request(
        sources=parsed,
        paths=tuple(map(Path, local)),
        target=written_to,
        files=file_selection(arguments.include or (), arguments.exclude or (), arguments.ranks),
        scratch=Path(arguments.scratch or tempfile.gettempdir()),
        file_size=arguments.file_size or 0,
        key=key,
        overwrite=arguments.overwrite,
    )


def _target(arguments: argparse.Namespace, target: str) -> Path | S3Source:
    scheme, found, rest = target.partition("://")
    if not found:
        return Path(target)
    bucket, _, prefix = rest.partition("/")
    if scheme.lower() != "s3" or not bucket or not prefix.strip("/"):
        raise _usage(f"TARGET must be a folder or s3://bucket/prefix/, not {escape_unprintable(target)[:200]!r}.")
    endpoint = arguments.target_endpoint_url
    return S3Source(
        bucket=bucket,
        prefix=prefix.rstrip("/") + "/",
        endpoint=(arguments.endpoint_url if endpoint is None else endpoint) or "",
        region=arguments.target_region or arguments.region or "",
        ca_bundle=arguments.ca_bundle or "",
    )


def _read_key(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidPlan(f"The encryption key {path} can't be read: {error.strerror}.") from error


def _usage(message: str) -> UsageError:
    return UsageError(message, command="tonnage serialize")


def _summary(result: Result) -> str:
    """Returns what was written, how it was verified, notes, and the digest."""
    tensors = "1 tensor" if result.tensors == 1 else f"{result.tensors:,} tensors"
    files = "1 file" if len(result.files) == 1 else f"{len(result.files)} files"
    what = f"Wrote {result.target}: {tensors}, {human_bytes(result.bytes)} in {files}"
    what += f", and {len(result.companions)} companions" if result.companions else ""
    what += f", in {result.seconds:.1f} s; {result.verified}"
    what += ", encrypted" if result.encrypted else ""
    lines = [what, *(f"  note: {note}" for note in result.notes)]
    return "\n".join([*lines, f"  digest {result.digest}"] if result.digest else lines)
