"""Finds companions that are pointers of Git LFS: a clone without the content of its large files was uploaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.errors import CacheDamaged, escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tonnage.planning.blueprint import OutputFile

MAX_POINTER_BYTES = 1023
"""Maximum size of a pointer by its specification."""
_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
_SHOWN = 5


def pointer_notes(folder: Path, files: Sequence[OutputFile]) -> tuple[str, ...]:
    """Returns a note about the companions that are pointers, or none. Weights are refused before they are loaded.

    Args:
        folder: Where the files are.
        files: The entry's files.

    Raises:
        CacheDamaged: A file can't be read.
    """
    small = [file.path for file in files if file.kind == "companion" and 0 < file.size <= MAX_POINTER_BYTES]
    found = [path for path in small if _begins_as_pointer(folder / path)]
    if not found:
        return ()
    shown = ", ".join(escape_unprintable(path)[:100] for path in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    what = "is a pointer" if len(found) == 1 else "are pointers"
    note = (
        f"{shown}{more} {what} of Git LFS and not the content, which engines can't read: run `git lfs pull` in the "
        "clone, and upload again."
    )
    return (note,)


def _begins_as_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_FIRST_LINE)) == _FIRST_LINE
    except OSError as error:
        raise CacheDamaged(f"{path} can't be read: {error.strerror}.") from error
