"""One run of ``tonnage serialize``: find the source's files, write, verify and publish ``.tensors`` files."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from tonnage.contract import Layout, Plan, Progress, S3Source, Verify
from tonnage.contract.plan import Weights
from tonnage.contract.selection import key_directory
from tonnage.errors import InvalidPlan, escape_unprintable
from tonnage.loading.load import run_plan
from tonnage.serialize.layout import OutputFile, check_distinct, divide
from tonnage.serialize.local_target import LocalTarget
from tonnage.serialize.os_errors import translate_target_errors
from tonnage.serialize.s3_target import S3Target
from tonnage.serialize.source_files import LocalFile, find_files, open_groups
from tonnage.serialize.writer import KEY_BYTES, FileWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from tonnage.contract import FileSelection, Source
    from tonnage.serialize.source_files import Source as LocalSource

HEADER_BYTES = 512 * 1024
"""Room for the index and the headers of a file, to compare with free space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to serialize.

    Attributes:
        sources: Where to load the model from; empty if ``paths`` has it on this machine.
        paths: Folders and files on this machine.
        target: A folder on this machine, or the prefix of a bucket.
        files: Patterns of companions and of files to leave out, and ranks.
        scratch: Folder for intermediate files.
        file_size: Maximum bytes of tensor data in a file, unless one tensor is larger; 0: no maximum.
        key: The key to encrypt with, 32 bytes; None: don't encrypt.
        overwrite: Whether existing files may be replaced.
    """

    sources: tuple[Source, ...] = ()
    paths: tuple[Path, ...] = ()
    target: Path | S3Source
    files: FileSelection
    scratch: Path
    file_size: int = 0
    key: bytes | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was written. ``bytes`` are those of tensors; ``digest`` is empty for a target on this machine."""

    target: str
    files: tuple[str, ...]
    companions: tuple[str, ...]
    tensors: int
    bytes: int
    seconds: float
    verified: str
    encrypted: bool
    digest: str = ""
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """Where files are written; see ``LocalTarget`` and ``S3Target``."""

    label: str
    verified: str

    def check(self, names: Collection[str] | None) -> None: ...
    def begin(self, size: int) -> None: ...
    def location(self, name: str) -> Path: ...
    def add_companion(self, file: LocalFile) -> None: ...
    def add_weights(self, name: str, location: Path, on_bytes: Callable[[int], None]) -> None: ...
    def publish(self) -> str: ...
    def close(self) -> None: ...


class _Meter:
    """Turns bytes into progress, with the rate of the phase and the time that is left."""

    def __init__(self, total: int, tensors: int, on_progress: Callable[[Progress], None]) -> None:
        self._total = total
        self._tensors = tensors
        self._on_progress = on_progress
        self._done: dict[str, int] = {}
        self._verified = 0
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int], None]]:
        """Yields what is to be called with each number of bytes that is done."""
        started = time.monotonic()
        before = self._seconds.get(name, 0.0)

        def add(count: int) -> None:
            self._done[name] = self._done.get(name, 0) + count
            self._verified += name == "verifying"
            self._seconds[name] = before + time.monotonic() - started
            rate = self._done[name] / max(self._seconds[name], 0.001)
            self._on_progress(
                Progress(
                    phase=name,
                    loaded_bytes=self._done[name],
                    total_bytes=self._total,
                    bytes_per_second=rate,
                    remaining_seconds=max(self._total - self._done[name], 0) / max(rate, 1.0),
                    tensors_verified=self._verified,
                    tensors=self._tensors,
                )
            )

        yield add


def serialize(
    request: Request,
    *,
    environment: Mapping[str, str],
    on_progress: Callable[[Progress], None] = lambda _: None,
    canceled: Callable[[], bool] = lambda: False,
) -> Result:
    """Writes a model's ``.tensors`` files and companions to a target, and verifies them.

    The source is never changed. A target is visible as a whole or refused by loads: a folder appears by a rename, and a
    prefix is marked as unfinished until everything in it is uploaded and read back.

    Args:
        request: What to serialize.
        environment: AWS's variables and Tonnage's.
        on_progress: Called with the progress.
        canceled: Polled; True interrupts.

    Raises:
        TonnageError: Something failed. The class corresponds to the reason.
    """
    started = time.monotonic()
    if request.key is not None and len(request.key) != KEY_BYTES:
        raise InvalidPlan(f"The encryption key has {len(request.key)} bytes; it must have {KEY_BYTES}.")
    check_apart(request)
    with contextlib.ExitStack() as stack:
        target = _make_target(request, environment, on_progress, canceled)
        stack.callback(target.close)
        target.check(None)
        notes: tuple[str, ...] = ()
        paths: Sequence[Path] = request.paths
        if request.sources:
            with translate_target_errors(f"{request.scratch} can't be written"):
                cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="tonnage-source-", dir=request.scratch))
            paths, notes = _fetch(request, Path(cache), environment, on_progress, canceled)
        source = find_files(paths, request.files)
        files, tensors, total, largest = _plan_files(source, request)
        names = [each.path for each in files]
        check_distinct([*names, *(each.path for each in source.companions)])
        target.check([*names, *(each.path for each in source.companions)])
        target.begin(total + HEADER_BYTES * len(files) if isinstance(target, LocalTarget) else largest + HEADER_BYTES)
        for companion in source.companions:
            target.add_companion(companion)
        meter = _Meter(total, tensors, on_progress)
        _write_all(source, request, target, meter, canceled)
        digest = target.publish()
    return Result(
        target=target.label,
        files=tuple(names),
        companions=tuple(each.path for each in source.companions),
        tensors=tensors,
        bytes=total,
        seconds=round(time.monotonic() - started, 3),
        verified=target.verified,
        encrypted=request.key is not None,
        digest=digest,
        notes=tuple(map(escape_unprintable, (*notes, *source.notes))),
    )


def check_apart(request: Request) -> None:
    """Checks that source and target are not in each other: what is written must not become a part of the source.

    Raises:
        InvalidPlan: They are.
    """
    target = request.target
    if isinstance(target, Path):
        for path in request.paths:
            here, there = path.resolve(), target.resolve()
            if here.is_relative_to(there) or (path.is_dir() and there.is_relative_to(here)):
                raise InvalidPlan(f"SOURCE {path} and TARGET {target} are in each other.", remedy=_APART)
        return
    prefix = target.prefix or ""
    for source in request.sources:
        if isinstance(source, S3Source) and source.bucket == target.bucket and source.endpoint == target.endpoint:
            other = key_directory(source.prefix, source.keys or ())
            if prefix.startswith(other) or other.startswith(prefix):
                raise InvalidPlan(
                    f"SOURCE s3://{source.bucket}/{other} and TARGET s3://{target.bucket}/{prefix} are in each other.",
                    remedy=_APART,
                )


_APART = "Pass a folder or a prefix beside the source, such as one with the suffix -tensors."


def _make_target(
    request: Request,
    environment: Mapping[str, str],
    on_progress: Callable[[Progress], None],
    canceled: Callable[[], bool],
) -> Target:
    if isinstance(request.target, Path):
        return LocalTarget(request.target.absolute(), overwrite=request.overwrite)
    return S3Target(
        request.target,
        overwrite=request.overwrite,
        scratch=request.scratch,
        environment=environment,
        encrypted=request.key is not None,
        on_progress=on_progress,
        canceled=canceled,
    )


def _fetch(
    request: Request,
    cache: Path,
    environment: Mapping[str, str],
    on_progress: Callable[[Progress], None],
    canceled: Callable[[], bool],
) -> tuple[list[Path], tuple[str, ...]]:
    """Loads the source into the scratch folder, verified as every load. Returns its folder and the load's notes."""
    files = structs.replace(request.files, weights=Weights.SAFETENSORS)
    plan = Plan(sources=request.sources, layout=Layout.SAFETENSORS, verify=Verify.BEST, files=files)
    report = run_plan(plan, cache=cache, environment=environment, on_progress=on_progress, canceled=canceled).report
    return [Path(report.path)], report.notes


def _plan_files(source: LocalSource, request: Request) -> tuple[list[OutputFile], int, int, int]:
    """Returns the files to write, and the number of tensors, their bytes, and those of the largest file."""
    files: list[OutputFile] = []
    total, largest = 0, 0
    for group in open_groups(source.weights):
        lengths = {spec.name: spec.length for spec in group.specs}
        found = divide(group.path, group.specs, file_size=request.file_size)
        files += found
        total += sum(lengths.values())
        largest = max(largest, *(sum(lengths[name] for name in file.tensors) for file in found))
    return files, sum(len(file.tensors) for file in files), total, largest


def _write_all(
    source: LocalSource, request: Request, target: Target, meter: _Meter, canceled: Callable[[], bool]
) -> None:
    for group in open_groups(source.weights):
        for file in divide(group.path, group.specs, file_size=request.file_size):
            location = target.location(file.path)
            writer = FileWriter(location, file, group, request.key, canceled)
            with meter.phase("serializing") as on_bytes, translate_target_errors(f"{location} can't be written"):
                writer.write(on_bytes)
            with meter.phase("verifying") as on_bytes:
                writer.check(on_bytes)
            with meter.phase("uploading") as on_bytes:
                target.add_weights(file.path, location, on_bytes)
