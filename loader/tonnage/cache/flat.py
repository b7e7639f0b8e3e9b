"""A flat entry: a folder of the user that gets a model's files, where no file of others may be touched."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tonnage.cache.cache import Cache
from tonnage.cache.entry import PRIVATE_DIRECTORY, Entry
from tonnage.cache.filesystem import remove_tree, translate_os_errors
from tonnage.errors import NameCollision, TargetExists

if TYPE_CHECKING:
    from collections.abc import Iterable

OVERWRITE_REMEDY = "Use another folder, or pass --overwrite to replace what is there."
_WEIGHTS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".tensors"}
_MAX_NAMED = 3


class Folder(Cache):
    """A folder that gets one model. The constructor doesn't access the disk."""

    label = "The folder"

    def __init__(self, root: Path | str, *, overwrites: bool = False) -> None:
        super().__init__(root)
        self._overwrites = overwrites

    def entry(self, name: str) -> Entry:  # noqa: ARG002  # the folder has no other entry
        """Returns the folder itself, whatever the name."""
        return Entry(self.root, is_flat=True, overwrites=self._overwrites)


def check_places(entry: Entry, names: Iterable[str]) -> None:
    """Checks that the files of a load can be published without a change to files of others.

    Raises:
        TargetExists: One is there that no load has published, and the entry's loads may not overwrite; or something
            else than a file is in its place.
        NameCollision: A file would be among those of Tonnage.
        CacheNotWritable: A place can't be accessed.
    """
    own = entry.own_names()
    for name in names:
        parts = PurePosixPath(name).parts
        if parts[0] == PRIVATE_DIRECTORY:
            raise NameCollision(f"{name!r} can't be loaded into a folder: Tonnage keeps its own files there.")
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            mode = _mode(entry.model_dir / parent)
            if mode is not None and not stat.S_ISDIR(mode):
                raise TargetExists(
                    f"{entry.model_dir / parent} is not a directory, and {name!r} should be loaded below it.",
                    remedy="Use another folder, or remove what is there.",
                )
        mode = _mode(entry.model_dir / name)
        if mode is None or (name in own and stat.S_ISREG(mode)):
            continue
        if stat.S_ISDIR(mode):
            raise TargetExists(
                f"{entry.model_dir / name} is a directory, and a file should be loaded there.",
                remedy="Use another folder, or remove what is there.",
            )
        if not entry.overwrites:
            raise TargetExists(f"{entry.model_dir / name} exists, and no load has written it.", remedy=OVERWRITE_REMEDY)


def foreign_weights_note(entry: Entry, names: Iterable[str]) -> str:
    """Returns a sentence about weights of others in the folder, which engines may read too; empty if there are none."""
    own = entry.own_names().union(names)
    try:
        found = sorted(
            path.name for path in entry.model_dir.iterdir() if path.suffix in _WEIGHTS_SUFFIXES and path.name not in own
        )
    except OSError:
        return ""
    if not found:
        return ""
    more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
    return (
        f"{entry.model_dir} also has weights that this load has not written, which an engine may read: "
        f"{', '.join(found[:_MAX_NAMED])}{more}."
    )


def remove_files(entry: Entry) -> None:
    """Removes the files of a flat entry and the directories that are empty then, and forgets their names.

    Raises:
        CacheNotWritable: Something can't be removed.
    """
    names = entry.own_names()
    for name in names:
        remove_tree(entry.model_dir / name)
    for parent in sorted({parent for name in names for parent in PurePosixPath(name).parents[:-1]}, reverse=True):
        with contextlib.suppress(OSError):  # others have files there
            (entry.model_dir / parent).rmdir()
    entry.record_names(())


def _mode(path: Path) -> int | None:
    with translate_os_errors(f"{path} can't be accessed"):
        try:
            return path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
