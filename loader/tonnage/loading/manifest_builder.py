"""Builds the manifest and the tensor table of a load from its blueprint and tensor headers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tonnage._version import __version__
from tonnage.cache.manifest import FileRecord, Manifest, SourceRecord, TensorRecord, TensorTable
from tonnage.cache.verified_by import no_checksum_note
from tonnage.contract import Verify
from tonnage.format.tensor_header import TensorHeader
from tonnage.format.tensors_index import TensorsIndex

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.format.file_index import FileIndex
    from tonnage.planning.blueprint import Blueprint
    from tonnage.planning.object_checks import ObjectCheck
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision


def unknown_headers(blueprint: Blueprint) -> dict[tuple[int, int], TensorHeader]:
    """Returns headers without hashes, for a load that has not ended."""
    header = TensorHeader(0, {}, b"")
    return {(place.object_index, place.tensor_index): header for place in blueprint.placements}


def source_record(
    resolved: ResolvedObject,
    tensors_index: FileIndex | None,
    headers: Sequence[TensorHeader],
    verified: Verify,
    check: ObjectCheck | None = None,
) -> SourceRecord:
    """Returns the manifest's record of a loaded object.

    Args:
        resolved: The object.
        tensors_index: Its index; None for a companion.
        headers: The headers of its tensors.
        verified: The lowest level at which one of them was verified.
        check: How the whole object was verified; None: it was not.
    """
    encrypted = tensors_index is not None and tensors_index.encrypted
    has_hashes = isinstance(tensors_index, TensorsIndex) and not encrypted
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
        strongest=_strongest(headers) if has_hashes else verified,
        checksum="" if check is None else str(check.checksum),
        tensors=0 if tensors_index is None else len(tensors_index.tensors),
    )


def _strongest(headers: Sequence[TensorHeader]) -> Verify:
    """Returns the highest level that the hashes of all tensors allow."""
    if all(header.expected_sha256 is not None for header in headers):
        return Verify.SHA256
    if all(header.expected_sha256 is not None or header.expected_crc32 is not None for header in headers):
        return Verify.CRC32
    return Verify.SIZE


def build_manifest_and_table(
    *,
    resolved: ResolvedRevision,
    loaded: Sequence[ResolvedObject],
    blueprint: Blueprint,
    headers: Mapping[tuple[int, int], TensorHeader],
    verified: Mapping[int, Verify],
    object_checks: Mapping[int, ObjectCheck],
    unverified: Collection[str] = (),
    requested_level: Verify,
    created: float,
    non_tensor_checksums: Mapping[int, tuple[int, int]],
) -> tuple[Manifest, TensorTable]:
    """Returns the manifest and tensor table of this load.

    Args:
        resolved: The revision.
        loaded: The objects of this load, in the blueprint's order.
        blueprint: The blueprint.
        headers: The header of each tensor, by (object index, tensor index).
        verified: The lowest level of each object's tensors, by object index.
        object_checks: For each object that matches a checksum of its source, how it was verified.
        unverified: Sentences on objects that could not be compared with their checksum.
        requested_level: The requested level. Objects without tensors reach it up to ``Verify.SIZE``.
        created: Unix time.
        non_tensor_checksums: Length and CRC-32 of the bytes of a file that belong to no tensor, by file index.
    """
    at_most_size = min(requested_level, Verify.SIZE, key=lambda level: level.strength)
    headers_of: dict[int, list[TensorHeader]] = {}
    for (index, _), header in headers.items():
        headers_of.setdefault(index, []).append(header)
    sources = tuple(
        source_record(
            item,
            blueprint.objects[index].tensors_index,
            headers_of.get(index, []),
            verified.get(index, at_most_size),
            object_checks.get(index),
        )
        for index, item in enumerate(loaded)
    )
    sizes = dict.fromkeys(range(len(blueprint.files)), 0)
    for place in blueprint.placements:
        tensors_index = blueprint.objects[place.object_index].tensors_index
        if place.file_index >= 0 and tensors_index is not None:
            sizes[place.file_index] += tensors_index.tensors[place.tensor_index].length
    files = tuple(
        FileRecord(
            path=file.path,
            size=file.size,
            kind=file.kind,
            source=file.object_index,
            rank=file.rank,
            computed_buffers=file.computed_buffers,
            rest_crc32=_complete(non_tensor_checksums.get(number), file.size - sizes[number]),
        )
        for number, file in enumerate(blueprint.files)
    )
    lacking = no_checksum_note(sources) if requested_level.strength >= Verify.CRC32.strength else ""
    manifest = Manifest(
        revision=resolved.revision,
        digest=resolved.digest,
        layout=blueprint.layout,
        computed_buffers=blueprint.computed_buffers,
        verified=weakest(sources),
        created=created,
        tonnage_version=__version__,
        bytes=blueprint.file_bytes,
        notes=tuple(note for note in (*blueprint.notes, *unverified, lacking) if note),
        served_by=blueprint.served_by,
        sources=sources,
        files=files,
    )
    return manifest, TensorTable(tensors=tuple(_tensor_records(blueprint, headers)))


def _complete(checksum: tuple[int, int] | None, size: int) -> int | None:
    """Returns a CRC-32 if it is over ``size`` bytes; otherwise None, and it is computed from the file."""
    return checksum[1] if checksum is not None and checksum[0] == size else None


def weakest(sources: Sequence[SourceRecord]) -> Verify:
    """Returns the lowest level of any object with tensors."""
    return min(
        (source.verified for source in sources if source.kind == "tensors"),
        key=lambda level: level.strength,
        default=Verify.SIZE,
    )


def upgrade_manifest(manifest: Manifest, level: Verify) -> Manifest:
    """Returns the manifest after all bytes of the entry were verified at ``level``."""
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


def merge_manifests(
    old: Manifest, old_table: TensorTable, new: Manifest, new_table: TensorTable
) -> tuple[Manifest, TensorTable]:
    """Returns manifest and table of an entry with added objects, such as more ranks of a sharded model.

    A file of both, which Tonnage generated, is the new one.
    """
    generated = {file.path for file in new.files if file.kind == "index"}
    kept = [number for number, file in enumerate(old.files) if file.kind != "index" or file.path not in generated]
    new_number = {number: at for at, number in enumerate(kept)}
    old_tensors = tuple(
        tensor if tensor.file < 0 else msgspec.structs.replace(tensor, file=new_number[tensor.file])
        for tensor in old_table.tensors
    )
    source_offset, file_offset = len(old.sources), len(kept)
    moved_files = tuple(
        msgspec.structs.replace(file, source=None if file.source is None else file.source + source_offset)
        for file in new.files
    )
    moved_tensors = tuple(
        msgspec.structs.replace(
            tensor,
            source=tensor.source + source_offset,
            file=tensor.file if tensor.file < 0 else tensor.file + file_offset,
        )
        for tensor in new_table.tensors
    )
    manifest = msgspec.structs.replace(
        new,
        verified=weakest(old.sources + new.sources),
        bytes=sum(old.files[number].size for number in kept) + new.bytes,
        notes=tuple(dict.fromkeys(old.notes + new.notes)),
        served_by=new.served_by or old.served_by,
        sources=old.sources + new.sources,
        files=(*(old.files[number] for number in kept), *moved_files),
        table=None,
    )
    return manifest, TensorTable(tensors=old_tensors + moved_tensors)


def _crc32(header: TensorHeader) -> int | None:
    return header.received_crc32 if header.expected_crc32 is None else header.expected_crc32


def _tensor_records(blueprint: Blueprint, headers: Mapping[tuple[int, int], TensorHeader]) -> list[TensorRecord]:
    records = []
    for placement in sorted(blueprint.placements, key=lambda place: (place.object_index, place.tensor_index)):
        tensors_index = blueprint.objects[placement.object_index].tensors_index
        if tensors_index is None:
            continue
        tensor = tensors_index.tensors[placement.tensor_index]
        header = headers[placement.object_index, placement.tensor_index]
        digest = None if tensors_index.encrypted else header.expected_sha256
        records.append(
            TensorRecord(
                name=tensor.name,
                path=None if tensor.path == (tensor.name,) else tensor.path,
                source=placement.object_index,
                kind=tensor.kind,
                dtype=tensor.dtype.stored_name,
                shape=tensor.shape,
                file=placement.file_index,
                offset=placement.offset,
                length=tensor.length,
                header_offset=tensor.header_offset,
                header=header.hash_prefix,
                crc32=None if tensors_index.encrypted else _crc32(header),
                sha256=None if digest is None else digest.hex(),
            )
        )
    return records
