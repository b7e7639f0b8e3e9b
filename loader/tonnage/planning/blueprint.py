"""The blueprint of a cache entry: its files and the segments that fill them, decided before a tensor's byte moves.

In the Safetensors layout each segment becomes one complete safetensors file, whose header is known from the index of
the ``.tensors`` file. In the Tensorizer layout all segments of an object go into one file, byte for byte.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.contract import FileKind, Layout
from tonnage.errors import FormatUnsupported, NameCollision
from tonnage.format.safetensors import ShardTensor, alignment_order, build_shard_header
from tonnage.format.tensor_names import check_flat_names
from tonnage.planning.partition import linear_partition
from tonnage.planning.segments import NO_TENSOR, NOT_WRITTEN, Segment, Span, SpanRole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage.format.tensors_index import TensorEntry, TensorsIndex

MIB = 1 << 20
MAX_SEGMENT_BYTES = 4 << 30
"""Default upper bound of a segment in bytes: about the shard size that people know from model hubs."""
MIN_SEGMENT_BYTES = 256 * MIB
"""A model is cut in up to ``TARGET_SEGMENT_COUNT`` pieces of at least this size, whoever loads it: files don't depend
on the machine."""
TARGET_SEGMENT_COUNT = 16
PATHS_KEY = "tonnage.paths"
"""Key of a shard's metadata: JSON, flat name to nested path, for the names that are nested."""
META_KEY = "tonnage.meta"
"""Key of a shard's metadata: JSON, flat name to ``[dtype, item size, shape]``, for tensors without data."""
NO_FILE = -1
"""``TensorPlacement.file_index`` of a meta tensor, which has no bytes."""
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of the revision.

    Attributes:
        label: How messages call it, for example ``s3://bucket/key``.
        path: Its safe relative path below the prefix.
        size: Bytes.
        rank: Of a rank-sharded model, else None.
        tensors_index: Its index; None for a companion.
        head: The object's first bytes up to the end of the index; empty for a companion.
    """

    label: str
    path: str
    size: int
    rank: int | None = None
    tensors_index: TensorsIndex | None = None
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of the entry.

    Attributes:
        path: Relative to ``model/``.
        size: Final size in bytes.
        kind: ``shard``, ``index``, ``object`` or ``companion``, as in the manifest.
        object_index: Index of the source object; None for what Tonnage writes of its own.
        rank: Of a rank-sharded model, else None.
        prefix: Bytes at the file's start that are known beforehand.
    """

    path: str
    size: int
    kind: FileKind
    object_index: int | None
    rank: int | None
    prefix: bytes


@dataclass(frozen=True, slots=True)
class TensorPlacement:
    """Where a tensor lies in the cache: ``file_index`` -1 for a meta tensor, which has no bytes."""

    object_index: int
    tensor_index: int
    file_index: int
    offset: int


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All files, segments and placements of an entry, and remarks for the report."""

    layout: Layout
    objects: tuple[SourceObject, ...]
    files: tuple[OutputFile, ...]
    segments: tuple[Segment, ...]
    placements: tuple[TensorPlacement, ...]
    notes: tuple[str, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(segment.size for segment in self.segments)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def segment_count(size: int, segment_size: int) -> int:
    """Returns into how many segments ``size`` bytes are cut.

    Args:
        size: Bytes of tensor data.
        segment_size: The largest segment wanted, in bytes; 0 for the default.
    """
    if segment_size:
        return max(1, -(-size // segment_size))
    return max(1, -(-size // MAX_SEGMENT_BYTES), min(TARGET_SEGMENT_COUNT, size // MIN_SEGMENT_BYTES))


def build_blueprint(objects: Sequence[SourceObject], *, layout: Layout, segment_size: int = 0) -> Blueprint:
    """Decides the entry's files and segments.

    Args:
        objects: All objects to load, in the revision's order.
        layout: The form in the cache.
        segment_size: Largest segment in bytes, as far as tensors allow; 0 for the default.

    Raises:
        DtypeUnsupported: The safetensors format can't say a tensor's dtype.
        NameCollision: Two tensors or files want the same name.
        FormatUnsupported: An encrypted file, in the Safetensors layout.
    """
    builder = _BlueprintBuilder(list(objects))
    for index, source in enumerate(objects):
        if source.tensors_index is None:
            builder.add_companion(index)
        elif layout is Layout.TENSORIZER:
            builder.add_tensorizer_object(index, source.tensors_index, segment_size)
    if layout is Layout.SAFETENSORS:
        for directory, members in _groups(objects).items():
            builder.add_shards(directory, members, segment_size)
    builder.check_paths()
    return Blueprint(
        layout,
        tuple(objects),
        tuple(builder.files),
        tuple(builder.segments),
        tuple(builder.placements),
        tuple(builder.notes),
    )


def _groups(objects: Sequence[SourceObject]) -> dict[tuple[str, int | None], list[int]]:
    """Objects whose shards share one directory and one numbering: by folder, and by rank where there are ranks."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for index, source in enumerate(objects):
        if source.tensors_index is not None:
            groups.setdefault((posixpath.dirname(source.path), source.rank), []).append(index)
    return groups


class _BlueprintBuilder:
    """The files and segments so far."""

    def __init__(self, objects: list[SourceObject]) -> None:
        self.objects = objects
        self.files: list[OutputFile] = []
        self.segments: list[Segment] = []
        self.placements: list[TensorPlacement] = []
        self.notes: list[str] = []

    def add_companion(self, index: int) -> None:
        """A companion: one file, one segment, checked by its size and the pinned revision."""
        source = self.objects[index]
        self.files.append(OutputFile(source.path, source.size, "companion", index, source.rank, b""))
        if source.size:
            self._add_segment(index, 0, source.size, [Span(source.size, SpanRole.OPAQUE, NO_TENSOR, 0)])

    def add_tensorizer_object(self, index: int, tensors_index: TensorsIndex, segment_size: int) -> None:
        """The Tensorizer layout: one file with the object's bytes, filled by several segments."""
        source = self.objects[index]
        body = tensors_index.preamble.body_offset
        self.files.append(OutputFile(source.path, source.size, "object", index, source.rank, source.head[:body]))
        data = SpanRole.OPAQUE if tensors_index.preamble.encrypted else SpanRole.DATA
        if tensors_index.preamble.encrypted:
            self.notes.append(f"{source.label} is encrypted: checked by size and revision only.")
        ranges = _partition_tensors(tensors_index, segment_size)
        for position, (first, last) in enumerate(ranges):
            spans: list[Span] = []
            for number in range(first, last):
                entry = tensors_index.tensors[number]
                spans.append(Span(entry.data_offset, SpanRole.HEADER, number, entry.header_offset))
                if entry.length:
                    spans.append(Span(entry.data_end, data, number, entry.data_offset))
                self.placements.append(TensorPlacement(index, number, len(self.files) - 1, entry.data_offset))
            start = tensors_index.tensors[first].header_offset if last > first else body
            end = tensors_index.tensors[last - 1].data_end if last > first else body
            if position == len(ranges) - 1:
                spans.append(Span(tensors_index.body_end, SpanRole.TAIL, NO_TENSOR, end))
                if source.size > tensors_index.body_end:
                    spans.append(Span(source.size, SpanRole.OPAQUE, NO_TENSOR, tensors_index.body_end))
                end = source.size
            self._add_segment(index, start, end, spans)

    def add_shards(self, group: tuple[str, int | None], members: list[int], segment_size: int) -> None:
        """The Safetensors layout of one directory or rank: a shard per segment, and an index over them."""
        directory, rank = group
        self._check_names(members)
        cuts = [
            (index, cut) for index in members for cut in _partition_tensors(self._tensors_index(index), segment_size)
        ]
        weight_map: dict[str, str] = {}
        total = 0
        for number, (index, cut) in enumerate(cuts):
            name = _shard_name(number, len(cuts), rank)
            tensors_index = self._tensors_index(index)
            self._add_shard(index, cut, posixpath.join(directory, name), is_last=cut[1] == len(tensors_index.tensors))
            for entry in tensors_index.tensors[cut[0] : cut[1]]:
                if not entry.is_meta:
                    weight_map[entry.name] = name
                    total += entry.length
        if rank is None and len(cuts) > 1:
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1).encode()
            path = posixpath.join(directory, "model" + INDEX_SUFFIX)
            self.files.append(OutputFile(path, len(text), "index", None, None, text))

    def _add_shard(self, index: int, cut: tuple[int, int], path: str, *, is_last: bool) -> None:
        source, tensors_index = self.objects[index], self._tensors_index(index)
        stored = [number for number in range(*cut) if not tensors_index.tensors[number].is_meta]
        shard = []
        for number in stored:
            entry = tensors_index.tensors[number]
            shard.append(ShardTensor(entry.name, entry.dtype, entry.shape, entry.length))
        order = alignment_order(shard)
        metadata = {"format": "pt", **_extra_metadata(tensors_index.tensors[cut[0] : cut[1]])}
        header, offsets = build_shard_header([shard[at] for at in order], metadata=metadata, label=source.label)
        target = {stored[at]: offset for at, offset in zip(order, offsets, strict=True)}
        size = len(header) + sum(tensor.length for tensor in shard)
        self.files.append(OutputFile(path, size, "shard", index, source.rank, header))
        spans: list[Span] = []
        for number in range(*cut):
            entry = tensors_index.tensors[number]
            spans.append(Span(entry.data_offset, SpanRole.HEADER, number, NOT_WRITTEN))
            if entry.length:
                spans.append(Span(entry.data_end, SpanRole.DATA, number, target[number]))
            file = NO_FILE if entry.is_meta else len(self.files) - 1
            self.placements.append(TensorPlacement(index, number, file, target.get(number, 0)))
        start = tensors_index.tensors[cut[0]].header_offset if cut[1] > cut[0] else tensors_index.preamble.body_offset
        end = tensors_index.tensors[cut[1] - 1].data_end if cut[1] > cut[0] else start
        if is_last:
            spans.append(Span(tensors_index.body_end, SpanRole.TAIL, NO_TENSOR, NOT_WRITTEN))
            end = tensors_index.body_end
        self._add_segment(index, start, end, spans)

    def _check_names(self, members: Iterable[int]) -> None:
        seen: dict[str, str] = {}
        for index in members:
            label, tensors_index = self.objects[index].label, self._tensors_index(index)
            if tensors_index.preamble.encrypted:
                raise FormatUnsupported(f"{label} is encrypted; only the Tensorizer layout can hold it.")
            check_flat_names(tensors_index.tensors, label=label, seen=seen)

    def check_paths(self) -> None:
        """Refuses two files at one path, and a file where another needs a directory."""
        owners: dict[str, str] = {}
        for file in self.files:
            label = "a file that Tonnage writes" if file.object_index is None else self.objects[file.object_index].label
            if file.path in owners:
                raise NameCollision(f"Two files want the path {file.path!r}: {owners[file.path]} and {label}.")
            owners[file.path] = label
        for path, label in owners.items():
            parent = posixpath.dirname(path)
            while parent:
                if parent in owners:
                    raise NameCollision(f"{parent!r} would be a file ({owners[parent]}) and a directory ({label}).")
                parent = posixpath.dirname(parent)

    def _tensors_index(self, index: int) -> TensorsIndex:
        tensors_index = self.objects[index].tensors_index
        if tensors_index is None:
            raise ValueError(f"object {index} has no tensors")
        return tensors_index

    def _add_segment(self, index: int, start: int, end: int, spans: list[Span]) -> None:
        self.segments.append(
            Segment(len(self.segments), index, len(self.files) - 1, start, end, tuple(spans)),
        )


def _extra_metadata(entries: Sequence[TensorEntry]) -> dict[str, str]:
    """What safetensors has no words for, so that whoever sees the shards alone can have it too."""
    paths = {entry.name: entry.path for entry in entries if len(entry.path) > 1}
    metas = {
        entry.name: [entry.dtype.torch_name, entry.dtype.item_size, entry.shape] for entry in entries if entry.is_meta
    }
    found = {PATHS_KEY: paths, META_KEY: metas}
    return {key: json.dumps(value) for key, value in found.items() if value}


def _partition_tensors(tensors_index: TensorsIndex, segment_size: int) -> list[tuple[int, int]]:
    """Ranges of tensor indexes, one a segment; one empty range for a file without tensors."""
    weights = [entry.data_end - entry.header_offset for entry in tensors_index.tensors]
    if not weights:
        return [(0, 0)]
    return linear_partition(weights, segment_count(sum(weights), segment_size))


def _shard_name(number: int, count: int, rank: int | None) -> str:
    """The names that engines look for: the index convention's, or vLLM's ``sharded_state`` for ranks."""
    if rank is not None:
        return f"model-rank-{rank}-part-{number}.safetensors"
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
