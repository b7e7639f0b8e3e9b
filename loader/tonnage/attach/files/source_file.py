"""Files that are being read: one descriptor each, and a mapping that lives as long as any tensor over it."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from typing import TYPE_CHECKING, Self

from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from pathlib import Path

MAP_NORESERVE = 0x4000
"""Linux's flag, which the mmap module knows from Python 3.13 on: don't count the private mapping as memory in use, for
a model may be larger than the machine's memory when its cache is on disk."""


class SourceFile:
    """A file that holds tensors, open for reading.

    Attributes:
        path: Where it is.
        size: Its bytes when it was opened. Nothing beyond is ever touched.
        descriptor: For ``pread``; -1 once closed.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            CacheDamaged: It can't be opened, or isn't a regular file.
        """
        self.path = path
        self.descriptor = -1
        self._mapping: mmap.mmap | None = None
        self._lock = threading.Lock()
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self.descriptor)
        except OSError as error:
            self.close()
            raise CacheDamaged(f"{path} can't be opened: {error.strerror}.") from error
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CacheDamaged(f"{path} is not a regular file.")
        self.size = status.st_size

    def require_size(self, size: int) -> None:
        """Refuses a file that is shorter than what is said to be in it, now and at every later mapping.

        Raises:
            CacheDamaged: It has fewer than ``size`` bytes.
        """
        actual = os.fstat(self.descriptor).st_size
        if actual < size:
            raise CacheDamaged(f"{self.path} should have at least {size:,} bytes and has {actual:,}: it was cut off.")

    def mapping(self) -> mmap.mmap:
        """Returns the whole file as memory: private and copy-on-write, so that pages are the cache's own until written.

        Nobody ever closes the mapping: whoever holds it, each tensor included, keeps it, and the last one to go unmaps.

        Raises:
            CacheDamaged: The file became shorter, or the kernel can't map it.
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
        """Closes the descriptor and lets go of the mapping; tensors over it stay good."""
        with self._lock:
            self._mapping = None
            if self.descriptor >= 0:
                os.close(self.descriptor)
                self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
