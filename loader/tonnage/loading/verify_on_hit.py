"""Verifies a published entry with hashes that are read from the source now, with this process's own identity.

For entries that others may have written: manifest, tensor table and file headers of the entry prove nothing, and CRC-32
doesn't either. What the source has no SHA-256 of is read from the source again, and compared.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.cache.cgroups import usable_cores
from tonnage.cache.filesystem import open_for_reading, read_range
from tonnage.contract import ChecksumAlgorithm, FileSelection, Progress, Verify, parse_checksum
from tonnage.errors import CacheDamaged, Interrupted, Timeout
from tonnage.format.safetensors import SafetensorsIndex
from tonnage.format.tensor_header import TensorHeader, parse_tensor_header
from tonnage.format.tensors_index import TensorsIndex
from tonnage.loading.cache_hit import find_source_record
from tonnage.loading.expected_bytes import REQUEST_BYTES, HashedObject, HashedRange, KnownRange, SourceRange, expect
from tonnage.loading.indexes import read_indexes
from tonnage.loading.manifest_builder import build_manifest_and_table
from tonnage.planning.blueprint import EntryShape
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.source.client import Client, Request
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import Manifest, TensorTable
    from tonnage.contract import Plan
    from tonnage.loading.expected_bytes import CopiedRange, Expectation
    from tonnage.planning.blueprint import Blueprint
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision

READ_BYTES = 1 << 20
"""Bytes of one read from a file."""
MAX_THREADS = 16
BATCH_BYTES = 64 << 20
"""Maximum bytes of the responses that are held in memory."""
GAP_BYTES = 64 << 10
"""Headers that are closer to each other are read with one request."""
REMEDY = (
    "Find out who may write to this cache; then remove the entry with `tonnage rm`, from a process that may, and load "
    "it again."
)


class Settings(NamedTuple):
    """How to read the source, and callbacks; as for ``fill_entry``."""

    environment: Mapping[str, str]
    deadline: float | None
    on_progress: Callable[[Progress], None]
    canceled: Callable[[], bool]
    on_retry: Callable[[], None]


def verify_with_source(
    entry: Entry, manifest: Manifest, resolved: ResolvedRevision, plan: Plan, settings: Settings
) -> int:
    """Verifies that an entry has exactly the files, bytes and records that a load of the revision would write now.

    Args:
        entry: The entry, whose use lock the caller holds.
        manifest: Its manifest, whose objects are all in the revision.
        resolved: The revision.
        plan: The plan of the load.
        settings: How to read the source.

    Returns:
        The bytes that were read from the source because it has no SHA-256 of them.

    Raises:
        CacheDamaged: Something differs. The message names the first difference that was found.
        TonnageError: The source can't be read, or is no longer the revision.
    """
    resolved, items = _recorded_objects(manifest, resolved, plan, settings)
    objects = read_indexes(
        resolved, items, deadline=settings.deadline, canceled=settings.canceled, on_retry=settings.on_retry
    )
    shape = EntryShape.of_plan(plan, revision=resolved.revision, digest=resolved.digest)
    blueprint = build_blueprint(objects, shape)
    _check_file_names(entry, blueprint)
    with Client(deadline=settings.deadline, canceled=settings.canceled, on_retry=settings.on_retry) as client:
        source = _SourceReader(client, resolved, items)
        stored, headers = _read_headers(blueprint, source)
        _check_records(entry, manifest, resolved, items, blueprint, headers)
        expected = expect(blueprint, stored, headers, _stated_hashes(items))
        _Comparison(entry, blueprint, expected, settings).run(source)
    return sum(each.end - each.start for each in expected.copied)


def _recorded_objects(
    manifest: Manifest, resolved: ResolvedRevision, plan: Plan, settings: Settings
) -> tuple[ResolvedRevision, list[ResolvedObject]]:
    """Returns the objects that an entry is made of, in the revision's order. Those of other ranks may be among them."""
    items = [item for item in resolved.objects if find_source_record(manifest, item) is not None]
    if len(items) < len(manifest.sources):
        sources = tuple(
            msgspec.structs.replace(source, objects=pinned.objects)
            for source, pinned in zip(plan.sources, resolved.sources, strict=True)
        )
        resolved = resolve(
            msgspec.structs.replace(plan, sources=sources, files=_of_all_ranks(plan.files)),
            environment=settings.environment,
            deadline=settings.deadline,
            canceled=settings.canceled,
            on_retry=settings.on_retry,
        )
        items = [item for item in resolved.objects if find_source_record(manifest, item) is not None]
    if len(items) != len(manifest.sources):
        raise CacheDamaged("The entry's manifest lists objects that the plan doesn't select.", remedy=REMEDY)
    return resolved, items


def _of_all_ranks(files: FileSelection) -> FileSelection:
    if files.ranks is None:
        return files
    return msgspec.structs.replace(files, ranks=msgspec.structs.replace(files.ranks, wanted=None))


def _stated_hashes(items: Sequence[ResolvedObject]) -> dict[int, str]:
    """Returns the SHA-256 in hex of those objects for which the source states one, by index.

    Pins that come from an entry have no checksum, so it is what the source has just stated, or the plan.
    """
    found = {at: parse_checksum(item.pin.checksum) for at, item in enumerate(items)}
    return {
        at: checksum.value.hex()
        for at, checksum in found.items()
        if checksum is not None and checksum.algorithm is ChecksumAlgorithm.SHA256 and not checksum.parts
    }


def _check_file_names(entry: Entry, blueprint: Blueprint) -> None:
    """Checks names and sizes of all files, without looking into the manifest."""
    found = entry.model_files()
    for file in blueprint.files:
        size = found.pop(file.path, None)
        if size != file.size:
            state = "is missing" if size is None else f"has {size:,} bytes"
            raise CacheDamaged(
                f"{entry.model_dir / file.path} {state}, and the source gives a file of {file.size:,} bytes there.",
                remedy=REMEDY,
            )
    if found:
        raise CacheDamaged(
            f"{entry.model_dir / min(found)} is not a file that the source gives with this plan.", remedy=REMEDY
        )


class _SourceReader:
    """Reads ranges of the pinned objects."""

    def __init__(self, client: Client, resolved: ResolvedRevision, items: Sequence[ResolvedObject]) -> None:
        self._client = client
        self._resolved = resolved
        self._items = items

    def read(self, ranges: Sequence[SourceRange]) -> list[bytes]:
        """Returns the bytes of each range; all of them are in memory."""
        responses = self._client.run(
            [
                Request(
                    target=self._items[at].target,
                    provider=self._resolved.providers[self._items[at].source],
                    start=start,
                    end=end,
                    limit=end - start,
                    exact=True,
                    pinned=True,
                )
                for at, start, end in ranges
            ]
        )
        for response in responses:
            if response.failure is not None:
                raise response.failure.to_exception()
        return [response.body for response in responses]


def _read_headers(
    blueprint: Blueprint, source: _SourceReader
) -> tuple[dict[tuple[int, int], bytes], dict[tuple[int, int], TensorHeader]]:
    """Returns the header of each tensor, as stored and parsed, by (object index, tensor index).

    A tensor of a safetensors file has an empty one, without hashes: its data is compared with the source.
    """
    wanted = [
        (SourceRange(index, tensor.header_offset, tensor.data_offset), (index, number))
        for index, found in enumerate(blueprint.objects)
        if isinstance(found.tensors_index, TensorsIndex)
        for number, tensor in enumerate(found.tensors_index.tensors)
    ]
    stored: dict[tuple[int, int], bytes] = {}
    position = 0
    for batch in _batches(coalesce([each for each, _ in wanted], gap=GAP_BYTES)):
        for span, content in zip(batch, source.read(batch), strict=True):
            while position < len(wanted) and _contains(span, wanted[position][0]):
                (_, start, end), key = wanted[position]
                stored[key] = content[start - span.start : end - span.start]
                position += 1
    headers = {
        (index, number): TensorHeader(0, {}, b"")
        for index, found in enumerate(blueprint.objects)
        if isinstance(found.tensors_index, SafetensorsIndex)
        for number in range(len(found.tensors_index.tensors))
    }
    for key, content in stored.items():
        found = blueprint.objects[key[0]]
        if isinstance(found.tensors_index, TensorsIndex):
            headers[key] = parse_tensor_header(
                content, found.tensors_index.tensors[key[1]], preamble=found.tensors_index.preamble, label=found.label
            )
    return stored, headers


def coalesce(ranges: Iterable[SourceRange], *, gap: int) -> list[SourceRange]:
    """Returns ranges that contain the given ones, which are in order. Ranges at most ``gap`` bytes apart become one."""
    found: list[SourceRange] = []
    for each in ranges:
        last = found[-1] if found else None
        if (
            last is not None
            and last.item == each.item
            and each.start - last.end <= gap
            and each.end - last.start <= REQUEST_BYTES
        ):
            found[-1] = last._replace(end=max(each.end, last.end))
        else:
            found.append(each)
    return found


def _contains(span: SourceRange, each: SourceRange) -> bool:
    return span.item == each.item and span.start <= each.start and each.end <= span.end


def _batches(ranges: Iterable[SourceRange]) -> Iterator[list[SourceRange]]:
    batch: list[SourceRange] = []
    size = 0
    for each in ranges:
        if batch and size + each.end - each.start > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.end - each.start
    if batch:
        yield batch


def _check_records(
    entry: Entry,
    manifest: Manifest,
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    blueprint: Blueprint,
    headers: Mapping[tuple[int, int], TensorHeader],
) -> None:
    """Checks the records of files and tensors in the entry: readers outside of pods find tensors by them."""
    published = entry.read_published()
    if published is None or published.manifest != manifest:
        raise CacheDamaged(f"{entry.manifest_path} was replaced while it was verified.", remedy=REMEDY)
    expected = build_manifest_and_table(
        resolved=resolved,
        loaded=items,
        blueprint=blueprint,
        headers=headers,
        verified={},
        object_checks={},
        requested_level=Verify.NONE,
        created=0,
        non_tensor_checksums={},
    )
    unhashed = _unhashed(*expected)
    if manifest.layout is not expected[0].layout or _records(*published, unhashed) != _records(*expected, unhashed):
        raise CacheDamaged(f"{entry.private_dir} describes other tensors than the source has.", remedy=REMEDY)


def _unhashed(manifest: Manifest, table: TensorTable) -> set[tuple[str, str, str]]:
    """Returns the tensors of which the source has no hash, so that an entry's CRC-32 is that of what was received."""
    return {
        (manifest.sources[tensor.source].place, manifest.sources[tensor.source].key, tensor.name)
        for tensor in table.tensors
        if not tensor.has_checksum
    }


def _records(manifest: Manifest, table: TensorTable, unhashed: set[tuple[str, str, str]]) -> set[tuple[object, ...]]:
    """Returns what describes files and tensors, independent of the order in which objects were loaded."""
    keys = [(source.place, source.key) for source in manifest.sources]
    files: set[tuple[object, ...]] = {
        (file.path, file.size, file.kind, file.rank, file.computed_buffers) for file in manifest.files
    }
    for tensor in table.tensors:
        file = manifest.files[tensor.file].path if tensor.file >= 0 else ""
        if (*keys[tensor.source], tensor.name) in unhashed:
            tensor = msgspec.structs.replace(tensor, crc32=None)  # noqa: PLW2901
        files.add(
            (keys[tensor.source], file, msgspec.structs.astuple(msgspec.structs.replace(tensor, source=0, file=0)))
        )
    return files


class _Comparison:
    """Compares an entry's files with what is expected of them."""

    def __init__(self, entry: Entry, blueprint: Blueprint, expected: Expectation, settings: Settings) -> None:
        self._paths = [entry.model_dir / file.path for file in blueprint.files]
        self._expected = expected
        self._settings = settings
        self._stopped = False
        self._done = 0
        ranges: list[HashedRange | CopiedRange | KnownRange] = [*expected.hashed, *expected.copied, *expected.known]
        spans = [(each.start, each.end) for each in ranges]
        spans += [(start, end) for each in expected.objects for _, start, end in each.ranges]
        self._total = sum(end - start for start, end in spans)

    def run(self, source: _SourceReader) -> None:
        """Compares everything.

        Raises:
            CacheDamaged: A byte differs.
            TonnageError: The source can't be read.
        """
        # Largest first, so that threads end at about the same time.
        hashed = sorted(self._expected.hashed, key=lambda each: each.start - each.end)
        with ThreadPoolExecutor(max(1, min(int(usable_cores()), MAX_THREADS))) as pool:
            try:
                results = [pool.submit(self._check_hash, each) for each in hashed]
                results += [pool.submit(self._check_object, each) for each in self._expected.objects]
                results += [pool.submit(self._check_known, each) for each in self._expected.known]
                places = {each.source: each for each in self._expected.copied}
                for batch in _batches(places):
                    for each, content in zip(batch, source.read(batch), strict=True):
                        place = places[each]
                        self._check_known(KnownRange(place.file, place.start, place.end, content))
                        self._advance()
                for result in results:
                    result.result()
                    self._advance()
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _advance(self) -> None:
        settings = self._settings
        settings.on_progress(Progress(phase="verifying", loaded_bytes=self._done, total_bytes=self._total))

    def _check_hash(self, expected: HashedRange) -> None:
        digest = hashlib.sha256(expected.prefix)
        for data in self._read(expected.file, expected.start, expected.end):
            digest.update(data)
        if digest.hexdigest() != expected.sha256:
            raise self._damaged(expected.file, expected.start, f"{expected.what} has another SHA-256")

    def _check_object(self, expected: HashedObject) -> None:
        digest = hashlib.sha256(expected.head)
        for file, start, end in expected.ranges:
            for data in self._read(file, start, end):
                digest.update(data)
        if digest.hexdigest() != expected.sha256:
            file, start, _ = expected.ranges[0]
            raise self._damaged(file, start, f"{expected.label} has another SHA-256")

    def _check_known(self, expected: KnownRange) -> None:
        at = 0
        for data in self._read(expected.file, expected.start, expected.end):
            part = bytes(len(data)) if expected.content is None else expected.content[at : at + len(data)]
            if data != part:
                raise self._damaged(expected.file, expected.start + at, "the bytes differ")
            at += len(data)

    def _damaged(self, file: int, offset: int, what: str) -> CacheDamaged:
        return CacheDamaged(
            f"{self._paths[file]} is not what the source has: {what}, at offset {offset:,}.", remedy=REMEDY
        )

    def _read(self, file: int, start: int, end: int) -> Iterator[memoryview]:
        path: Path = self._paths[file]
        try:
            descriptor = open_for_reading(path)
            try:
                for data in read_range(descriptor, start, end, memoryview(bytearray(READ_BYTES)), path=path):
                    self._check_interrupted()
                    yield data
                    self._done += len(data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CacheDamaged(f"{path} can't be read: {error.strerror}.", remedy=REMEDY) from error

    def _check_interrupted(self) -> None:
        if self._stopped or self._settings.canceled():
            raise Interrupted("The load was interrupted while it verified the entry with the source.")
        if self._settings.deadline is not None and time.monotonic() > self._settings.deadline:
            raise Timeout("The deadline passed while the load verified the entry with the source.")
