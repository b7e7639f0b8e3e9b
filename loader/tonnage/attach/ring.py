"""Worker threads that bring groups of tensors to a device, chunk by chunk.

The caller's thread allocates groups in order and hands their chunks out; a worker takes the next chunk, waits until one
of its slots is free, fills it and starts the copy. Reading and copying so overlap within a worker, and the workers'
system calls among each other, since none of them holds the interpreter's lock. Workers start before there is anything
to copy and make their buffers ready meanwhile; they give them back after the caller has what it wanted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tonnage.attach.chunks import Chunk, chunks_of
from tonnage.attach.errors import DeviceFailed
from tonnage.attach.lanes import BounceLane, Lane, RegisteringLane
from tonnage.attach.reading import DISK_BLOCK, Reader
from tonnage.cache.cgroups import usable_cores
from tonnage.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from tonnage.attach.chunks import Group
    from tonnage.attach.engine import Engine
    from tonnage.attach.files import SourceFile
    from tonnage.attach.options import CopyOptions

    Work = tuple[int, int, Chunk]
    OnGroup = Callable[[Group, torch.Tensor], None]
    Progress = Callable[[int], None]

_ENOUGH_CORES = 8
"""Fewer than this near the device, and the others are worth their longer way."""
_IDLE_SECONDS = 0.5
"""How often a worker without work looks whether the program has ended."""
_LOOK_SECONDS = 0.1
"""How often the caller looks after its workers and tells the progress."""


class Ring:
    """Workers for one run. ``start`` them as early as possible, ``run`` once, and ``close`` in any case."""

    def __init__(self, engine: Engine, options: CopyOptions) -> None:
        self._engine = engine
        self._options = options
        self._reader: Reader | None = None
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._arrived: SimpleQueue[int] | None = None
        self._ended = threading.Semaphore(0)
        self._failures: list[BaseException] = []
        self._stop = False
        self._used = False
        self._alive = 0
        self._pinned = True
        near = engine.near_cores()
        self._near = near if len(near) >= _ENOUGH_CORES else set()
        cores = int(usable_cores())  # rounded down: more threads than cores make a copy slower
        self.threads = options.threads_for(min(cores, len(self._near) or cores))
        self._counts = [0] * self.threads
        self.allocated_at = 0.0

    @property
    def pinned_bytes(self) -> int:
        """Host memory that the workers pin, at most."""
        options = self._options
        each = options.register_bytes if options.way == "register" else options.slot_bytes
        return self.threads * options.slots * each if self._pinned else 0

    def start(self) -> None:
        """Starts the workers, and doesn't keep the caller meanwhile: to start a thread is to wait until it runs."""
        self._alive = self.threads
        threading.Thread(target=self._start_workers, name="tonnage-copy-start").start()

    def _start_workers(self) -> None:
        for number in range(self.threads):
            try:
                threading.Thread(target=self._worker, args=(number,), name=f"tonnage-copy-{number}").start()
            except RuntimeError as error:  # no more threads, or the program is ending
                self._fail(error)
                self._ended.release(self.threads - number)
                return

    def run(
        self,
        files: Sequence[SourceFile],
        groups: Sequence[Group],
        *,
        on_group: OnGroup,
        window: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Brings all groups to the device. When it returns, everything is there.

        Args:
            files: What the groups' runs refer to.
            groups: In the order in which they shall come.
            on_group: Called with each group and its allocation in the caller's thread. With ``window`` 0 as soon as the
                allocation is made, when its contents still mean nothing; else when they have arrived.
            window: How many bytes of groups may be allocated and not yet handed to ``on_group``, where one group alone
                isn't more; 0: no limit.
            progress: Called now and then with the bytes so far, in the caller's thread.

        Raises:
            CacheDamaged: A file became shorter or can't be read.
            DeviceFailed: The device refused something.
        """
        if self._used:
            raise InternalError("A ring was run twice.")
        self._used = True
        self._reader = Reader(files, direct=self._options.direct)
        bases: list[torch.Tensor | None] = []  # keeps every target alive until the workers have ended
        try:
            with _no_collection():
                self._hand_out(groups, bases, on_group, window, progress)
                self._finish(progress)
        except BaseException:
            self._stop = True
            self._finish(None, quiet=True)
            raise
        finally:
            self._reader.close()
        if self._failures:
            raise self._failures[0]

    def _hand_out(
        self,
        groups: Sequence[Group],
        bases: list[torch.Tensor | None],
        on_group: OnGroup,
        window: int,
        progress: Progress | None,
    ) -> None:
        if window:
            self._run_windowed(groups, bases, on_group, window, progress)
            return
        for number, group in enumerate(groups):
            base, _ = self._place(number, group)
            bases.append(base)
            on_group(group, base)
            if self._failures:
                break
        self.allocated_at = time.perf_counter()

    def close(self) -> None:
        """Lets the workers end, if they haven't; returns without waiting for them to give their buffers back."""
        if not self._used:
            self._used = True
            self._finish(None, quiet=True)

    def _place(self, number: int, group: Group) -> tuple[torch.Tensor, int]:
        """Allocates a group and hands its chunks out; returns the allocation and how many chunks it has."""
        base = self._engine.empty(group.size)
        self._engine.settle()
        address = base.data_ptr()
        count = 0
        for chunk in chunks_of(group, chunk_bytes=self._chunk_bytes()):
            self._work.put((number, address, chunk))
            count += 1
        return base, count

    def _chunk_bytes(self) -> int:
        if self._options.way == "register":
            return self._options.register_bytes
        direct = self._reader is not None and self._reader.may_read_direct
        return self._options.slot_bytes - (2 * DISK_BLOCK if direct else 0)

    def _run_windowed(
        self,
        groups: Sequence[Group],
        bases: list[torch.Tensor | None],
        on_group: OnGroup,
        window: int,
        progress: Progress | None,
    ) -> None:
        arrived = self._arrived = SimpleQueue()
        missing: list[int] = []
        live = 0
        while len(missing) < len(groups) or live:
            while len(missing) < len(groups) and (not live or live + groups[len(missing)].size <= window):
                live += groups[len(missing)].size
                base, count = self._place(len(missing), groups[len(missing)])
                bases.append(base)
                missing.append(count)
            if self._failures:
                return
            try:
                number = arrived.get(timeout=_LOOK_SECONDS)
            except Empty:
                number = -1
            if progress is not None:
                progress(sum(self._counts))
            if number < 0:
                continue
            missing[number] -= 1
            if not missing[number]:
                ready, bases[number] = bases[number], None
                if ready is not None:
                    on_group(groups[number], ready)
                del ready
                live -= groups[number].size
        self.allocated_at = time.perf_counter()

    def _finish(self, progress: Progress | None, *, quiet: bool = False) -> None:
        """Waits until every worker has drained its copies, so that nobody writes to the device any more."""
        for _ in range(self._alive):
            self._work.put(None)
        while self._alive:
            if self._ended.acquire(timeout=_LOOK_SECONDS):
                self._alive -= 1
            elif progress is not None and not quiet:
                progress(sum(self._counts))
        if progress is not None and not self._failures:
            progress(sum(self._counts))

    def _worker(self, number: int) -> None:
        lane: Lane | None = None
        try:
            if self._near:
                os.sched_setaffinity(0, self._near)
            lane = self._lane()
            self._feed(lane, number)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the caller's thread raises it
            self._fail(error)
        finally:
            self._drain(lane)
            self._ended.release()
        if self._reader is not None:
            self._reader.give_back()
        if lane is not None:
            with contextlib.suppress(DeviceFailed):  # the caller has long had what it wanted, or a better error
                lane.close()

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)
        self._stop = True

    def _lane(self) -> Lane:
        self._engine.start()
        queue = self._engine.queue(self._options.slots, sleep=self._options.sleep, streams=self._options.streams)
        if self._options.way == "register":
            return RegisteringLane(queue, slots=self._options.slots)
        return BounceLane(queue, slots=self._options.slots, slot_bytes=self._options.slot_bytes)

    def _drain(self, lane: Lane | None) -> None:
        if lane is None:
            return
        try:
            lane.drain()
            self._pinned &= lane.pinned
        except Exception as error:  # noqa: BLE001  # as above; a broken device fails here again
            self._failures.append(error)

    def _feed(self, lane: Lane, number: int) -> None:
        """One worker's life: chunk after chunk, slot after slot."""
        slots = self._options.slots
        for slot in range(slots):
            if not self._work.empty():
                break
            lane.prepare(slot)
        holding = [-1] * slots
        slot = 0
        while not self._stop:
            work = self._next(lane, holding)
            if work is None or self._reader is None:
                break
            group, base, chunk = work
            lane.wait(slot)
            self._tell(holding, slot)
            lane.send(slot, base, chunk, self._reader)
            holding[slot] = group
            self._counts[number] += chunk.size
            slot = (slot + 1) % slots
        lane.drain()
        for slot in range(slots):
            self._tell(holding, slot)

    def _next(self, lane: Lane, holding: list[int]) -> Work | None:
        """The next chunk. With a window nobody hands out more until arrivals are told, so drain before waiting."""
        if self._arrived is not None:
            try:
                return self._work.get_nowait()
            except Empty:
                lane.drain()
                for slot in range(len(holding)):
                    self._tell(holding, slot)
        while True:
            try:
                return self._work.get(timeout=_IDLE_SECONDS)
            except Empty:
                # A program that ends without closing its weights would otherwise wait for its workers for ever.
                if not threading.main_thread().is_alive():
                    return None

    def _tell(self, holding: list[int], slot: int) -> None:
        if holding[slot] >= 0 and self._arrived is not None:
            self._arrived.put(holding[slot])
        holding[slot] = -1


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Puts the garbage collector off: among many objects it holds the interpreter's lock for 50 ms and more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
