"""Worker threads that copy groups of tensors to a device, chunk by chunk.

The caller's thread allocates groups in order and enqueues their chunks. A worker takes the next chunk, waits until one
of its slots is free, fills it and starts the copy. So reading and copying overlap within a worker, and the workers'
system calls run in parallel, because they release the GIL. Workers start before there is anything to copy and prepare
their buffers in the background; they release them after the caller has its tensors.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tonnage.attach.copy.chunks import Chunk, split_group
from tonnage.attach.copy.group_copier import GroupCopier
from tonnage.attach.copy.reader import DIRECT_IO_ALIGNMENT, ChunkReader
from tonnage.attach.copy.staging import BounceBufferStrategy, HostRegisterStrategy, StagingStrategy
from tonnage.attach.errors import DeviceFailed
from tonnage.cache.cgroups import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from tonnage.attach.copy.chunks import Group
    from tonnage.attach.copy.group_copier import OnGroup, ProgressCallback
    from tonnage.attach.copy_options import CopyOptions
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.files.source_file import SourceFile

    Work = tuple[int, int, Chunk]

_IDLE_POLL_INTERVAL = 0.5
"""Seconds after which an idle worker checks whether the program has ended."""
_POLL_INTERVAL = 0.1
"""Seconds after which the caller checks its workers and reports progress."""


class CopyWorkers(GroupCopier):
    """Workers for one run."""

    def __init__(self, engine: Engine, options: CopyOptions) -> None:
        super().__init__(engine, options)
        self._reader: ChunkReader | None = None
        self._work_queue: SimpleQueue[Work | None] = SimpleQueue()
        self._completed_chunks: SimpleQueue[int] | None = None
        self._worker_exits = threading.Semaphore(0)
        self._failures: list[BaseException] = []
        self._stop = False
        self._running = 0
        self._pinned = True
        cores = int(usable_cores())  # rounded down: more threads than cores make a copy slower
        self.threads = options.threads_for(min(cores, len(self._local_cpus) or cores))
        self._copied_bytes = [0] * self.threads

    @property
    def pinned_bytes(self) -> int:
        """Maximum bytes of host memory that the workers pin."""
        options = self._options
        each = options.register_bytes if options.way == "register" else options.slot_bytes
        return self.threads * options.slots * each if self._pinned else 0

    def start(self) -> None:
        self._running = self.threads
        # From another thread, because starting a thread blocks until it runs.
        threading.Thread(target=self._start_workers, name="tonnage-copy-start").start()

    def _start_workers(self) -> None:
        for number in range(self.threads):
            try:
                threading.Thread(target=self._run_worker, args=(number,), name=f"tonnage-copy-{number}").start()
            except RuntimeError as error:  # thread limit reached, or the interpreter is shutting down
                self._fail(error)
                self._worker_exits.release(self.threads - number)
                return

    def _copy_all(
        self, files: Sequence[SourceFile], groups: Sequence[Group], on_group: OnGroup, progress: ProgressCallback | None
    ) -> None:
        bases: list[torch.Tensor] = []  # keeps every target alive until the workers have ended
        with self._running_workers(files, progress):
            for number, group in enumerate(groups):
                base, _ = self._enqueue_group(number, group)
                bases.append(base)
                on_group(group, base)
                if self._failures:
                    break
            self.allocated_at = time.perf_counter()

    def iterate(
        self,
        files: Sequence[SourceFile],
        groups: Sequence[Group],
        *,
        window: int,
        progress: ProgressCallback | None = None,
    ) -> Iterator[tuple[Group, torch.Tensor]]:
        bases: list[torch.Tensor | None] = []
        with self._running_workers(files, progress):
            yield from self._complete_groups(groups, bases, window, progress)
            self.allocated_at = time.perf_counter()

    @contextlib.contextmanager
    def _running_workers(self, files: Sequence[SourceFile], progress: ProgressCallback | None) -> Iterator[None]:
        """Lets the workers copy what is enqueued within the context, and waits for them at its end."""
        self._use()
        self._reader = ChunkReader(files, direct=self._options.direct)
        try:
            with _gc_disabled():
                yield
                self._join(progress)
        except BaseException:
            self._stop = True
            self._join(None, quiet=True)
            raise
        finally:
            self._reader.close()
        if self._failures:
            raise self._failures[0]

    def close(self) -> None:
        if not self._used:
            self._used = True
            self._join(None, quiet=True)

    def _enqueue_group(self, number: int, group: Group) -> tuple[torch.Tensor, int]:
        """Allocates a group and enqueues its chunks; returns the allocation and the number of chunks."""
        base = self._allocate(group)
        address = base.data_ptr()
        count = 0
        for chunk in split_group(group, chunk_bytes=self._chunk_bytes()):
            self._work_queue.put((number, address, chunk))
            count += 1
        return base, count

    def _chunk_bytes(self) -> int:
        if self._options.way == "register":
            return self._options.register_bytes
        direct = self._reader is not None and self._reader.may_read_direct
        return self._options.slot_bytes - (2 * DIRECT_IO_ALIGNMENT if direct else 0)

    def _complete_groups(
        self,
        groups: Sequence[Group],
        bases: list[torch.Tensor | None],
        window: int,
        progress: ProgressCallback | None,
    ) -> Iterator[tuple[Group, torch.Tensor]]:
        completed_chunks = self._completed_chunks = SimpleQueue()
        chunks_left: list[int] = []
        live_bytes = 0
        while len(chunks_left) < len(groups) or live_bytes:
            while len(chunks_left) < len(groups) and (
                not live_bytes or live_bytes + groups[len(chunks_left)].size <= window
            ):
                live_bytes += groups[len(chunks_left)].size
                base, count = self._enqueue_group(len(chunks_left), groups[len(chunks_left)])
                bases.append(base)
                chunks_left.append(count)
                del base
            if self._failures:
                return
            try:
                number = completed_chunks.get(timeout=_POLL_INTERVAL)
            except Empty:
                number = -1
            if progress is not None:
                progress(sum(self._copied_bytes))
            if number < 0:
                continue
            chunks_left[number] -= 1
            if not chunks_left[number]:
                ready, bases[number] = bases[number], None
                if ready is not None:
                    yield groups[number], ready
                del ready
                live_bytes -= groups[number].size

    def _join(self, progress: ProgressCallback | None, *, quiet: bool = False) -> None:
        """Waits until every worker has drained its copies, so that nothing writes to the device any more."""
        for _ in range(self._running):
            self._work_queue.put(None)
        while self._running:
            if self._worker_exits.acquire(timeout=_POLL_INTERVAL):
                self._running -= 1
            elif progress is not None and not quiet:
                progress(sum(self._copied_bytes))
        if progress is not None and not self._failures:
            progress(sum(self._copied_bytes))

    def _run_worker(self, number: int) -> None:
        strategy: StagingStrategy | None = None
        try:
            if self._local_cpus:
                os.sched_setaffinity(0, self._local_cpus)
            strategy = self._new_strategy()
            self._copy_chunks(strategy, number)
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            self._fail(error)
        finally:
            self._drain(strategy)
            self._worker_exits.release()
        if self._reader is not None:
            self._reader.release_page_tables()
        if strategy is not None:
            with contextlib.suppress(DeviceFailed):  # the caller already has its tensors, or the original error
                strategy.close()

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)
        self._stop = True

    def _new_strategy(self) -> StagingStrategy:
        self._engine.start()
        queue = self._engine.queue(self._options.slots, streams=self._options.streams)
        if self._options.way == "register":
            return HostRegisterStrategy(queue, slots=self._options.slots)
        return BounceBufferStrategy(queue, slots=self._options.slots, slot_bytes=self._options.slot_bytes)

    def _drain(self, strategy: StagingStrategy | None) -> None:
        if strategy is None:
            return
        try:
            strategy.drain()
            self._pinned &= strategy.pinned
        except Exception as error:  # noqa: BLE001  # as above; a broken device fails here again
            self._failures.append(error)

    def _copy_chunks(self, strategy: StagingStrategy, number: int) -> None:
        """Copies chunks until there are no more, using the slots in turn."""
        slots = self._options.slots
        for slot in range(slots):
            if not self._work_queue.empty():
                break
            strategy.prepare(slot)
        slot_groups = [-1] * slots
        slot = 0
        while not self._stop:
            work = self._next_item(strategy, slot_groups)
            if work is None or self._reader is None:
                break
            group, base_address, chunk = work
            strategy.wait(slot)
            self._complete_slot(slot_groups, slot)
            strategy.copy_chunk(slot, base_address, chunk, self._reader)
            slot_groups[slot] = group
            self._copied_bytes[number] += chunk.data_bytes
            slot = (slot + 1) % slots
        strategy.drain()
        for slot in range(slots):
            self._complete_slot(slot_groups, slot)

    def _next_item(self, strategy: StagingStrategy, slot_groups: list[int]) -> Work | None:
        """Returns the next chunk. With a window, the caller waits for completed copies, so drain before blocking."""
        if self._completed_chunks is not None:
            try:
                return self._work_queue.get_nowait()
            except Empty:
                strategy.drain()
                for slot in range(len(slot_groups)):
                    self._complete_slot(slot_groups, slot)
        while True:
            try:
                return self._work_queue.get(timeout=_IDLE_POLL_INTERVAL)
            except Empty:
                # Otherwise a program that ends without closing its weights would wait for its workers forever.
                if not threading.main_thread().is_alive():
                    return None

    def _complete_slot(self, slot_groups: list[int], slot: int) -> None:
        if slot_groups[slot] >= 0 and self._completed_chunks is not None:
            self._completed_chunks.put(slot_groups[slot])
        slot_groups[slot] = -1


@contextlib.contextmanager
def _gc_disabled() -> Iterator[None]:
    """Disables the garbage collector: with many objects, a collection holds the GIL for 50 ms and more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
