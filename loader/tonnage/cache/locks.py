"""File locks that die with their process and work across containers: ``flock(2)`` on files that are never removed.

Lock files are readable and writable for everybody (0666): a serving container runs as another user than the loader,
and must be able to say "in use". The price is that any local user can keep an entry from being removed.

A lock belongs to the open file, so a child process that inherits the descriptor keeps it. Descriptors here are closed
on exec unless ``make_inheritable`` was called; a process that is forked *without* exec must not outlive its parent.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING, Self

from tonnage.cache.lock_holders import describe_lock_holders, find_lock_holders
from tonnage.errors import CacheDamaged, CacheNotWritable, InternalError, Interrupted, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

LOCK_FILE_MODE = 0o666
"""Permission bits of a lock file."""

INITIAL_BACKOFF = 0.002
MAX_BACKOFF = 0.05
"""Seconds between two tries. A blocking ``flock`` could neither be canceled nor have a deadline."""


class LockMode(enum.StrEnum):
    """How a lock is held: by any number at once, or by one alone."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


_OPERATIONS = {LockMode.SHARED: fcntl.LOCK_SH, LockMode.EXCLUSIVE: fcntl.LOCK_EX}


class FileLock:
    """One lock on one file, held by this object. Not for several threads at once.

    As a context manager it releases at the end; acquiring is explicit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._mode: LockMode | None = None

    @property
    def mode(self) -> LockMode | None:
        """How it is held, None when it isn't."""
        return self._mode

    def fileno(self) -> int:
        """Returns the descriptor that carries the lock.

        Raises:
            InternalError: The lock isn't held.
        """
        if self._mode is None:
            raise InternalError(f"The lock {self.path} was asked for its descriptor but isn't held.")
        return self._descriptor

    def try_acquire(self, mode: LockMode) -> bool:
        """Takes the lock if that is possible at once, and says whether it is held now.

        Raises:
            CacheNotWritable: The lock file can't be made or opened.
            CacheDamaged: Something that isn't a lock file lies in its place.
            InternalError: It is held otherwise already. ``flock`` gives a lock up before it converts it, so that
                somebody else could come between.
        """
        if self._mode is mode:
            return True
        if self._mode is not None:
            raise InternalError(f"The lock {self.path} is held as {self._mode} and can't become {mode}.")
        while True:
            self._descriptor = open_lock_file(self.path)
            try:
                fcntl.flock(self._descriptor, _OPERATIONS[mode] | fcntl.LOCK_NB)
            except OSError as error:
                self.release()
                if error.errno in {errno.EAGAIN, errno.EACCES}:
                    return False
                raise CacheNotWritable(f"The lock {self.path} can't be taken: {error.strerror}.") from error
            if self._is_same_file():
                self._mode = mode
                return True
            self.release()  # somebody removed the file between open and flock: what was locked is nobody's any more

    def acquire(
        self,
        mode: LockMode,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Takes the lock, waiting for others to give it up.

        Args:
            mode: How to hold it.
            deadline: ``time.monotonic()`` after which it gives up; None waits for ever.
            canceled: Asked before each try (at most 50 ms apart); True gives up.
            on_wait: Called once, when the first try failed.

        Raises:
            Timeout: The deadline passed; the holders that can be seen are named.
            Interrupted: ``canceled`` said so.
            CacheNotWritable: The lock file can't be made or opened.
            CacheDamaged: Something that isn't a lock file lies in its place.
        """
        backoff = INITIAL_BACKOFF
        waiting = False
        while not self.try_acquire(mode):
            if not waiting and on_wait is not None:
                on_wait()
            waiting = True
            if canceled is not None and canceled():
                raise Interrupted(f"Interrupted while waiting for {self.path}, which another process holds.")
            remaining_seconds = MAX_BACKOFF if deadline is None else deadline - time.monotonic()
            if remaining_seconds <= 0:
                holders = describe_lock_holders(find_lock_holders(self.path))
                raise Timeout(f"Timed out waiting for {self.path}, which is held by {holders}.")
            time.sleep(min(backoff, remaining_seconds))
            backoff = min(backoff * 1.5, MAX_BACKOFF)

    def touch(self) -> None:
        """Marks the file as used now, where this user may: its modification time is what "last used" means."""
        try:
            os.utime(self.fileno())
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise CacheNotWritable(f"The time of {self.path} can't be set: {error.strerror}.") from error

    def release(self) -> None:
        """Gives the lock up; nothing happens when it isn't held."""
        descriptor, self._descriptor, self._mode = self._descriptor, -1, None
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_same_file(self) -> bool:
        try:
            named = self.path.stat()
        except OSError:
            return False
        opened = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def make_lock_file(path: Path) -> None:
    """Makes a lock file where it is missing, so that users who can't make it find it.

    Raises:
        CacheNotWritable: It can't be made.
        CacheDamaged: Something else lies in its place.
    """
    if not path.is_file():
        os.close(open_lock_file(path))


def open_lock_file(path: Path) -> int:
    """Opens a lock file, making it where it is missing; read-only where it can't be written, which ``flock`` accepts.

    Raises:
        CacheNotWritable: It can't be made or opened.
        CacheDamaged: Something else lies in its place.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        failures: dict[int, OSError] = {}
        for attempt in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_EXCL):
            try:
                descriptor = os.open(path, flags | attempt, LOCK_FILE_MODE)
            except OSError as error:
                failures[error.errno or 0] = error
                continue
            return _ensure_lock_file(path, descriptor, made=bool(attempt & os.O_CREAT))
        if set(failures) != {errno.ENOENT, errno.EEXIST}:  # these two together: somebody made it between the tries
            break
    decisive = next((failures[code] for code in failures if code not in {errno.ENOENT, errno.EEXIST}), None)
    decisive = decisive or failures[errno.ENOENT]
    if decisive.errno in {errno.ELOOP, errno.ENXIO}:
        raise CacheDamaged(f"{path} is not a lock file: {decisive.strerror}.") from decisive
    raise CacheNotWritable(f"The lock file {path} can't be made or opened: {decisive.strerror}.") from decisive


def _ensure_lock_file(path: Path, descriptor: int, *, made: bool) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheDamaged(f"{path} is not a lock file, but a folder or a device.")
    if made:
        os.fchmod(descriptor, LOCK_FILE_MODE)  # the umask took bits away
    return descriptor
