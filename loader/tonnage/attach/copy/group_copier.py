"""What both kinds of copy workers have in common: one run, in which groups are passed on at once or when complete."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final

from tonnage.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from tonnage.attach.copy.chunks import Group
    from tonnage.attach.copy_options import CopyOptions
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.files.source_file import SourceFile

    OnGroup = Callable[[Group, torch.Tensor], None]
    ProgressCallback = Callable[[int], None]

_MIN_LOCAL_CPUS: Final = 8
"""With fewer cores on the device's NUMA node, threads use all cores: more of them outweigh the longer distance."""


class GroupCopier(abc.ABC):
    """Copies groups once. Call ``start`` as early as possible, ``run`` or ``iterate`` once, and ``close`` in any case.

    ``allocated_at`` is ``time.perf_counter()`` when the last group was allocated.
    """

    def __init__(self, engine: Engine, options: CopyOptions) -> None:
        self._engine = engine
        self._options = options
        local_cpus = engine.local_cpus()
        self._local_cpus = local_cpus if len(local_cpus) >= _MIN_LOCAL_CPUS else set()
        self._used = False
        self.allocated_at = 0.0

    @abc.abstractmethod
    def start(self) -> None:
        """Prepares threads and buffers in the background."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the threads if they were not run. Does not wait until they have released their buffers."""

    def run(
        self,
        files: Sequence[SourceFile],
        groups: Sequence[Group],
        *,
        on_group: OnGroup,
        window: int = 0,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Copies all groups to the device. Returns when all copies are complete.

        Args:
            files: The files that the groups' extents refer to.
            groups: The groups, in the order in which they are copied.
            on_group: Called with each group and its allocation in the caller's thread: with ``window`` 0 immediately
                after the allocation, before the data is there; otherwise when the group's copies are complete.
            window: Maximum bytes of groups that are allocated and not yet passed to ``on_group``. A single group may
                be larger. 0: no limit.
            progress: Called periodically with the bytes copied so far, in the caller's thread.

        Raises:
            CacheDamaged: A file became shorter or can't be read.
            DeviceFailed: The device's driver returned an error.
        """
        if not window:
            self._copy_all(files, groups, on_group, progress)
            return
        for group, base in self.iterate(files, groups, window=window, progress=progress):
            on_group(group, base)

    @abc.abstractmethod
    def iterate(
        self,
        files: Sequence[SourceFile],
        groups: Sequence[Group],
        *,
        window: int,
        progress: ProgressCallback | None = None,
    ) -> Iterator[tuple[Group, torch.Tensor]]:
        """Copies all groups to the device, and yields each with its allocation when its copies are complete.

        The allocation belongs to the caller, who may keep it: it is not used again. Closing the iterator early stops
        the copies.

        Args:
            files: The files that the groups' extents refer to.
            groups: The groups, in the order in which they are copied.
            window: Maximum bytes of groups that are allocated and not yet yielded. A single group may be larger.
            progress: Called periodically with the bytes copied so far, in the caller's thread.

        Raises:
            CacheDamaged: A file became shorter or can't be read.
            DeviceFailed: The device's driver returned an error.
        """

    @abc.abstractmethod
    def _copy_all(
        self, files: Sequence[SourceFile], groups: Sequence[Group], on_group: OnGroup, progress: ProgressCallback | None
    ) -> None:
        """Copies all groups, and passes each on when it is allocated."""

    def _use(self) -> None:
        """Must be called once, when the run begins."""
        if self._used:
            raise InternalError("The copy workers were run twice.")
        self._used = True

    def _allocate(self, group: Group) -> torch.Tensor:
        base = self._engine.empty(group.size)
        self._engine.synchronize()
        return base
