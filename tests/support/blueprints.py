"""Blueprints of files on this machine, and their transfer in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.format.tensors_index import PREAMBLE_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import SourceObject
from tonnage.planning.segments import NOT_WRITTEN

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.planning.blueprint import Blueprint


def source_object(path: Path, *, key: str = "", rank: int | None = None) -> SourceObject:
    """Returns a file as an object of a bucket."""
    data = path.read_bytes()
    name = f"s3://bucket/{key or path.name}"
    preamble = parse_preamble(data, object_size=len(data), label=name)
    tensors = parse_index(preamble, data[PREAMBLE_BYTES:], object_size=len(data), label=name)
    return SourceObject(name, key or path.name, len(data), rank, tensors, data[: preamble.body_offset])


def fill(blueprint: Blueprint, objects: list[bytes]) -> dict[str, bytes]:
    """Transfers in memory; returns each file's bytes by its path."""
    files = [bytearray(file.size) for file in blueprint.files]
    for file, content in zip(blueprint.files, files, strict=True):
        content[: len(file.prefix)] = file.prefix
    for segment in blueprint.segments:
        for piece in segment.pieces(segment.start, segment.end):
            if piece.target_offset != NOT_WRITTEN:
                data = objects[segment.object_index][piece.start : piece.end]
                files[piece.file_index][piece.target_offset : piece.target_offset + len(data)] = data
    return {file.path: bytes(content) for file, content in zip(blueprint.files, files, strict=True)}
