"""Directories of engine artifacts: kernels that an engine compiles at its start, and uses at the next one.

::

    <directory>/files/             the engine's own, writable by all users
    <directory>/.tonnage/use.lock  shared: being prepared; exclusive: being removed

The engine's container mounts ``files`` alone. Nothing in it is trusted: it is measured and removed without following
links, and in a time and depth that its contents can't exceed.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from tonnage.cache.entry import Entry
from tonnage.cache.filesystem import translate_os_errors
from tonnage.contract.report import MAX_ARTIFACTS_BYTES, ArtifactsSize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARTIFACTS_NAME_PATTERN: Final = re.compile(r"a-[0-9a-f]{32}")
FILES_DIRECTORY: Final = "files"
MAX_FILES: Final = 200_000
MAX_DEPTH: Final = 100
"""Limits of what is measured. An engine has thousands of files, at a depth of about ten."""

_BLOCK: Final = 512
"""Bytes of the unit of ``st_blocks``."""
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE_MODE: Final = 0o700
"""Of the directory itself, so that no other user of the node can start a program in it."""
_SHARED_MODE: Final = 0o777
"""Of ``files``: engines run as any user."""


def prepare_artifacts(path: Path, *, canceled: Callable[[], bool] = lambda: False) -> ArtifactsSize:
    """Creates a directory of artifacts, unless it exists, and returns how much is in it.

    Args:
        path: The directory.
        canceled: Polled while the directory is being removed.

    Raises:
        CacheNotWritable: It can't be created.
        InsufficientSpace: The medium is full.
        Interrupted: ``canceled`` returned True.
    """
    entry = Entry(path)
    entry.create()
    with entry.acquire_use_lock(canceled=canceled), translate_os_errors(f"The artifacts {path} can't be prepared"):
        path.chmod(_PRIVATE_MODE)
        files = path / FILES_DIRECTORY
        if not files.is_dir():
            files.mkdir()
        descriptor = os.open(files, _DIRECTORY_FLAGS)
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != _SHARED_MODE:
                os.fchmod(descriptor, _SHARED_MODE)
            return ArtifactsSize(name=path.name, bytes=_measure(descriptor))
        finally:
            os.close(descriptor)


class _Unmeasurable(Exception):
    pass


class _Size:
    """Adds up a tree. It keeps one descriptor open for each level."""

    def __init__(self) -> None:
        self.bytes = 0
        self._files = 0

    def add(self, directory: int, depth: int = 1) -> None:
        """Adds what is in a directory.

        Raises:
            _Unmeasurable: There are too many files or levels.
            OSError: Something can't be read.
        """
        folders = []
        with os.scandir(directory) as items:
            for item in items:
                self._files += 1
                if self._files > MAX_FILES or depth > MAX_DEPTH:
                    raise _Unmeasurable
                status = item.stat(follow_symlinks=False)
                self.bytes += status.st_blocks * _BLOCK
                if stat.S_ISDIR(status.st_mode):
                    folders.append(item.name)
        for name in folders:
            descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
            try:
                self.add(descriptor, depth + 1)
            finally:
                os.close(descriptor)


def _measure(directory: int) -> int:
    """Returns the bytes that a directory takes on its medium; ``MAX_ARTIFACTS_BYTES`` if it can't be measured."""
    size = _Size()
    try:
        size.add(directory)
    except FileNotFoundError:
        return size.bytes  # an engine that runs has removed something
    except (OSError, _Unmeasurable):
        return MAX_ARTIFACTS_BYTES
    return size.bytes


def remove_artifacts(entry: Entry) -> int:
    """Removes the files of a directory of artifacts, if it is one, and returns the number of bytes freed.

    The caller holds the entry's locks. Directories are moved up before they are removed, so that no depth is too large.

    Raises:
        CacheNotWritable: Something can't be removed.
    """
    with translate_os_errors(f"The artifacts {entry.path} can't be removed"):
        try:
            top = os.open(entry.path / FILES_DIRECTORY, _DIRECTORY_FLAGS)
        except FileNotFoundError:
            return 0
        freed = 0
        try:
            while names := _names(top):
                for name in names:
                    freed += _remove(name, top)
        finally:
            os.close(top)
    return freed


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as items:
        return [item.name for item in items]


def _remove(name: str, top: int) -> int:
    """Removes a file, or a folder after moving its own folders to the top, and returns the number of bytes freed."""
    status = os.lstat(name, dir_fd=top)
    freed = status.st_blocks * _BLOCK
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=top)
        return freed
    child = os.open(name, _DIRECTORY_FLAGS, dir_fd=top)
    try:
        for inner in _names(child):
            inner_status = os.lstat(inner, dir_fd=child)
            if stat.S_ISDIR(inner_status.st_mode):
                os.rename(inner, os.urandom(16).hex(), src_dir_fd=child, dst_dir_fd=top)
            else:
                freed += inner_status.st_blocks * _BLOCK
                os.unlink(inner, dir_fd=child)
    finally:
        os.close(child)
    os.rmdir(name, dir_fd=top)
    return freed
