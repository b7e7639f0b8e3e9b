"""The folder that a cluster keeps its files in: made, used by one command at a time, emptied and removed."""

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
    """Makes a folder that only its owner may enter; returns what had to be made, the outermost first."""
    made: list[str] = []
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o700)
            made.append(str(each))
    return made


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other commands from working on the cluster in ``folder`` meanwhile.

    Raises:
        ClusterExists: Another command does that now.
        FolderInUse: It is a file.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise FolderInUse(f"{folder} is no folder.", "Choose another one.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterExists(f"Another command works on the cluster in {folder}.", "Wait for its end.") from None
        yield
    finally:
        os.close(handle)


def clear(folder: Path) -> None:
    """Removes all that is in a folder, if there is one."""
    if folder.exists():
        for each in folder.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()


def remove_empty(made: Sequence[str]) -> None:
    """Removes those of the folders that ``create`` made which are empty by now."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
