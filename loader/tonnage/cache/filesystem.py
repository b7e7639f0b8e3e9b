"""Operations on files and directories, with errors that name the operation and the path."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import CacheDamaged, CacheNotWritable, InsufficientSpace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage.errors import TonnageError

DIRECTORY_MODE = 0o755
PUBLISHED_MODE = 0o444
PRIVATE_MODE = 0o644
"""Permission bits. Serving containers run as other users and must be able to read all files."""

TEMPORARY_SUFFIX = ".tmp"
"""Suffix of incomplete files, which recovery removes. The rest of their name is random: another process may write the
same file."""

_NO_SPACE_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def translate_os_errors(
    action: str, *, otherwise: type[TonnageError] = CacheNotWritable, space_remedy: str = ""
) -> Iterator[None]:
    """Translates an ``OSError``.

    Args:
        action: The failed action, as the beginning of a sentence: "The directory /x can't be created".
        otherwise: The error if space is not the reason.
        space_remedy: The remedy if it is; empty for that of the cache.

    Raises:
        InsufficientSpace: The medium or a quota is full.
        TonnageError: Any other error, as ``otherwise``.
    """
    try:
        yield
    except OSError as error:
        message = f"{action}: {error.strerror or error}."
        if error.errno in _NO_SPACE_ERRNOS:
            raise InsufficientSpace(message, remedy=space_remedy) from error
        raise otherwise(message) from error


def make_directory(path: Path) -> None:
    """Creates a directory that all users can read, regardless of the umask. An existing one is not changed.

    Raises:
        InsufficientSpace: No space or no inode is left.
        CacheNotWritable: It can't be created, or the path is not a directory.
    """
    with translate_os_errors(f"The cache directory {path} can't be created"):
        for last in (False, False, False, True):
            try:
                path.mkdir(DIRECTORY_MODE)
                path.chmod(DIRECTORY_MODE)
            except FileExistsError:
                # An eviction renames the model's directory, so it may have disappeared since.
                if path.is_dir():
                    return
                if last:
                    raise
            except FileNotFoundError:
                if last or not path.parent.is_dir():
                    raise
            else:
                return


def write_atomically(path: Path, data: bytes, *, mode: int = PRIVATE_MODE, sync: bool) -> None:
    """Writes a file so that readers see either the previous contents or all of ``data``."""
    replace_file(write_temporary(path, data, mode=mode, sync=sync), path, sync=sync)


def create_empty_file(path: Path, *, sync: bool) -> None:
    """Creates an empty file. An existing one is not changed.

    Raises:
        InsufficientSpace: No inode is left.
        CacheNotWritable: It can't be created.
    """
    with translate_os_errors(f"{path} can't be created"):
        try:
            path.touch(PRIVATE_MODE, exist_ok=False)
        except FileExistsError:
            return
        path.chmod(PRIVATE_MODE)
    if sync:
        fsync_path(path.parent)


def write_temporary(path: Path, data: bytes, *, mode: int = PRIVATE_MODE, sync: bool) -> Path:
    """Writes ``data`` to a temporary file next to ``path`` and returns its path.

    Args:
        path: The final path.
        data: The contents.
        mode: Permission bits.
        sync: Whether the medium is a disk, where data must be flushed before the rename.

    Raises:
        InsufficientSpace: The medium is full.
        CacheNotWritable: It can't be written.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}{TEMPORARY_SUFFIX}")
    with translate_os_errors(f"{path} can't be written"):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            done = 0
            while done < len(data):
                done += os.write(descriptor, data[done:])
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return temporary


def replace_file(temporary: Path, path: Path, *, sync: bool) -> None:
    """Renames ``temporary`` to ``path``, replacing an existing file.

    Raises:
        CacheNotWritable: The rename failed.
    """
    with translate_os_errors(f"{path} can't be renamed into place"):
        temporary.rename(path)
    if sync:
        fsync_path(path.parent)


def open_for_reading(path: Path) -> int:
    """Opens a regular file and returns its descriptor. Never waits and follows no link, whatever others have put there.

    Raises:
        OSError: It can't be opened, or is something else, such as a link, a pipe or a directory.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def read_file(path: Path, *, limit: int) -> bytes | None:
    """Returns the bytes of a file that others may have written; None if it doesn't exist.

    Args:
        path: The file.
        limit: The most bytes that it may have.

    Raises:
        CacheDamaged: It is larger, is not a regular file, or can't be read.
    """
    try:
        with os.fdopen(open_for_reading(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(limit + 1) if size <= limit else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheDamaged(f"{path} can't be read: {error.strerror}.") from error
    if max(size, len(data)) > limit:
        raise CacheDamaged(f"{path} has {max(size, len(data)):,} bytes, more than the limit of {limit:,}.")
    return data


def fsync_path(path: Path) -> None:
    """Flushes a file or directory to the disk.

    Raises:
        CacheNotWritable: The flush failed.
    """
    with translate_os_errors(f"{path} can't be flushed to the disk"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FileIdentity(NamedTuple):
    """What distinguishes a file or directory from all others of this machine, whatever its name."""

    device: int
    inode: int


def file_identity(place: Path | int) -> FileIdentity | None:
    """Returns the identity of a path, without following a link, or of an open descriptor; None if it doesn't exist.

    Raises:
        CacheNotWritable: It can't be accessed.
    """
    with translate_os_errors(f"{place} can't be accessed"):
        try:
            found = os.fstat(place) if isinstance(place, int) else place.lstat()
        except FileNotFoundError:
            return None
    return FileIdentity(found.st_dev, found.st_ino)


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the size of each file below ``folder`` by relative path; empty if ``folder`` doesn't exist.

    Raises:
        CacheDamaged: It contains something that is neither a file nor a directory, such as a symbolic link, or that
            can't be read.
    """
    found: dict[str, int] = {}
    try:
        _collect(folder, "", found)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise CacheDamaged(f"{error.filename or folder} can't be read: {error.strerror}.") from error
    return found


def bytes_below(folder: Path) -> int:
    """Returns the size of all files below ``folder``. Whatever else is there, or can't be read, counts as nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                found = Path(place, name).lstat()
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def list_directories(folder: Path) -> list[Path]:
    """Returns ``folder`` and all directories below it, parents first."""
    found = [folder]
    for place in found:
        with os.scandir(place) as items:
            found.extend(sorted(Path(item) for item in items if item.is_dir(follow_symlinks=False)))
    return found


def read_range(descriptor: int, start: int, end: int, buffer: memoryview, *, path: Path) -> Iterator[memoryview]:
    """Reads the bytes from ``start`` (inclusive) to ``end`` (exclusive), each time into the same ``buffer``.

    Args:
        descriptor: A descriptor open for reading; its position doesn't change.
        start: Offset of the first byte.
        end: Offset after the last byte.
        buffer: Where to read to. The filled part is yielded; it is valid until the next read.
        path: The file's path, for the error message.

    Raises:
        OSError: A read failed.
        CacheDamaged: The file is shorter than ``end``.
    """
    position = start
    while position < end:
        count = os.preadv(descriptor, [buffer[: min(len(buffer), end - position)]], position)
        if not count:
            raise CacheDamaged(f"{path} ends at byte {position:,}, but has data up to byte {end:,}.")
        yield buffer[:count]
        position += count


def remove_tree(path: Path) -> None:
    """Removes a file, or a directory and its contents. Does nothing if ``path`` doesn't exist.

    Raises:
        CacheNotWritable: Something can't be removed.
    """
    with translate_os_errors(f"{path} can't be removed"):
        try:
            if stat.S_ISDIR(path.lstat().st_mode):
                import shutil  # takes as long to import as several modules; most loads have nothing to remove

                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return


def _collect(folder: Path, prefix: str, found: dict[str, int]) -> None:
    with os.scandir(folder) as items:
        for item in items:
            name = prefix + item.name
            if item.is_dir(follow_symlinks=False):
                _collect(Path(item.path), name + "/", found)
            elif item.is_file(follow_symlinks=False):
                found[name] = item.stat(follow_symlinks=False).st_size
            else:
                raise CacheDamaged(f"{item.path} is neither a file nor a directory.")
