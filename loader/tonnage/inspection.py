"""Describes ``.tensors`` and safetensors files: their tensors, and the segments of a load.

Only what precedes the tensors of each file is read, no tensor data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.contract import ComputedBuffers, Layout
from tonnage.contract.selection import SAFETENSORS_SUFFIX
from tonnage.errors import DtypeUnsupported, FormatUnsupported, NameCollision, NoTensorFiles, ObjectNotFound
from tonnage.format.safetensors import LENGTH_BYTES, PREFIX_BYTES, header_length, parse_safetensors_index
from tonnage.format.tensors_index import PREAMBLE_BYTES, TensorsIndex, parse_index, parse_preamble
from tonnage.planning.blueprint import EntryShape, SourceObject
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.planning.tied_weights import find_tied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tonnage.contract import Plan
    from tonnage.format.tensors_index import TensorEntry
    from tonnage.planning.blueprint import Blueprint

KINDS = ("parameter", "buffer", "state_dict")
"""Names of the format's tensor kinds, by number."""


class TensorInspection(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor.

    ``dtype`` is the PyTorch name. ``bytes`` and ``offset`` describe its data in the file. ``kind`` is ``parameter``,
    ``buffer`` or ``state_dict``, as every tensor of a safetensors file. A ``meta`` tensor has a shape but no data.
    ``segment`` is an index into the file's segments.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int
    kind: str
    meta: bool
    segment: int


class SegmentInspection(msgspec.Struct, frozen=True, kw_only=True):
    """A contiguous range of the object that is written to one output file.

    ``start`` (inclusive) and ``end`` (exclusive) are byte offsets in the object; ``file`` is the output file.
    """

    file: str
    start: int
    end: int
    tensors: int


class FileInspection(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the model. Only files with tensors have the fields after ``rank``.

    ``format`` is ``tensorizer`` or ``safetensors``; ``version`` and ``flags`` are those of tensorizer's format.
    ``data_bytes`` are the bytes of the tensors, ``index_bytes`` those before them.
    """

    label: str
    path: str
    kind: str
    size: int
    etag: str = ""
    version_id: str = ""
    rank: int | None = None
    format: str = ""
    version: int = 0
    flags: int = 0
    encrypted: bool = False
    data_bytes: int = 0
    index_bytes: int = 0
    segments: tuple[SegmentInspection, ...] = ()
    tensors: tuple[TensorInspection, ...] = ()


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A whole model. ``revision`` and ``digest`` are empty for local files.

    ``layout`` is the layout of the segments: the requested one, unless it can't represent the model; a note then has
    the reason.
    """

    revision: str = ""
    digest: str = ""
    layout: Layout
    notes: tuple[str, ...] = ()
    files: tuple[FileInspection, ...] = ()


def inspect_sources(
    plan: Plan,
    *,
    environment: Mapping[str, str],
    deadline: float | None = None,
    canceled: Callable[[], bool] | None = None,
) -> Inspection:
    """Describes the files of a plan.

    Args:
        plan: Sources, selection of files, layout and segment size.
        environment: Environment variables with credentials, endpoints and proxies.
        deadline: Deadline as a time of ``time.monotonic()``; None: no limit.
        canceled: Called several times a second; returns whether to stop.

    Raises:
        TonnageError: The sources can't be read, or a file is damaged or not a tensorizer file.
    """
    from tonnage.loading.indexes import read_indexes
    from tonnage.source.resolve import resolve

    resolved = resolve(plan, environment=environment, deadline=deadline, canceled=canceled)
    objects = read_indexes(resolved, resolved.objects, deadline=deadline, canceled=canceled)
    shape = EntryShape.of_plan(plan, revision=resolved.revision, digest=resolved.digest)
    inspection = inspect_objects(objects, shape)
    files = tuple(
        msgspec.structs.replace(file, etag=item.pin.etag, version_id=item.pin.version_id)
        for file, item in zip(inspection.files, resolved.objects, strict=True)
    )
    return msgspec.structs.replace(
        inspection,
        revision=resolved.revision,
        digest=resolved.digest,
        notes=(*resolved.notes, *inspection.notes),
        files=files,
    )


def inspect_files(
    paths: Iterable[Path | str],
    *,
    layout: Layout = Layout.SAFETENSORS,
    segment_size: int = 0,
    computed_buffers: ComputedBuffers = ComputedBuffers.SEPARATE,
) -> Inspection:
    """Describes local files and, for a folder, all ``.tensors`` files below it; without those, all safetensors files.

    Raises:
        ObjectNotFound: A file does not exist or can't be read.
        NoTensorFiles: A folder has neither.
        FormatDamaged: A file is damaged. For other errors see ``tonnage.format``.
    """
    local = [(file, name) for path in paths for file, name in _local_files(Path(path))]
    objects = find_tied(
        [_local_object(file, name) for file, name in local],
        lambda ranges: [_read(local[at][0], start, end) for at, start, end in ranges],
    )
    shape = EntryShape(layout=layout, segment_size=segment_size, computed_buffers=computed_buffers)
    return inspect_objects(objects, shape)


def inspect_objects(objects: Sequence[SourceObject], shape: EntryShape) -> Inspection:
    """Describes objects from their indexes. Pure.

    Args:
        objects: The objects of one model.
        shape: As for ``build_blueprint``. If its layout can't represent the model, the Tensorizer layout is used, and
            a note has the reason.
    """
    notes: tuple[str, ...] = ()
    try:
        blueprint = build_blueprint(objects, shape)
    except (DtypeUnsupported, FormatUnsupported, NameCollision) as error:
        if shape.layout is Layout.TENSORIZER:
            raise
        notes = (f"The {shape.layout.value} layout can't represent this model: {error.message}",)
        blueprint = build_blueprint(objects, msgspec.structs.replace(shape, layout=Layout.TENSORIZER))
    return Inspection(
        layout=blueprint.layout,
        notes=(*notes, *blueprint.notes),
        files=tuple(_inspect_file(blueprint, index) for index in range(len(objects))),
    )


def _inspect_file(blueprint: Blueprint, index: int) -> FileInspection:
    source = blueprint.objects[index]
    if source.tensors_index is None:
        return FileInspection(
            label=source.label, path=source.path, kind="companion", size=source.size, rank=source.rank
        )
    segments = [segment for segment in blueprint.segments if segment.object_index == index]
    segment_of_tensor: dict[int, int] = {}
    segment_inspections = []
    for position, segment in enumerate(segments):
        tensor_indexes = {span.tensor_index for span in segment.spans if span.tensor_index >= 0}
        segment_of_tensor.update(dict.fromkeys(tensor_indexes, position))
        segment_inspections.append(
            SegmentInspection(
                file=blueprint.files[segment.file_index].path,
                start=segment.start,
                end=segment.end,
                tensors=len(tensor_indexes),
            )
        )
    preamble = source.tensors_index.preamble if isinstance(source.tensors_index, TensorsIndex) else None
    return FileInspection(
        label=source.label,
        path=source.path,
        kind="tensors",
        size=source.size,
        rank=source.rank,
        format="safetensors" if source.is_safetensors else "tensorizer",
        version=preamble.version if preamble is not None else 0,
        flags=preamble.flags if preamble is not None else 0,
        encrypted=source.tensors_index.encrypted,
        data_bytes=sum(entry.length for entry in source.tensors_index.tensors),
        index_bytes=source.tensors_index.body_offset,
        segments=tuple(segment_inspections),
        tensors=tuple(
            _inspect_tensor(entry, segment_of_tensor.get(tensor_index, 0))
            for tensor_index, entry in enumerate(source.tensors_index.tensors)
        ),
    )


def _inspect_tensor(entry: TensorEntry, segment: int) -> TensorInspection:
    return TensorInspection(
        name=entry.name,
        dtype=entry.dtype.torch_name,
        shape=entry.shape,
        bytes=entry.length,
        offset=entry.data_offset,
        kind=KINDS[entry.kind],
        meta=entry.is_meta,
        segment=segment,
    )


def _local_files(path: Path) -> list[tuple[Path, str]]:
    """Returns the files, and the path of each in its model."""
    if not path.is_dir():
        return [(path, path.name)]
    found = sorted(path.rglob("*.tensors")) or sorted(path.rglob(f"*{SAFETENSORS_SUFFIX}"))
    if not found:
        raise NoTensorFiles(f"{path} and its subfolders have no .tensors and no {SAFETENSORS_SUFFIX} file.")
    return [(file, file.relative_to(path).as_posix()) for file in found]


def _read(path: Path, start: int, end: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)
    except OSError as error:
        raise ObjectNotFound(f"{path} can't be read: {error.strerror}.") from error


def _local_object(path: Path, name: str) -> SourceObject:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            label = str(path)
            if path.suffix == SAFETENSORS_SUFFIX:
                head = file.read(PREFIX_BYTES)
                file.seek(0)
                head = file.read(LENGTH_BYTES + header_length(head, file_size=size, label=label))
                index = parse_safetensors_index(head, file_size=size, label=label)
                return SourceObject(label=label, path=name, size=size, tensors_index=index, head=head)
            head = file.read(PREAMBLE_BYTES)
            preamble = parse_preamble(head, object_size=size, label=label)
            rest = file.read(preamble.index_length)
    except OSError as error:
        raise ObjectNotFound(f"{path} can't be read: {error.strerror}.") from error
    tensors = parse_index(preamble, rest, object_size=size, label=label)
    return SourceObject(label=label, path=name, size=size, tensors_index=tensors, head=head + rest)
