"""Creates, locks, empties and removes the folder of a cluster."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from local_cluster.errors import ClusterExists, FolderInUse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def create(folder: Path) -> list[str]:
    """Creates a folder with mode 0700, and its parents. Returns the created folders, the outermost first."""
    made: list[str] = []
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o700)
            made.append(str(each))
    return made


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks the cluster in ``folder`` against other commands.

    Raises:
        ClusterExists: Another command has locked it.
        FolderInUse: It is a file.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise FolderInUse(f"{folder} is not a folder.", "Choose another one.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterExists(f"Another command is using the cluster in {folder}.", "Wait until it exits.") from None
        yield
    finally:
        os.close(handle)


def clear(folder: Path) -> None:
    """Removes the contents of a folder, if it exists."""
    if folder.exists():
        for each in folder.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()


def remove_empty(made: Sequence[str]) -> None:
    """Removes the folders that ``create`` returned, if they are empty."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
