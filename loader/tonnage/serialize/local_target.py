"""A target folder on this machine. It appears as a whole, by a rename."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

from tonnage.cache.filesystem import PUBLISHED_MODE
from tonnage.errors import InvalidPlan, TargetExists
from tonnage.serialize.os_errors import check_space, translate_target_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tonnage.serialize.source_files import LocalFile

UNFINISHED_SUFFIX = ".tonnage-unfinished"
_LISTED = 3


class LocalTarget:
    """A folder, which must not exist, or be empty, or have only files of the same names and ``overwrite``.

    Everything is written into a hidden folder beside it, which a later run to the same target removes.

    Args:
        folder: The target.
        overwrite: Replace existing files.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._draft = folder.with_name(f".{folder.name}{UNFINISHED_SUFFIX}")
        self._lock = -1
        self.label = str(folder)
        self.verified = "read back with tensorizer"

    def check(self, names: Collection[str] | None) -> None:
        """Checks that the target may be written. ``names``: the files to write; None: not known yet.

        Raises:
            TargetExists: There are files.
            InvalidPlan: The folder can't be replaced as a whole.
        """
        if self._folder.is_file() or self._folder.is_symlink() or self._folder.is_mount():
            raise InvalidPlan(
                f"{self._folder} is a file, a symbolic link or a mount, which can't be replaced as a whole.",
                remedy="Pass a folder that does not exist yet as TARGET, such as one below it.",
            )
        if not self._folder.exists():
            return
        with translate_target_errors(f"{self._folder} can't be listed"):
            present = sorted(
                each.relative_to(self._folder).as_posix() for each in self._folder.rglob("*") if not each.is_dir()
            )
        check_present(self.label, present, names, overwrite=self._overwrite)

    def begin(self, size: int) -> None:
        """Creates the hidden folder, in which ``size`` bytes must have room.

        Raises:
            TargetExists: Another process writes to the target.
            InsufficientSpace: There is too little space.
            TargetNotWritable: The folder can't be created.
        """
        with translate_target_errors(f"{self._draft} can't be created"):
            self._draft.parent.mkdir(parents=True, exist_ok=True)
            self._draft.mkdir(exist_ok=True)
            self._lock = os.open(self._draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = -1
                raise TargetExists(
                    f"Another process is writing to {self._folder}.", remedy="Wait until it has ended."
                ) from None
            for left in self._draft.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            check_space(self._draft, size)

    def location(self, name: str) -> Path:
        """Returns where a file of weights is to be written."""
        path = self._draft / name
        with translate_target_errors(f"{path.parent} can't be created"):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_companion(self, file: LocalFile) -> None:
        """Copies a companion."""
        path = self.location(file.path)
        with translate_target_errors(f"{path} can't be written"):
            shutil.copyfile(file.location, path)

    def add_weights(self, name: str, location: Path, on_bytes: Callable[[int], None]) -> None:
        """Does nothing: the file is in its place, and was read back."""

    def publish(self) -> str:
        """Renames the hidden folder to the target; returns an empty digest."""
        with translate_target_errors(f"{self._folder} can't be written"):
            for root, _, names in os.walk(self._draft):
                for name in names:
                    descriptor = os.open(os.path.join(root, name), os.O_RDONLY | os.O_CLOEXEC)  # noqa: PTH118
                    try:
                        os.fchmod(descriptor, PUBLISHED_MODE | 0o200)
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            replaced = self._folder.with_name(f".{self._folder.name}.tonnage-replaced")
            if self._folder.exists():
                self._folder.rename(replaced)
            self._draft.rename(self._folder)
            shutil.rmtree(replaced, ignore_errors=True)
        return ""

    def close(self) -> None:
        """Removes the hidden folder, if it was not published."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            shutil.rmtree(self._draft)
        os.close(self._lock)
        self._lock = -1


def check_present(label: str, present: Collection[str], names: Collection[str] | None, *, overwrite: bool) -> None:
    """Checks that a target has no files, or with ``overwrite`` only those that will be replaced.

    Args:
        label: The target.
        present: The files that it has.
        names: The files that will be written; None: not known yet.
        overwrite: Whether files may be replaced.

    Raises:
        TargetExists: It has others.
    """
    if not present:
        return
    if not overwrite:
        raise TargetExists(f"{label} has files already: {_shorten(present)}.")
    others = [] if names is None else [name for name in present if name not in set(names)]
    if others:
        raise TargetExists(
            f"{label} has files that would not be replaced, so that old and new ones would be mixed: "
            f"{_shorten(others)}.",
            remedy="Remove them, or use another TARGET: --overwrite replaces only files of the same names.",
        )


def _shorten(names: Collection[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(sorted(names)[:_LISTED]) + more
