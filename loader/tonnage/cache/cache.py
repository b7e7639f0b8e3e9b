"""The cache as a whole: a folder with one entry a revision and layout."""

from __future__ import annotations

import os
from pathlib import Path

from tonnage.cache.entry import PRIVATE_DIRECTORY, Entry, EntryState
from tonnage.cache.filesystem import DIRECTORY_MODE, translate_os_errors
from tonnage.contract import ENTRY_NAME_PATTERN
from tonnage.errors import CacheNotWritable, InvalidPlan


class Cache:
    """A folder of entries. Making the object touches nothing on disk."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def create(self) -> None:
        """Makes the folder, and its parents, where it is missing. An existing one is left as it is.

        Raises:
            CacheNotWritable: It can't be made, or is no folder.
            InsufficientSpace: There is no room for it.
        """
        with translate_os_errors(f"The cache folder {self.root} can't be made"):
            if self.root.is_dir():
                return
            self.root.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            self.root.chmod(DIRECTORY_MODE)

    def entry(self, name: str) -> Entry:
        """Returns the entry of that name, whether or not it exists.

        Raises:
            InvalidPlan: No entry can have this name.
        """
        if not ENTRY_NAME_PATTERN.fullmatch(name):
            raise InvalidPlan(
                f"{name!r} can't be a cache entry: 1 to 63 small letters, digits, dots and dashes, beginning and "
                "ending with a letter or digit."
            )
        return Entry(self.root / name)

    def entries(self) -> list[Entry]:
        """Returns the entries that have something in them, by name; damaged ones too.

        Raises:
            CacheNotWritable: The folder is there but can't be read.
        """
        try:
            with os.scandir(self.root) as items:
                names = sorted(item.name for item in items if item.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheNotWritable(f"The cache folder {self.root} can't be read: {error.strerror}.") from error
        entries = [Entry(self.root / name) for name in names if ENTRY_NAME_PATTERN.fullmatch(name)]
        return [entry for entry in entries if _is_entry(entry) and entry.state is not EntryState.EMPTY]


def _is_entry(entry: Entry) -> bool:
    try:
        return (entry.path / PRIVATE_DIRECTORY).is_dir()
    except OSError:  # not searchable for this user: listed, as damaged
        return True
