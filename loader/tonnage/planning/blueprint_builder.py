"""Computes a blueprint from the indexes of a revision's objects."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.contract import ComputedBuffers, Layout
from tonnage.errors import FormatUnsupported, NameCollision
from tonnage.format.known_tensors import is_computed_buffer
from tonnage.format.safetensors import SafetensorsIndex, ShardTensor, alignment_order, build_shard_header
from tonnage.format.tensor_names import check_flat_names
from tonnage.planning.blueprint import (
    DIGEST_KEY,
    META_KEY,
    NO_FILE,
    PATHS_KEY,
    REVISION_KEY,
    Blueprint,
    EntryShape,
    OutputFile,
    SourceObject,
    TensorPlacement,
    segment_count,
)
from tonnage.planning.file_names import (
    MODEL,
    Stem,
    rank_computed_buffers,
    rank_shard,
    rank_tied_weights,
    source_stem,
)
from tonnage.planning.notes import names_notes, ranks_note, separated_note, tied_note, vllm_command, vllm_note
from tonnage.planning.partition import linear_partition
from tonnage.planning.safetensors_files import check_duplicate_tensors, find_unchanged
from tonnage.planning.segments import FILE_OF_SEGMENT, NO_TENSOR, NOT_WRITTEN, Segment, Span, SpanRole
from tonnage.planning.vllm_state import SHARDED_STATE, refusal_files, vllm_load_format
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tonnage.contract import FileKind
    from tonnage.format.file_index import FileIndex
    from tonnage.format.tensors_index import TensorEntry


def build_blueprint(objects: Sequence[SourceObject], shape: EntryShape) -> Blueprint:
    """Computes the entry's files and segments.

    Args:
        objects: All objects to load, in the revision's order.
        shape: The layout, and the sizes and names of its files.

    Raises:
        DtypeUnsupported: The safetensors format doesn't support a tensor's dtype.
        NameCollision: Two tensors or files would have the same name.
        FormatUnsupported: An encrypted file in the Safetensors layout, or a safetensors file in the Tensorizer layout.
    """
    layout, segment_size, computed_buffers = shape.layout, shape.segment_size, shape.computed_buffers
    identity = {key: value for key, value in ((REVISION_KEY, shape.revision), (DIGEST_KEY, shape.digest)) if value}
    builder = _BlueprintBuilder(
        list(objects), identity=identity, separates=computed_buffers is ComputedBuffers.SEPARATE
    )
    unchanged = find_unchanged(objects, layout, segment_size)
    for index, source in enumerate(objects):
        if source.tensors_index is None:
            builder.add_companion(index)
        elif index in unchanged:
            builder.add_unchanged(index, source.tensors_index, segment_size)
    check_duplicate_tensors(objects[index] for index in sorted(unchanged))
    if layout is Layout.SAFETENSORS:
        groups = _groups(objects, unchanged)
        for group, members in groups.items():
            shares_folder = any(other.directory == group.directory for other in groups if other is not group)
            builder.add_shards(group, members, segment_size, shares_folder=shares_folder)
    builder.check_paths()
    builder.add_notes(layout)
    return Blueprint(
        layout,
        computed_buffers if layout is Layout.SAFETENSORS else None,
        tuple(objects),
        tuple(builder.files),
        tuple(builder.segments),
        tuple(builder.placements),
        tuple(builder.notes),
        builder.served_by,
    )


class _Group(NamedTuple):
    """What objects have in common whose shards share a numbering.

    Attributes:
        directory: Their folder.
        rank: Their rank; 0 for a file of one rank that vLLM serialized.
        stem: What the names of their shards begin with.
        load_format: vLLM's load format, if vLLM serialized them; otherwise empty.
    """

    directory: str
    rank: int | None
    stem: Stem
    load_format: str

    def shard(self, number: int, count: int) -> str:
        """Returns the path of shard ``number`` of ``count``."""
        if self.rank is None:
            name = self.stem.shard(number, count)
        else:
            name = rank_shard(self.rank, number, for_sharded_state=self.load_format in {"", SHARDED_STATE})
        return posixpath.join(self.directory, name)

    @property
    def computed_buffers(self) -> str:
        """Path of the file of computed buffers."""
        name = self.stem.computed_buffers if self.rank is None else rank_computed_buffers(self.rank)
        return posixpath.join(self.directory, name)

    @property
    def tied_weights(self) -> str:
        """Path of the file of second names of tensors."""
        name = self.stem.tied_weights if self.rank is None else rank_tied_weights(self.rank)
        return posixpath.join(self.directory, name)


def _groups(objects: Sequence[SourceObject], unchanged: Collection[int]) -> dict[_Group, list[int]]:
    paths = frozenset(source.path for source in objects)
    serialized: dict[str, list[SourceObject]] = {}
    for source in objects:
        if source.is_vllm_serialized:
            serialized.setdefault(posixpath.dirname(source.path), []).append(source)
    load_formats = {directory: vllm_load_format(members) for directory, members in serialized.items()}
    groups: dict[_Group, list[int]] = {}
    for index, source in enumerate(objects):
        if source.tensors_index is None or index in unchanged:
            continue
        directory = posixpath.dirname(source.path)
        load_format = load_formats[directory] if source.is_vllm_serialized else ""
        rank = 0 if load_format and source.rank is None else source.rank
        stem = source_stem(source.path, paths) if rank is None else Stem(MODEL)
        groups.setdefault(_Group(directory, rank, stem, load_format), []).append(index)
    return groups


class _OwnFile(Record, frozen=True):
    """A file of tensors that engines shall not see, with its tensors and their offsets by (object, tensor)."""

    file: OutputFile
    entries: dict[tuple[int, int], TensorEntry]
    offsets: dict[tuple[int, int], int]


class _BlueprintBuilder:
    """Collects files, segments and placements.

    Args:
        objects: All objects.
        identity: Metadata of each shard that names the revision.
        separates: Whether computed buffers go into a file of their own.
    """

    def __init__(self, objects: list[SourceObject], *, identity: dict[str, str], separates: bool) -> None:
        self.objects = objects
        self._identity = identity
        self._separates = separates
        self._separated: list[TensorEntry] = []
        self._tied: list[TensorEntry] = []
        self.files: list[OutputFile] = []
        self.segments: list[Segment] = []
        self.placements: list[TensorPlacement] = []
        self.notes: list[str] = []
        self.served_by = ""

    def add_companion(self, index: int) -> None:
        """Adds a companion: one file and one segment, verified by size and pinned revision only."""
        source = self.objects[index]
        self.notes += source.notes
        self.files.append(OutputFile(source.path, source.size, "companion", index, source.rank, b""))
        if source.size:
            self._add_segment(index, 0, source.size, [Span(source.size, SpanRole.OPAQUE, NO_TENSOR, 0)])

    def add_unchanged(self, index: int, tensors_index: FileIndex, segment_size: int) -> None:
        """Adds an object that stays as it is: one file, filled by several segments."""
        source = self.objects[index]
        body = tensors_index.body_offset
        kind: FileKind = "shard" if source.is_safetensors else "object"
        self.files.append(OutputFile(source.path, source.size, kind, index, source.rank, source.head[:body]))
        data = SpanRole.OPAQUE if tensors_index.encrypted else SpanRole.DATA
        if tensors_index.encrypted:
            self.notes.append(f"{source.label} is encrypted, so the hashes in it are not compared with its bytes.")
        ranges = _partition_tensors(tensors_index, segment_size)
        for position, (first, last) in enumerate(ranges):
            spans: list[Span] = []
            for number in range(first, last):
                entry = tensors_index.tensors[number]
                if entry.data_offset > entry.header_offset:
                    spans.append(Span(entry.data_offset, SpanRole.HEADER, number, entry.header_offset))
                if entry.length:
                    spans.append(Span(entry.data_end, data, number, entry.data_offset))
                self.placements.append(TensorPlacement(index, number, len(self.files) - 1, entry.data_offset))
            start = tensors_index.tensors[first].header_offset if last > first else body
            end = tensors_index.tensors[last - 1].data_end if last > first else body
            if position == len(ranges) - 1:
                if tensors_index.body_end > end:
                    spans.append(Span(tensors_index.body_end, SpanRole.TAIL, NO_TENSOR, end))
                if source.size > tensors_index.body_end:
                    spans.append(Span(source.size, SpanRole.OPAQUE, NO_TENSOR, tensors_index.body_end))
                end = source.size
            self._add_segment(index, start, end, spans)

    def add_shards(self, group: _Group, members: list[int], segment_size: int, *, shares_folder: bool) -> None:
        """Adds a group in the Safetensors layout: a shard for each segment, and an index of the shards.

        A segment gets no shard, if all of its tensors have a file of their own.

        Args:
            group: The group.
            members: Its objects.
            segment_size: Maximum size of a segment in bytes; 0 for the default. No effect on files that readers expect
                to be one.
            shares_folder: Whether another group is in the same folder, so that engines need an index to know which
                shards are theirs.
        """
        self._check_names(members)
        cuts = [(index, cut) for index in members for cut in self._cuts(group, index, segment_size)]
        separated = self._separate(group, members)
        elsewhere = {key for own in separated for key in own.entries}
        in_shards = [cut for cut in cuts if not _is_subset(cut, elsewhere)]
        # Their files come after the shards, so that tensors of the first file are those of the first shard.
        own_places = {
            key: (len(self.files) + len(in_shards) + number, offset)
            for number, own in enumerate(separated)
            for key, offset in own.offsets.items()
        }
        weight_map: dict[str, str] = {}
        total = number = 0
        for index, cut in cuts:
            tensors_index = self._tensors_index(index)
            is_last = cut[1] == len(tensors_index.tensors)
            places = {at: own_places[index, at] for at in range(*cut) if (index, at) in own_places}
            if _is_subset((index, cut), elsewhere):
                self._add_shard_segment(index, cut, places[cut[0]][0], places, is_last=is_last)
                continue
            path = group.shard(number, len(in_shards))
            number += 1
            offsets = self._add_shard(index, cut, path, group.rank, places)
            file_index = len(self.files) - 1
            places |= {at: (file_index, offset) for at, offset in offsets.items()}
            self._add_shard_segment(index, cut, file_index, places, is_last=is_last)
            for at in offsets:
                weight_map[tensors_index.tensors[at].name] = posixpath.basename(path)
                total += tensors_index.tensors[at].length
        for own in separated:
            self.files.append(own.file)
            if own.file.computed_buffers:
                self._separated += own.entries.values()
        if group.load_format:
            self._add_refusal(group)
        elif group.rank is None and (len(in_shards) > 1 or (shares_folder and group.stem == Stem(MODEL))):
            self._add_index(group, weight_map, total)

    def _cuts(self, group: _Group, index: int, segment_size: int) -> list[tuple[int, int]]:
        """Returns the range of tensors of each of an object's segments."""
        tensors_index = self._tensors_index(index)
        if group.rank is None and group.stem.is_single_file:
            return [(0, len(tensors_index.tensors))]
        return _partition_tensors(tensors_index, segment_size)

    def _add_index(self, group: _Group, weight_map: Mapping[str, str], total: int) -> None:
        self._add_generated(
            posixpath.join(group.directory, group.stem.index_name),
            _json({"metadata": {"total_size": total}, "weight_map": weight_map}),
        )

    def _add_refusal(self, group: _Group) -> None:
        """Adds files because of which other readers than one of vLLM's load formats refuse the folder."""
        for name, content in refusal_files(group.load_format, group.rank or 0, self._identity).items():
            path = posixpath.join(group.directory, name)
            if path not in {file.path for file in self.files}:
                self._add_generated(path, content)

    def _add_generated(self, path: str, content: bytes) -> None:
        self.files.append(OutputFile(path, len(content), "index", None, None, content))

    def _separate(self, group: _Group, members: Sequence[int]) -> list[_OwnFile]:
        """Returns the files of tensors that engines shall not see: none, if no tensor would be left for the shards."""
        entries = {
            (index, number): entry
            for index in members
            for number, entry in enumerate(self._tensors_index(index).tensors)
            if not entry.is_meta
        }
        computed = {
            key: entry
            for key, entry in entries.items()
            if self._separates and is_computed_buffer(entry.name, entry.kind)
        }
        tied = {
            key: entry
            for key, entry in entries.items()
            if (group.load_format or self._separates) and key[1] in self.objects[key[0]].tied and key not in computed
        }
        if len(computed) + len(tied) == len(entries):
            return []
        files = []
        if computed:
            own = self._own_file(group.computed_buffers, group.rank, computed)
            files.append(msgspec.structs.replace(own, file=msgspec.structs.replace(own.file, computed_buffers=True)))
        if tied:
            files.append(self._own_file(group.tied_weights, group.rank, tied))
            self._tied += [] if group.load_format else tied.values()
        return files

    def _own_file(self, path: str, rank: int | None, entries: dict[tuple[int, int], TensorEntry]) -> _OwnFile:
        keys = list(entries)
        shard = [_shard_tensor(entry) for entry in entries.values()]
        order = alignment_order(shard)
        header, offsets = build_shard_header(
            [shard[at] for at in order],
            metadata={"format": "pt", **self._identity},
            label=self.objects[keys[0][0]].label,
        )
        size = len(header) + sum(entry.length for entry in entries.values())
        return _OwnFile(
            OutputFile(path, size, "shard", None, rank, header),
            entries,
            {keys[at]: offset for at, offset in zip(order, offsets, strict=True)},
        )

    def _add_shard(
        self, index: int, cut: tuple[int, int], path: str, rank: int | None, elsewhere: Collection[int]
    ) -> dict[int, int]:
        """Adds the file of a shard; returns the offset in it of each tensor that it holds.

        Args:
            index: The object.
            cut: The range of its tensors.
            path: The file's path.
            rank: Its rank.
            elsewhere: Tensors that are in another file.
        """
        source, tensors_index = self.objects[index], self._tensors_index(index)
        stored = [
            number for number in range(*cut) if not tensors_index.tensors[number].is_meta and number not in elsewhere
        ]
        shard = [_shard_tensor(tensors_index.tensors[number]) for number in stored]
        order = alignment_order(shard)
        extra = _extra_metadata(tensors_index.tensors[cut[0] : cut[1]])
        own = tensors_index.metadata if isinstance(tensors_index, SafetensorsIndex) else {}
        metadata = {"format": "pt", **own, **self._identity, **extra}
        header, offsets = build_shard_header([shard[at] for at in order], metadata=metadata, label=source.label)
        size = len(header) + sum(tensor.length for tensor in shard)
        self.files.append(OutputFile(path, size, "shard", index, rank, header))
        return {stored[at]: offset for at, offset in zip(order, offsets, strict=True)}

    def _add_shard_segment(
        self,
        index: int,
        cut: tuple[int, int],
        file_index: int,
        places: Mapping[int, tuple[int, int]],
        *,
        is_last: bool,
    ) -> None:
        """Adds a segment, and where its tensors are.

        Args:
            index: The object.
            cut: The range of its tensors.
            file_index: The segment's file.
            places: File and offset of each tensor that has data.
            is_last: Whether the end of the object's tensors belongs to the segment.
        """
        tensors_index = self._tensors_index(index)
        spans: list[Span] = []
        for number in range(*cut):
            entry = tensors_index.tensors[number]
            if entry.data_offset > entry.header_offset:
                spans.append(Span(entry.data_offset, SpanRole.HEADER, number, NOT_WRITTEN))
            file, offset = places.get(number, (NO_FILE, 0))
            if entry.length:
                other = FILE_OF_SEGMENT if file == file_index else file
                spans.append(Span(entry.data_end, SpanRole.DATA, number, offset, other))
            self.placements.append(TensorPlacement(index, number, file, offset))
        start = tensors_index.tensors[cut[0]].header_offset if cut[1] > cut[0] else tensors_index.body_offset
        end = tensors_index.tensors[cut[1] - 1].data_end if cut[1] > cut[0] else start
        if is_last and tensors_index.body_end > end:
            spans.append(Span(tensors_index.body_end, SpanRole.TAIL, NO_TENSOR, NOT_WRITTEN))
            end = tensors_index.body_end
        if end > start:
            self.segments.append(Segment(len(self.segments), index, file_index, start, end, tuple(spans)))

    def add_notes(self, layout: Layout) -> None:
        """Adds notes on separated buffers, on files of vLLM or of ranks, and on names that engines may not know."""
        if self._separated:
            paths = [file.path for file in self.files if file.computed_buffers]
            self.notes.append(separated_note(self._separated, paths))
        if self._tied:
            self.notes.append(tied_note(self._tied))
        found = [source for source in self.objects if source.is_vllm_serialized]
        if found:
            self.notes.append(vllm_note(found, layout))
            self.served_by = vllm_command(found, layout)
        ranked = [each for each in self.objects if each.rank is not None and not each.is_vllm_serialized]
        if layout is Layout.SAFETENSORS and any(each.tensors_index is not None for each in ranked):
            self.notes.append(ranks_note([each for each in ranked if each.tensors_index is not None]))
        for source in self.objects:
            if source.tensors_index is not None and not source.is_vllm_serialized:
                tensors = source.tensors_index.tensors
                self.notes += names_notes(source.label, tensors, is_checkpoint=source.is_safetensors)

    def _check_names(self, members: Iterable[int]) -> None:
        seen: dict[str, str] = {}
        for index in members:
            label, tensors_index = self.objects[index].label, self._tensors_index(index)
            if tensors_index.encrypted:
                raise FormatUnsupported(f"{label} is encrypted; only the Tensorizer layout supports encryption.")
            check_flat_names(tensors_index.tensors, label=label, seen=seen)

    def check_paths(self) -> None:
        """Checks that no two files have the same path, and that no file's path is a directory of another."""
        owners: dict[str, str] = {}
        for file in self.files:
            label = "a file that Tonnage writes" if file.object_index is None else self.objects[file.object_index].label
            if file.path in owners:
                raise NameCollision(f"Two files have the path {file.path!r}: {owners[file.path]} and {label}.")
            owners[file.path] = label
        for path, label in owners.items():
            parent = posixpath.dirname(path)
            while parent:
                if parent in owners:
                    raise NameCollision(f"{parent!r} would be a file ({owners[parent]}) and a directory ({label}).")
                parent = posixpath.dirname(parent)

    def _tensors_index(self, index: int) -> FileIndex:
        tensors_index = self.objects[index].tensors_index
        if tensors_index is None:
            raise ValueError(f"object {index} has no tensors")
        return tensors_index

    def _add_segment(self, index: int, start: int, end: int, spans: list[Span]) -> None:
        if end > start:
            self.segments.append(
                Segment(len(self.segments), index, len(self.files) - 1, start, end, tuple(spans)),
            )


def _extra_metadata(entries: Sequence[TensorEntry]) -> dict[str, str]:
    """Returns metadata that safetensors headers can't express, so that it can be read from the shards alone."""
    paths = {entry.name: entry.path for entry in entries if len(entry.path) > 1}
    metas = {
        entry.name: [entry.dtype.torch_name, entry.dtype.item_size, entry.shape] for entry in entries if entry.is_meta
    }
    found = {PATHS_KEY: paths, META_KEY: metas}
    return {key: json.dumps(value) for key, value in found.items() if value}


def _is_subset(cut: tuple[int, tuple[int, int]], computed: Collection[tuple[int, int]]) -> bool:
    """Returns whether a range of an object's tensors has some, and all of them are computed buffers."""
    index, (start, end) = cut
    return start < end and all((index, number) in computed for number in range(start, end))


def _shard_tensor(entry: TensorEntry) -> ShardTensor:
    return ShardTensor(entry.name, entry.dtype, entry.shape, entry.length)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _partition_tensors(tensors_index: FileIndex, segment_size: int) -> list[tuple[int, int]]:
    """Returns a range of tensor indexes for each segment; one empty range for a file without tensors."""
    weights = [entry.data_end - entry.header_offset for entry in tensors_index.tensors]
    if not weights:
        return [(0, 0)]
    return linear_partition(weights, segment_count(sum(weights), segment_size))
