"""Tracks which output files are complete: all their bytes are on disk, tensors and objects are verified. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.planning.segments import FILE_OF_SEGMENT, NOT_WRITTEN

if TYPE_CHECKING:
    from collections.abc import Collection

    from tonnage.planning.blueprint import Blueprint


class CompleteFiles:
    """Tracks the files of a blueprint.

    Args:
        blueprint: Files, segments and placements.
        checked: The objects that are verified as a whole.
    """

    def __init__(self, blueprint: Blueprint, checked: Collection[int] = ()) -> None:
        self._bytes_left = {segment.index: segment.size for segment in blueprint.segments}
        self._files_of_segment = {
            segment.index: frozenset(
                segment.file_index if span.file_index == FILE_OF_SEGMENT else span.file_index
                for span in segment.spans
                if span.target_offset != NOT_WRITTEN
            )
            | {segment.file_index}
            for segment in blueprint.segments
        }
        self._file_of_tensor = {
            (place.object_index, place.tensor_index): place.file_index
            for place in blueprint.placements
            if place.file_index >= 0
        }
        self._segments_left: list[set[int]] = [set() for _ in blueprint.files]
        for segment, files in self._files_of_segment.items():
            for file in files:
                self._segments_left[file].add(segment)
        self._tensors_left: list[set[tuple[int, int]]] = [set() for _ in blueprint.files]
        for tensor, file in self._file_of_tensor.items():
            self._tensors_left[file].add(tensor)
        self._objects_left = [{file.object_index} & {*checked} for file in blueprint.files]
        for each in blueprint.segments:
            for file in self._files_of_segment[each.index]:
                self._objects_left[file].update({each.object_index} & {*checked})
        self._new: list[int] = []
        self._reported: set[int] = set()
        for segment, size in self._bytes_left.items():
            if not size:
                self._finish_segment(segment)
        for file, segments in enumerate(self._segments_left):
            if not segments:
                self._check(file)

    def add_bytes(self, segment: int, count: int) -> None:
        """Adds bytes of a segment that are on disk, each once."""
        self._bytes_left[segment] -= count
        if not self._bytes_left[segment]:
            self._finish_segment(segment)

    def remove_bytes(self, segment: int, count: int) -> None:
        """Removes the bytes of a corrupt tensor, which will be fetched again."""
        self._bytes_left[segment] += count
        for file in self._files_of_segment[segment]:
            self._segments_left[file].add(segment)

    def add_tensor(self, key: tuple[int, int]) -> None:
        """Adds a verified tensor, by (object, tensor)."""
        file = self._file_of_tensor.get(key)
        if file is not None:
            self._tensors_left[file].discard(key)
            self._check(file)

    def remove_tensor(self, key: tuple[int, int]) -> None:
        """Removes a tensor that was verified, and must be fetched again after all."""
        file = self._file_of_tensor.get(key)
        if file is not None:
            self._tensors_left[file].add(key)

    def add_object(self, index: int) -> None:
        """Adds an object that is verified as a whole."""
        for file, objects in enumerate(self._objects_left):
            if index in objects:
                objects.discard(index)
                self._check(file)

    def take(self) -> Collection[int]:
        """Returns the files that are complete, each once."""
        new, self._new = self._new, []
        return new

    def _finish_segment(self, segment: int) -> None:
        for file in self._files_of_segment[segment]:
            self._segments_left[file].discard(segment)
            self._check(file)

    def _check(self, file: int) -> None:
        left = self._segments_left[file] or self._tensors_left[file] or self._objects_left[file]
        if not left and file not in self._reported:
            self._reported.add(file)
            self._new.append(file)
