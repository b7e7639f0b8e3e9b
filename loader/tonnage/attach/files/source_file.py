"""Files that hold tensors: with a descriptor while needed, and a mapping that is valid as long as a tensor uses it.

A process with threads waits when its table of descriptors grows: 20 to 40 ms on a machine with 32 cores, a tenth of a
copy of 18 GB to a GPU (Linux: fs/file.c, ``expand_fdtable`` calls ``synchronize_rcu``). So files are parked after their
headers were read, and a copy lets the table grow in the background.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import threading
from typing import TYPE_CHECKING, Self

from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from pathlib import Path

MAP_NORESERVE = 0x4000
"""Linux's flag, in the mmap module from Python 3.13 on: don't reserve memory for the private mapping, because a model
in a cache on disk may be larger than the machine's memory."""


def reserve_descriptors(count: int) -> None:
    """Makes room for this many more descriptors, in the background; does nothing where a limit forbids it."""
    threading.Thread(target=_use_descriptor, args=(count,), name="tonnage-descriptors", daemon=True).start()


def _use_descriptor(above_lowest: int) -> None:
    with contextlib.suppress(OSError):
        lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(lowest, fcntl.F_DUPFD_CLOEXEC, lowest + above_lowest))
        finally:
            os.close(lowest)


class SourceFile:
    """A file that holds tensors, open for reading.

    Attributes:
        path: Path of the file.
        size: Bytes when it was opened. Nothing beyond is read.
        device: Number of the device that holds it.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            CacheDamaged: The file can't be opened, or is not a regular file.
        """
        self._prepare(path)
        self.size = self._open(path)

    def _prepare(self, path: Path) -> None:
        self.path = path
        self.device = -1
        self._descriptor = -1
        self._inode = -1
        self._parked = False
        self._mapping: mmap.mmap | None = None
        self._lock = threading.RLock()

    def _open(self, path: Path) -> int:
        """Opens the file, and returns its size."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
        except OSError as error:
            self.close()
            raise CacheDamaged(f"{path} can't be opened: {error.strerror}.") from error
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CacheDamaged(f"{path} is not a regular file.")
        self.device, self._inode = status.st_dev, status.st_ino
        return status.st_size

    @property
    def descriptor(self) -> int:
        """The descriptor for ``pread``; -1 after ``close``. Opens the file if it is parked. Thread-safe.

        Raises:
            CacheDamaged: The file can't be opened again, or another file has its name by now.
        """
        with self._lock:
            if self._parked:
                self._open_again()
            return self._descriptor

    def park(self) -> None:
        """Closes the descriptor until it is needed. Nothing may be using it."""
        with self._lock:
            if self._descriptor >= 0:
                self._parked = True
                os.close(self._descriptor)
                self._descriptor = -1

    def _open_again(self) -> None:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CacheDamaged(f"{self.path} can't be opened again: {error.strerror}.") from error
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (self.device, self._inode):
            os.close(descriptor)
            raise CacheDamaged(f"{self.path} was replaced by another file after it was opened.")
        self._descriptor, self._parked = descriptor, False

    def require_size(self, size: int) -> None:
        """Raises an error if the file is shorter than its contents should be.

        Raises:
            CacheDamaged: The file has fewer than ``size`` bytes.
        """
        actual = os.fstat(self.descriptor).st_size
        if actual < size:
            raise CacheDamaged(f"{self.path} is truncated: it has {actual:,} bytes and should have at least {size:,}.")

    def mapping(self) -> mmap.mmap:
        """Returns a mapping of the whole file: private and copy-on-write, so that pages are shared until written.

        The mapping is never closed explicitly. It is unmapped with its last reference; each tensor holds one.

        Raises:
            CacheDamaged: The file became shorter, or can't be mapped.
        """
        with self._lock:
            if self._mapping is None:
                self.require_size(self.size)
                try:
                    self._mapping = mmap.mmap(
                        self.descriptor,
                        self.size,
                        flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
                        prot=mmap.PROT_READ | mmap.PROT_WRITE,
                    )
                except (OSError, ValueError) as error:
                    raise CacheDamaged(f"{self.path} can't be mapped: {error}.") from error
            return self._mapping

    def close(self) -> None:
        """Closes the descriptor and drops the reference to the mapping. Tensors in it stay valid."""
        with self._lock:
            self._mapping = None
            self._parked = False
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AwaitedFile(SourceFile):
    """A file that may not be there yet. Until it is open, it has no descriptor and can't be mapped.

    Attributes:
        size: Bytes that it will have.
    """

    def __init__(self, path: Path, size: int, *, other_path: Path | None = None) -> None:
        """Doesn't access the disk.

        Args:
            path: Its path.
            size: Its size in bytes.
            other_path: Where it may be instead.
        """
        self._prepare(path)
        self.size = size
        self._paths = [path] if other_path is None else [path, other_path]

    def try_open(self) -> bool:
        """Opens the file if it is there; returns whether it is open.

        Raises:
            CacheDamaged: It can't be opened, or has another size.
        """
        if self.descriptor >= 0:
            return True
        found = next((path for path in self._paths if path.exists()), None)
        if found is None:
            return False
        try:
            size = self._open(found)
        except CacheDamaged:
            if found.exists():
                raise
            return False  # removed since
        if size != self.size:
            self.close()
            raise CacheDamaged(f"{found} has {size:,} bytes, but {self.size:,} in the table of files.")
        return True
