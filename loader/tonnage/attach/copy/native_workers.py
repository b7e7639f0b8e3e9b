"""Copies groups of tensors with the compiled ring: threads without the GIL, each with a few pinned buffers.

The same interface as ``CopyWorkers``, which copies with Python's threads where there is no compiled part, for files on
disk, and from registered pages. Buffers are prepared by one background thread before there is anything to copy, and
released by it after the caller has its tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from array import array
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final

from tonnage.attach.copy import read_ways, thread_count
from tonnage.attach.copy.group_copier import GroupCopier
from tonnage.attach.copy.read_ways import NOTHING_READ, ReadStats, WayStats
from tonnage.attach.copy.staging import StagingBuffer
from tonnage.attach.copy.thread_count import ThreadCount, Window
from tonnage.attach.errors import DeviceFailed
from tonnage.attach.native.library import Failure, Stats
from tonnage.cache.cgroups import usable_cores
from tonnage.errors import CacheDamaged, InternalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from tonnage.attach.copy.chunks import Group
    from tonnage.attach.copy.group_copier import OnGroup, ProgressCallback
    from tonnage.attach.copy_options import CopyOptions
    from tonnage.attach.device.engine import Engine, NativeQueue
    from tonnage.attach.files.source_file import SourceFile

SPIN_NANOSECONDS = 20_000
"""How long an idle thread waits actively: an idle core of a virtual machine takes longer to start again."""
_DECISION_INTERVAL: Final = 0.004
"""Seconds between decisions on the way of reading."""
_POLL_INTERVAL: Final = 0.1
"""Seconds after which the background thread checks whether the program has ended."""
_READ_FAILED, _FILE_SHORT, _DEVICE_FAILED = 1, 2, 3


class NativeWorkers(GroupCopier):
    """One run of the ring."""

    def __init__(self, library: ctypes.CDLL, engine: Engine, options: CopyOptions) -> None:
        super().__init__(engine, options)
        self._library = library
        devices = max(1, engine.device_count())
        cores = max(1, int(usable_cores()))
        self._threads = (
            ThreadCount(options.threads, options.threads)
            if options.threads
            else thread_count.first_thread_count(min(cores, len(self._local_cpus) or cores), devices=devices)
        )
        self._slot_bytes = options.ring_buffer_bytes(
            threads=self._threads.limit, active=self._threads.active, devices=devices
        )
        self._window_began = 0.0
        self._window_stats = (0, 0.0, 0.0)
        self._ring: int | None = None
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._pinned_bytes = 0
        self._share = read_ways.FIRST_SHARE
        self._measured = NOTHING_READ
        self._files: Sequence[SourceFile] = ()
        self._descriptors: array[int] = array("i")

    @property
    def pinned_bytes(self) -> int:
        """Bytes of host memory that the ring pinned; 0 before the end of its run."""
        return self._pinned_bytes

    @property
    def _slots(self) -> int:
        return self._threads.limit * self._options.ring_slots

    @property
    def threads(self) -> int:
        """Threads that copied last."""
        return self._threads.active

    def start(self) -> None:
        threading.Thread(target=self._prepare_and_release, name="tonnage-copy-ring").start()

    def close(self) -> None:
        self._used = True
        self._ended.set()

    def _copy_all(
        self, files: Sequence[SourceFile], groups: Sequence[Group], on_group: OnGroup, progress: ProgressCallback | None
    ) -> None:
        bases: list[torch.Tensor] = []  # keeps every target alive until the threads have ended
        ahead = self._allocate_ahead(groups)
        with self._running(files, progress) as ring:
            for group in groups:
                base = ahead.popleft() if ahead else self._allocate(group)
                bases.append(base)
                self._add_group(ring, group, base)
                on_group(group, base)
                self._decide(ring)
                self._raise_failure(ring)
            self.allocated_at = time.perf_counter()

    def iterate(
        self,
        files: Sequence[SourceFile],
        groups: Sequence[Group],
        *,
        window: int,
        progress: ProgressCallback | None = None,
    ) -> Iterator[tuple[Group, torch.Tensor]]:
        bases: deque[torch.Tensor] = deque()
        live_bytes = 0
        with self._running(files, progress) as ring:
            added = 0
            for number, group in enumerate(groups):
                while added < len(groups) and (not live_bytes or live_bytes + groups[added].size <= window):
                    bases.append(self._allocate(groups[added]))
                    self._add_group(ring, groups[added], bases[-1])
                    live_bytes += groups[added].size
                    added += 1
                self._wait_for_group(ring, number, progress)
                yield group, bases.popleft()
                live_bytes -= group.size
            self.allocated_at = time.perf_counter()

    @contextlib.contextmanager
    def _running(self, files: Sequence[SourceFile], progress: ProgressCallback | None) -> Iterator[int]:
        """Lets the threads copy the groups that are added within the context, and waits for them at its end."""
        self._use()
        self._ready.wait()
        if self._failure is not None or self._ring is None:
            raise self._failure or InternalError("The copy ring was not created.")
        ring = self._ring
        self._window_began = time.perf_counter()
        self._files = files
        self._descriptors = array("i", [-1]) * len(files)
        self._library.ring_set_mapped_share(ring, self._share)
        self._library.ring_begin(ring, self._descriptors.buffer_info()[0], len(files))
        try:
            yield ring
            self._library.ring_finish(ring)
            self._wait_for_end(ring, progress)
            self._pinned_bytes = self._library.ring_pinned(ring)
            self._raise_failure(ring)
        except BaseException:
            self._library.ring_stop(ring)
            self._wait_for_end(ring, None)
            raise
        if progress is not None:
            progress(self._library.ring_copied(ring))

    def _allocate_ahead(self, groups: Sequence[Group]) -> deque[torch.Tensor]:
        """Allocates groups until buffers are ready: later, allocating competes with copies for the driver."""
        ahead: deque[torch.Tensor] = deque()
        for group in groups:
            if self._failure is not None or (self._ring is not None and self._library.ring_prepared(self._ring)):
                break
            ahead.append(self._allocate(group))
        return ahead

    def _add_group(self, ring: int, group: Group, base: torch.Tensor) -> None:
        for number in {extent.file for extent in group.extents}:
            self._descriptors[number] = self._files[number].descriptor
        extents = array("Q", chain.from_iterable(group.extents))
        if self._library.ring_add_group(ring, base.data_ptr(), extents.buffer_info()[0], len(group.extents)):
            raise MemoryError

    def _wait_for_end(self, ring: int, progress: ProgressCallback | None) -> None:
        """Waits until every thread is done, so that nothing reads the files or writes to the device any more."""
        while self._library.ring_wait(ring, 0, _DECISION_INTERVAL):
            self._decide(ring)
            if progress is not None:
                progress(self._library.ring_copied(ring))

    def _wait_for_group(self, ring: int, number: int, progress: ProgressCallback | None) -> None:
        while self._library.ring_groups_done(ring) <= number:
            self._library.ring_wait(ring, number + 1, _DECISION_INTERVAL)
            self._decide(ring)
            self._raise_failure(ring)
            if progress is not None:
                progress(self._library.ring_copied(ring))

    def _decide(self, ring: int) -> None:
        """Adjusts the way of reading, and the number of threads unless it is given."""
        raw = Stats()
        self._library.ring_read_stats(ring, ctypes.byref(raw))
        if not self._options.threads:
            self._decide_threads(ring, raw)
        stats = ReadStats(*(WayStats(raw.bytes[way], raw.nanoseconds[way] / 1e9) for way in range(2)))
        since = stats.since(self._measured)
        if read_ways.can_compare(since):
            self._measured = stats
            self._share = read_ways.next_mapped_share(self._share, since)
            self._library.ring_set_mapped_share(ring, self._share)

    def _decide_threads(self, ring: int, raw: Stats) -> None:
        now = time.perf_counter()
        totals = (sum(raw.bytes), sum(raw.nanoseconds) / 1e9, raw.waited / 1e9)
        size, reading, waiting = (one - other for one, other in zip(totals, self._window_stats, strict=True))
        window = Window(int(size), now - self._window_began, reading, waiting)
        is_preparing = self._library.ring_prepared(ring) < self._threads.active
        if is_preparing or thread_count.can_decide(window):
            self._window_began, self._window_stats = now, totals
        if is_preparing:  # a thread that pins its buffers makes the others wait for the driver
            return
        state = thread_count.next_thread_count(self._threads, window)
        if state.active != self._threads.active:
            self._library.ring_set_active(ring, state.active)
        self._threads = state

    def _raise_failure(self, ring: int) -> None:
        if self._failure is not None:
            raise self._failure
        failure = Failure()
        self._library.ring_failure(ring, ctypes.byref(failure))
        if failure.kind == 0:
            return
        if failure.kind == _DEVICE_FAILED:
            raise self._engine.failure("The copy", failure.code)
        if failure.kind in {_READ_FAILED, _FILE_SHORT}:
            file = self._files[failure.file]
            if failure.kind == _FILE_SHORT:
                raise CacheDamaged(
                    f"{file.path} ended at byte {failure.offset:,}; it had {file.size:,} bytes when it was opened."
                )
            raise CacheDamaged(f"Reading {file.path} at byte {failure.offset:,} failed: {os.strerror(failure.code)}.")
        raise MemoryError

    def _prepare_and_release(self) -> None:
        buffers = None
        try:
            if self._local_cpus:
                os.sched_setaffinity(0, self._local_cpus)
            self._engine.start()
            buffers = _RingBuffers(
                self._library,
                self._engine.native_queue(self._slots),
                self._options,
                threads=self._threads.limit,
                slot_bytes=self._slot_bytes,
            )
            buffers.start_threads(self._threads.active)
            self._ring = buffers.ring
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            self._failure = error
        if self._failure is not None and buffers is not None:
            self._library.ring_stop(buffers.ring)
        self._ready.set()
        # Otherwise a program that ends without closing its weights would wait for this thread forever.
        while not self._ended.wait(_POLL_INTERVAL):
            if not threading.main_thread().is_alive():
                break
        if buffers is not None:
            with contextlib.suppress(DeviceFailed):  # the caller already has its tensors, or the original error
                buffers.release()


class _RingBuffers:
    """A ring with its memory and the driver's handles. Not thread-safe."""

    def __init__(
        self, library: ctypes.CDLL, queue: NativeQueue, options: CopyOptions, *, threads: int, slot_bytes: int
    ) -> None:
        self._library = library
        self._queue = queue
        slots = threads * options.ring_slots
        self._memory = StagingBuffer(slots * slot_bytes)
        self._device = queue.device(library)
        events = (ctypes.c_void_p * slots)(*map(queue.event, range(slots)))
        ring = library.ring_create(
            ctypes.byref(self._device),
            threads,
            options.ring_slots,
            slot_bytes,
            self._memory.address,
            events,
            options.piece_bytes,
            SPIN_NANOSECONDS,
        )
        if not ring:
            raise MemoryError
        self.ring: int = ring

    def start_threads(self, active: int) -> None:
        """Starts the threads, which allocate and pin their buffers."""
        if not self._library.ring_start_threads(self.ring, active):
            raise MemoryError

    def release(self) -> None:
        """Ends the threads and releases everything."""
        self._library.ring_stop(self.ring)
        self._library.ring_free(self.ring)
        self._queue.close()
