"""File locks that end with their process and work across containers: ``flock(2)`` on files that are never removed.

Lock files have mode 0666: a serving container runs as another user than the loader and must be able to take a shared
lock. The cost: any local user can block an entry's removal.

A lock belongs to the open file description, so a child process that inherits the descriptor keeps the lock. Descriptors
are closed on exec; pass them explicitly (``pass_fds``) to keep the lock. A process that is forked *without* exec must
not outlive its parent.
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
"""Seconds between two attempts. A blocking ``flock`` supports neither cancellation nor a deadline."""


class LockMode(enum.StrEnum):
    """How a lock is held: by any number of processes, or by one."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


_OPERATIONS = {LockMode.SHARED: fcntl.LOCK_SH, LockMode.EXCLUSIVE: fcntl.LOCK_EX}


class FileLock:
    """A lock on a file. Not thread-safe.

    The context manager releases the lock; acquire it explicitly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._mode: LockMode | None = None

    @property
    def mode(self) -> LockMode | None:
        """How it is held; None if it isn't."""
        return self._mode

    def fileno(self) -> int:
        """Returns the descriptor that holds the lock.

        Raises:
            InternalError: The lock isn't held.
        """
        if self._mode is None:
            raise InternalError(f"The descriptor of the lock {self.path} was requested, but the lock is not held.")
        return self._descriptor

    def try_acquire(self, mode: LockMode) -> bool:
        """Acquires the lock if possible without waiting. Returns whether it is held.

        Raises:
            CacheNotWritable: The lock file can't be created or opened.
            CacheDamaged: The path is not a lock file.
            InternalError: It is already held in the other mode. ``flock`` releases a lock before it converts it, so
                another process could acquire it in between.
        """
        if self._mode is mode:
            return True
        if self._mode is not None:
            raise InternalError(f"The lock {self.path} is held in mode {self._mode} and can't be converted to {mode}.")
        while True:
            self._descriptor = open_lock_file(self.path)
            try:
                fcntl.flock(self._descriptor, _OPERATIONS[mode] | fcntl.LOCK_NB)
            except OSError as error:
                self.release()
                if error.errno in {errno.EAGAIN, errno.EACCES}:
                    return False
                raise CacheNotWritable(f"The lock {self.path} can't be acquired: {error.strerror}.") from error
            if self._is_same_file():
                self._mode = mode
                return True
            self.release()  # the file was removed between open and flock, so this lock protects nothing

    def acquire(
        self,
        mode: LockMode,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Acquires the lock, waiting until it is released by others.

        Args:
            mode: How to hold it.
            deadline: ``time.monotonic()`` at which to stop waiting; None waits indefinitely.
            canceled: Polled before each attempt (at most 50 ms apart); return True to cancel.
            on_wait: Called once if the first attempt fails.

        Raises:
            Timeout: The deadline passed; the message lists the visible holders.
            Interrupted: ``canceled`` returned True.
            CacheNotWritable: The lock file can't be created or opened.
            CacheDamaged: The path is not a lock file.
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

    def is_refused_to_others(self) -> bool:
        """Returns whether a second descriptor of this process is refused the lock, which is held exclusively.

        If it is not, locks lock nothing here.

        Raises:
            CacheNotWritable: The lock file can't be opened.
        """
        other = FileLock(self.path)
        granted = other.try_acquire(LockMode.EXCLUSIVE)
        other.release()
        return not granted

    def touch(self) -> None:
        """Sets the modification time, which is the time of last use, to now. Does nothing without permission."""
        try:
            os.utime(self.fileno())
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise CacheNotWritable(
                    f"The modification time of {self.path} can't be set: {error.strerror}."
                ) from error

    def release(self) -> None:
        """Releases the lock. Does nothing if it is not held."""
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
    """Creates a lock file if it is missing, for users who are not permitted to create it.

    Raises:
        CacheNotWritable: It can't be created.
        CacheDamaged: The path is not a lock file.
    """
    if not path.is_file():
        os.close(open_lock_file(path))


def open_lock_file(path: Path) -> int:
    """Opens a lock file, and creates it if it is missing.

    Without write permission it is opened read-only, which is sufficient for ``flock``.

    Raises:
        CacheNotWritable: It can't be created or opened.
        CacheDamaged: The path is not a lock file.
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
            return _ensure_lock_file(path, descriptor, created=bool(attempt & os.O_CREAT))
        if set(failures) != {errno.ENOENT, errno.EEXIST}:  # both: another process created it between the attempts
            break
    decisive = next((failures[code] for code in failures if code not in {errno.ENOENT, errno.EEXIST}), None)
    decisive = decisive or failures[errno.ENOENT]
    if decisive.errno in {errno.ELOOP, errno.ENXIO}:
        raise CacheDamaged(f"{path} is not a lock file: {decisive.strerror}.") from decisive
    raise CacheNotWritable(f"The lock file {path} can't be created or opened: {decisive.strerror}.") from decisive


def _ensure_lock_file(path: Path, descriptor: int, *, created: bool) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheDamaged(f"{path} is not a lock file, but a directory or a device.")
    if created:
        os.fchmod(descriptor, LOCK_FILE_MODE)  # the umask may have cleared bits
    return descriptor
