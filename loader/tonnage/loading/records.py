"""What a load leaves behind in writing: the manifest and the table of tensors, from blueprint and outcome. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tonnage._version import __version__
from tonnage.cache.manifest import FileRecord, Manifest, SourceRecord, TensorRecord, TensorTable
from tonnage.contract import Verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.format.tensor_header import TensorHeader
    from tonnage.format.tensors_file import TensorsFile
    from tonnage.planning.blueprint import Blueprint
    from tonnage.source.resolve import Resolved, ResolvedObject


def source_record(
    resolved: ResolvedObject, tensors: TensorsFile | None, headers: Sequence[TensorHeader], verified: Verify
) -> SourceRecord:
    """Returns the manifest's record of an object that was loaded.

    Args:
        resolved: The object.
        tensors: Its index; None for a companion.
        headers: Of its tensors.
        verified: The weakest check that one of them had.
    """
    encrypted = tensors is not None and tensors.preamble.encrypted
    return SourceRecord(
        place=resolved.place,
        key=resolved.pin.key,
        size=resolved.pin.size,
        kind=resolved.kind,
        etag=resolved.pin.etag,
        version_id=resolved.pin.version_id,
        rank=resolved.rank,
        encrypted=encrypted,
        verified=verified,
        strongest=Verify.SIZE if encrypted or tensors is None else _strongest(headers),
        tensors=0 if tensors is None else len(tensors.tensors),
    )


def _strongest(headers: Sequence[TensorHeader]) -> Verify:
    """How far the file's hashes allow to check it: as far as its least protected tensor."""
    if all(header.expected_sha256 is not None for header in headers):
        return Verify.SHA256
    if all(header.expected_sha256 is not None or header.expected_crc32 is not None for header in headers):
        return Verify.CRC32
    return Verify.SIZE


def manifest_and_table(
    *,
    resolved: Resolved,
    loaded: Sequence[ResolvedObject],
    blueprint: Blueprint,
    headers: Mapping[tuple[int, int], TensorHeader],
    verified: Mapping[int, Verify],
    wanted: Verify,
    created: float,
) -> tuple[Manifest, TensorTable]:
    """Returns the records of what was just loaded.

    Args:
        resolved: The revision.
        loaded: The objects of this load, in the blueprint's order.
        blueprint: Where everything lies.
        headers: Of each tensor, by (object, tensor).
        verified: The weakest check of each object's tensors.
        wanted: What was asked for, which holds for objects without tensors as far as it can.
        created: Unix time.
    """
    at_most_size = min(wanted, Verify.SIZE, key=lambda level: level.strength)
    headers_of: dict[int, list[TensorHeader]] = {}
    for (index, _), header in headers.items():
        headers_of.setdefault(index, []).append(header)
    sources = tuple(
        source_record(
            item,
            blueprint.objects[index].tensors,
            headers_of.get(index, []),
            verified.get(index, at_most_size),
        )
        for index, item in enumerate(loaded)
    )
    files = tuple(
        FileRecord(path=file.path, size=file.size, kind=file.kind, source=file.object, rank=file.rank)
        for file in blueprint.files
    )
    manifest = Manifest(
        revision=resolved.revision,
        digest=resolved.digest,
        layout=blueprint.layout,
        verified=weakest(sources),
        created=created,
        tonnage_version=__version__,
        bytes=blueprint.file_bytes,
        notes=tuple(blueprint.notes),
        sources=sources,
        files=files,
    )
    return manifest, TensorTable(tensors=tuple(_tensor_records(blueprint, headers)))


def weakest(sources: Sequence[SourceRecord]) -> Verify:
    """Returns the weakest check of any object with tensors."""
    return min(
        (source.verified for source in sources if source.kind == "tensors"),
        key=lambda level: level.strength,
        default=Verify.SIZE,
    )


def upgraded(manifest: Manifest, level: Verify) -> Manifest:
    """Returns the manifest of an entry whose every byte has just been checked as far as ``level``."""
    sources = tuple(
        msgspec.structs.replace(
            source,
            verified=max(
                source.verified, min(level, source.strongest, key=lambda of: of.strength), key=lambda of: of.strength
            ),
        )
        for source in manifest.sources
    )
    return msgspec.structs.replace(manifest, sources=sources, verified=weakest(sources))


def merged(
    old: Manifest, old_table: TensorTable, new: Manifest, new_table: TensorTable
) -> tuple[Manifest, TensorTable]:
    """Returns the records of an entry that grew, as when more ranks of a sharded model were added."""
    sources, files = len(old.sources), len(old.files)
    moved_files = tuple(
        msgspec.structs.replace(file, source=None if file.source is None else file.source + sources)
        for file in new.files
    )
    moved_tensors = tuple(
        msgspec.structs.replace(
            tensor, source=tensor.source + sources, file=tensor.file if tensor.file < 0 else tensor.file + files
        )
        for tensor in new_table.tensors
    )
    manifest = msgspec.structs.replace(
        new,
        verified=weakest(old.sources + new.sources),
        bytes=old.bytes + new.bytes,
        notes=tuple(dict.fromkeys(old.notes + new.notes)),
        sources=old.sources + new.sources,
        files=old.files + moved_files,
        table=None,
    )
    return manifest, TensorTable(tensors=old_table.tensors + moved_tensors)


def _tensor_records(blueprint: Blueprint, headers: Mapping[tuple[int, int], TensorHeader]) -> list[TensorRecord]:
    records = []
    for place in sorted(blueprint.placements, key=lambda place: (place.object, place.tensor)):
        tensors = blueprint.objects[place.object].tensors
        if tensors is None:
            continue
        entry = tensors.tensors[place.tensor]
        header = headers[place.object, place.tensor]
        digest = None if tensors.preamble.encrypted else header.expected_sha256
        records.append(
            TensorRecord(
                name=entry.name,
                path=None if entry.path == (entry.name,) else entry.path,
                source=place.object,
                kind=entry.kind,
                dtype=entry.dtype.stored,
                shape=entry.shape,
                file=place.file,
                offset=place.offset,
                length=entry.length,
                header_offset=entry.header_offset,
                header=header.hashed,
                crc32=None if tensors.preamble.encrypted else header.expected_crc32,
                sha256=None if digest is None else digest.hex(),
            )
        )
    return records
