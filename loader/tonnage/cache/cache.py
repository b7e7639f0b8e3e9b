"""The cache: a directory with one entry for each revision and layout."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tonnage.cache.entry import FLAT_FILES, PRIVATE_DIRECTORY, Entry, EntryState
from tonnage.cache.filesystem import DIRECTORY_MODE, translate_os_errors
from tonnage.contract import ENTRY_NAME_PATTERN
from tonnage.errors import CacheNotWritable, InvalidPlan


class Cache:
    """A directory of entries. The constructor doesn't access the disk.

    ``label`` is what messages call it.
    """

    label = "The cache directory"

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def create(self) -> None:
        """Creates the directory and its parents if it is missing. An existing one is not changed.

        Raises:
            CacheNotWritable: It can't be created, is not a directory, or belongs to another user, who has made it where
                any user can.
            InsufficientSpace: The medium is full.
        """
        with translate_os_errors(f"{self.label} {self.root} can't be created"):
            if self.root.is_dir():
                self._check_owner()
                return
            self.root.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            self.root.chmod(DIRECTORY_MODE)

    def _check_owner(self) -> None:
        """Checks that no other user has made the directory in a place like ``/dev/shm``, to decide what is in it."""
        found, parent = self.root.stat(), self.root.parent.stat()
        made_by_another = found.st_uid not in {0, os.geteuid()} and found.st_dev == parent.st_dev
        if made_by_another and parent.st_mode & stat.S_IWOTH:
            raise CacheNotWritable(
                f"{self.label} {self.root} belongs to user {found.st_uid}, who has made it where any user can. "
                f"This process runs as user {os.geteuid()}: use another directory, or have the administrator make it."
            )

    def entry(self, name: str) -> Entry:
        """Returns the entry with this name, whether or not it exists.

        Raises:
            InvalidPlan: The name is not valid.
        """
        if not ENTRY_NAME_PATTERN.fullmatch(name):
            raise InvalidPlan(
                f"{name!r} is not a valid name of a cache entry. It must have 1 to 63 lowercase letters, digits, dots "
                "and dashes, and start and end with a letter or digit."
            )
        return Entry(self.root / name)

    def entries(self) -> list[Entry]:
        """Returns the entries that are not empty, damaged ones included, sorted by name.

        Raises:
            CacheNotWritable: The directory exists but can't be read.
        """
        try:
            with os.scandir(self.root) as items:
                names = sorted(item.name for item in items if item.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheNotWritable(f"The cache directory {self.root} can't be read: {error.strerror}.") from error
        entries = [Entry(self.root / name) for name in names if ENTRY_NAME_PATTERN.fullmatch(name)]
        return [entry for entry in entries if _is_entry(entry) and entry.state is not EntryState.EMPTY]


def _is_entry(entry: Entry) -> bool:
    try:
        private = entry.path / PRIVATE_DIRECTORY
        return private.is_dir() and not (private / FLAT_FILES).exists()
    except OSError:  # this user may not search it: list it as damaged
        return True
