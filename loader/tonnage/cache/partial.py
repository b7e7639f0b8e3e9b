"""The private directory of a load. Each loader has one of its own, so that no two write to the same file.

::

    .tonnage/partial/<name>/model/     the files, as they will be published
    .tonnage/partial/<name>/journal    which parts of them are written
    .tonnage/partial/<name>/reserved   exists if the whole size of the files counts as used; see ``capacity``

A load that resumes an earlier one renames the directory first. If the earlier loader still runs, because the lock on
the entry locks nothing, it no longer finds its files, and fails.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cache.filesystem import PRIVATE_MODE, file_sizes, make_directory, translate_os_errors
from tonnage.errors import CacheNotWritable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage.cache.entry import Entry

IDLE_SECONDS = 3600.0
"""Where locks may not work: a load that has written nothing for so long has ended. A transfer below
``request_target.STALL_BYTES`` a second is aborted much earlier."""

_JOURNAL = "journal"
_MODEL = "model"
_RESERVED = "reserved"


class PartialDirectory:
    """The files of one unfinished load. The constructor doesn't access the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model_dir = path / _MODEL
        self.journal_path = path / _JOURNAL
        self.reserved_path = path / _RESERVED

    def __repr__(self) -> str:
        return f"PartialDirectory({str(self.path)!r})"


def create_partial(entry: Entry) -> PartialDirectory:
    """Creates an empty directory for a load.

    Raises:
        CacheNotWritable: It can't be created.
        InsufficientSpace: The medium is full.
    """
    partial = PartialDirectory(_unused_path(entry))
    for folder in (entry.partial_dir, partial.path, partial.model_dir):
        make_directory(folder)
    return partial


def take_over(entry: Entry, partial: PartialDirectory) -> PartialDirectory:
    """Renames the directory of an earlier load, makes its files writable, and returns it under its new name.

    Raises:
        CacheNotWritable: That is not possible, for example because another load was faster.
        CacheDamaged: The directory contains something else than files.
    """
    taken = PartialDirectory(_unused_path(entry))
    with translate_os_errors(f"{partial.path}, which an earlier load left, can't be continued"):
        partial.path.rename(taken.path)
        make_directory(taken.model_dir)
        for path in file_sizes(taken.model_dir):
            if not os.access(taken.model_dir / path, os.W_OK):  # it was about to be published
                (taken.model_dir / path).chmod(PRIVATE_MODE)
    return taken


def require_writable(entry: Entry) -> None:
    """Checks that this user may load into an entry that another user may have begun.

    Raises:
        CacheNotWritable: It may not; the message names the owner.
    """
    for folder in (entry.private_dir, entry.partial_dir, entry.path):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise CacheNotWritable(
                f"{folder} belongs to user {folder.stat().st_uid}, and this process runs as user {os.geteuid()}, which "
                "may not write there: load as that user, or have it remove the entry first."
            )


def find_partials(entry: Entry) -> list[PartialDirectory]:
    """Returns the directories of unfinished loads, the one with the longest journal first.

    Raises:
        CacheNotWritable: The entry can't be read.
    """
    with translate_os_errors(f"{entry.partial_dir} can't be read"):
        try:
            with os.scandir(entry.partial_dir) as items:
                found = [PartialDirectory(Path(item)) for item in items if item.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
    return sorted(found, key=lambda partial: (-_journal_size(partial), partial.path.name))


def seconds_since_last_write(entry: Entry) -> float:
    """Returns for how long no load has written to the entry; infinity if none ever has.

    All times are those of the medium, because the clocks of machines differ: the entry's last use, which each load
    sets when it begins, is the present.
    """
    folders = [entry.partial_dir, *([entry.path, entry.model_dir] if any(entry.model_files()) else [])]
    times = [time for folder in folders for time in _modification_times(folder)]
    return entry.use_lock_path.stat().st_mtime - max(times) if times else float("inf")


def _modification_times(folder: Path) -> Iterator[float]:
    for place, _, files in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in files)):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                yield path.lstat().st_mtime


def _journal_size(partial: PartialDirectory) -> int:
    try:
        return partial.journal_path.lstat().st_size
    except OSError:
        return -1


def _unused_path(entry: Entry) -> Path:
    return entry.partial_dir / os.urandom(8).hex()
