"""The coordinator: assigns parts to workers, handles their results and failures, until all tensors are verified."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from tonnage.cache.cgroups import memory_limit, usable_cores
from tonnage.errors import (
    CacheDamaged,
    CacheNotWritable,
    InsufficientSpace,
    InternalError,
    Interrupted,
    LoaderOOMKilled,
    Reason,
    Timeout,
    TonnageError,
    error_for,
)
from tonnage.source.backoff import backoff_seconds
from tonnage.source.request_failure import Retry
from tonnage.transfer.bandwidth import BandwidthLimiter
from tonnage.transfer.concurrency import INITIAL_CONNECTIONS, MIN_PART_SIZE, PART_SECONDS, ConnectionTuner
from tonnage.transfer.credential_state import CredentialState
from tonnage.transfer.hash_pool import HashPool
from tonnage.transfer.known_bytes import KnownBytes
from tonnage.transfer.part_queue import FILE_WRITERS, Part, PartQueue
from tonnage.transfer.peer_origin import split_at
from tonnage.transfer.progress_meter import ProgressMeter
from tonnage.transfer.protocol import (
    Fetch,
    FetchFailed,
    FetchSucceeded,
    Hashed,
    Received,
    Result,
    SetConnections,
    WriteFailed,
)
from tonnage.transfer.transfer_spec import DiscardedRange, DiscardedTensor, FetchedRange, TransferResult, TransferSpec
from tonnage.transfer.verification import Verification
from tonnage.transfer.worker_pool import PoolWorker, WorkerExit, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import ByteRange
    from tonnage.source.request_failure import RequestFailure
    from tonnage.transfer.checksum_tracker import CorruptTensor
    from tonnage.transfer.object_verification import CorruptObject
    from tonnage.transfer.peer_origin import PeerRange
    from tonnage.transfer.peer_queue import PeerQueue
    from tonnage.transfer.peer_transfer import PeerTransfer

POLL_SECONDS = 0.1
PREFETCH = 1
"""Parts queued at a worker beyond its connections, so that none is idle until the next message."""
MAX_ATTEMPTS = 8
"""Consecutive failures of a part without a byte of progress that are retried: about 40 seconds of backoff."""
MAX_BACKOFF_SECONDS = 15.0
THROTTLED_SECONDS = 60.0
"""A part that the store refuses because it has too many requests is retried until nothing has arrived for so long."""
MAX_RESPAWNS = 3
MAX_HASH_THREADS = 16
MAX_REFRESHES = 2
"""Consecutive denials of a part that are retried with refreshed credentials."""
CREDENTIAL_CHECK_SECONDS = 20.0


def transfer(spec: TransferSpec) -> TransferResult:
    """Transfers and verifies all bytes of a blueprint.

    Raises:
        TonnageError: The transfer failed. The ranges that are on disk have been recorded.
    """
    return _Transfer(spec).run()


class _Transfer:
    """The state of one transfer."""

    def __init__(self, spec: TransferSpec) -> None:
        self._spec = spec
        self._segments = spec.blueprint.segments
        self._result = TransferResult()
        self._verification = Verification(spec, self._result)
        self._next_id = 0
        done = self._verification.replay()
        self._known_bytes = KnownBytes(spec, self._verification)
        corrupt_tensors = self._known_bytes.add(spec.known_bytes, done)
        objects = spec.blueprint.objects
        self._peers = self._with_peers(done)
        self._queue: PartQueue | PeerQueue = (self._peers.queue if self._peers is not None else None) or PartQueue(
            sorted(self._segments, key=lambda each: objects[each.object_index].tensors_index is not None),
            done,
            max_part_size=spec.concurrency.part_size,
            min_part_size=min(MIN_PART_SIZE, spec.concurrency.part_size),
        )
        self._credential_state = CredentialState(spec)
        self._sent_generation: dict[int, int] = {}
        self._respawns = 0
        self._received_at = time.monotonic()
        concurrency = spec.concurrency
        maximum = -(-concurrency.connections // concurrency.workers)
        self._tuner = ConnectionTuner(initial=maximum if concurrency.fixed else INITIAL_CONNECTIONS, maximum=maximum)
        self._bandwidth_limiter = BandwidthLimiter(spec.bandwidth, now=time.monotonic())
        self._meter = ProgressMeter(total=spec.blueprint.source_bytes, resumed=self._result.resumed)
        for corrupt in corrupt_tensors:
            self._refetch(corrupt)
        self._hash_pool = HashPool(spec.paths, threads=max(1, min(int(usable_cores()), MAX_HASH_THREADS)))

    def _with_peers(self, done: Mapping[int, list[ByteRange]]) -> PeerTransfer | None:
        """Returns the peers of this transfer, if it asks any."""
        spec, finished = self._spec, self._verification.finished
        if spec.peers is None or finished is None:
            return None
        from tonnage.transfer.peer_transfer import PeerTransfer  # most loads have no peers

        believable = self._verification.believable()
        peers = PeerTransfer(spec, spec.peers, self._result, done, finished, believable=believable)
        self._verification.is_from_peer = lambda *place: bool(peers.origin.within(*place))
        return peers

    # -- loop

    def run(self) -> TransferResult:
        try:
            self._verification.objects.start()
            self._check_objects()
            self._announce_files()
            if self._has_work:
                pool = WorkerPool(
                    self._spec.worker_host,
                    setup=self._credential_state.setup(),
                    wakeup_fd=self._hash_pool.wakeup_fd,
                )
                try:
                    self._start_workers(pool)
                    self._loop(pool)
                finally:
                    pool.close()
        finally:
            self._hash_pool.close()
        self._verification.finish()
        return self._result

    def _start_workers(self, pool: WorkerPool) -> None:
        """Starts all workers. Each gets its parts at once: starting dozens takes longer than the first request."""
        if self._peers is not None:
            self._peers.poll(time.monotonic())
        for number in range(self._spec.concurrency.workers):
            pool.start(number)
            pool.workers[number].process.send(self._connections())
            self._dispatch(pool)
        self._result.connections = self._spec.concurrency.workers * self._tuner.connections

    @property
    def _has_work(self) -> bool:
        return bool(self._queue.remaining or self._verification.pending_hashes or self._hash_pool.outstanding)

    def _loop(self, pool: WorkerPool) -> None:
        checked = time.monotonic()
        self._dispatch(pool)
        while self._has_work or any(member.parts or member.hashes for member in pool.workers.values()):
            for worker, message in pool.poll(self._timeout()):
                self._handle(pool, worker, message)
            self._check_objects()
            self._announce_files()
            now = time.monotonic()
            if self._peers is not None:
                if self._peers.poll(now):
                    self._tune(pool)
                for corrupt in self._known_bytes.take(self._peers):
                    self._refetch(corrupt)
            self._check_time(now)
            if now - checked > CREDENTIAL_CHECK_SECONDS:
                checked = now
                self._credential_state.refresh_expiring(pool)
            self._adapt(pool, now)
            self._dispatch(pool)
            self._progress(now)

    def _announce_files(self) -> None:
        for file in self._verification.complete_files.take():
            self._spec.on_file(file)
        self._queue.max_open = max_open_files(self._spec.concurrency.workers) if self._spec.has_readers() else None

    def _adapt(self, pool: WorkerPool, now: float) -> None:
        """Adapts the part size and the number of connections to the rate."""
        if self._peers is not None and self._peers.queue.has_peers:
            return  # the rate is that of peers, too
        rate = self._meter.interval_rate(now, skip=ConnectionTuner.SETTLING, seconds=ConnectionTuner.INTERVAL)
        if rate is None or not self._queue.remaining:
            return
        concurrency = self._spec.concurrency
        each = rate / max(1, self._tuner.connections * len(pool.workers))
        self._queue.max_part_size = int(min(max(concurrency.part_size, each * PART_SECONDS), concurrency.max_part_size))
        if not self._tuner.settled:
            self._tuner.update(rate)
            self._tune(pool)

    def _timeout(self) -> float:
        now = time.monotonic()
        due = self._queue.next_due()
        waits = [POLL_SECONDS, *([due - now] if due is not None else [])]
        if self._queue.remaining and (pause := self._bandwidth_limiter.delay(now)) > 0:
            waits.append(pause)
        return max(min(waits), 0.0)

    def _check_time(self, now: float) -> None:
        if self._spec.canceled():
            raise Interrupted("The load was interrupted; what is on disk is kept.")
        if self._spec.deadline is not None and now > self._spec.deadline:
            total = self._spec.blueprint.source_bytes
            raise Timeout(f"The deadline passed with {self._meter.loaded} of {total} bytes loaded.")

    def _progress(self, now: float) -> None:
        if self._meter.is_report_due(now):
            self._spec.on_progress(
                self._meter.progress(
                    now,
                    verified=self._verification.verified,
                    tensors=self._verification.tensors,
                    retries=self._result.retries,
                )
            )

    # -- assigning work

    def _tune(self, pool: WorkerPool) -> None:
        self._result.connections = self._spec.concurrency.workers * self._tuner.connections
        pool.broadcast(self._connections())

    def _connections(self) -> SetConnections:
        """Returns the connections of each worker: those to the source, and its share of those to peers."""
        if self._peers is None:
            return SetConnections(self._tuner.connections)
        shared = -(-self._peers.slots // self._spec.concurrency.workers)
        return SetConnections(self._tuner.connections + shared, 2 * (self._tuner.connections + shared))

    def _dispatch(self, pool: WorkerPool) -> None:
        now = time.monotonic()
        slots = self._tuner.connections * self._spec.concurrency.workers
        for worker in pool.workers.values():
            while self._verification.pending_hashes and not worker.hashes:
                task = self._verification.pending_hashes.pop()
                worker.hashes[task.request.id] = task
                worker.process.send(task.request)
        available = list(pool.workers.values())
        limit = self._connections().connections + PREFETCH
        while available and self._queue.remaining:
            for worker in list(available):
                if len(worker.parts) >= limit:
                    available.remove(worker)
                    continue
                if self._bandwidth_limiter.delay(now) > 0:
                    return
                part = self._queue.take(
                    worker.number, slots=slots, now=now, max_size=self._bandwidth_limiter.max_part_size
                )
                if part is None:
                    return
                self._bandwidth_limiter.consume(part.end - part.start)
                self._send_part(worker, part)

    def _send_part(self, worker: PoolWorker, part: Part) -> None:
        self._next_id += 1
        segment = self._segments[part.segment]
        request = self._peers.request(part, self._next_id, time.monotonic()) if self._peers and part.peer else None
        worker.parts[self._next_id] = part
        self._sent_generation[self._next_id] = self._credential_state.generation
        pieces = [
            (piece.end, int(piece.role), piece.target_offset, piece.file_index)
            for piece in segment.pieces(part.start, part.end)
        ]
        worker.process.send(
            Fetch(
                self._next_id,
                segment.object_index,
                part.start,
                part.end,
                pieces,
                part.fresh_connection,
                request[0] if request is not None else None,
                part.shift,
                request[1] if request is not None else 0.0,
            )
        )

    # -- results

    def _handle(self, pool: WorkerPool, worker: PoolWorker, message: object) -> None:
        match message:
            case Received(count):
                self._result.downloaded += count
                self._meter.add_received(count)
                self._received_at = time.monotonic()
            case FetchSucceeded():
                part = worker.parts.pop(message.id)
                del self._sent_generation[message.id]
                now = time.monotonic()
                self._queue.finished(part, end=part.end, now=now)
                if self._peers is not None and part.peer:
                    self._peers.succeeded(part, message.id, now)
                self._record_range(part, message)
            case FetchFailed():
                part = worker.parts.pop(message.id)
                now = time.monotonic()
                self._queue.finished(part, end=message.end, now=now)
                self._record_range(part, message)
                if self._peers is not None and part.peer:
                    del self._sent_generation[message.id]
                    self._peers.failed(part, message.id, message, now)
                else:
                    self._retry(pool, part, message)
            case WriteFailed(request, error):
                part = worker.parts.pop(request)
                raise self._write_error(part, error)
            case Hashed(request, digest):
                corrupt = self._verification.check_sha256(worker.hashes.pop(request), digest)
                if corrupt is not None:
                    self._refetch(corrupt)
            case WorkerExit():
                self._replace_worker(pool, message)
            case _:
                raise InternalError(f"A worker sent an unexpected message, {type(message).__name__}.")

    def _record_range(self, part: Part, received: Result) -> None:
        if received.end <= part.start:
            return
        if self._peers is not None:
            index = self._segments[part.segment].object_index
            self._peers.received(index, part, received.end, received.checksums)
            if not part.peer:
                self._peers.finished.add_received(part.segment, part.start, received.end)
        done = FetchedRange(part.segment, part.start, received.end, received.checksums, received.captured, received.crc)
        self._spec.on_record(done)
        for corrupt in self._verification.add(done):
            self._refetch(corrupt)

    def _refetch(self, corrupt: CorruptTensor) -> None:
        """Refetches a corrupt tensor from the source; a second mismatch is an error, unless a peer is to blame."""
        doubts = self._doubts(corrupt.object, [corrupt.range])
        if not doubts:
            self._spec.on_mismatch(corrupt.object)
        self._spec.on_record(DiscardedTensor(corrupt.object, corrupt.tensor))
        segment = self._verification.forget(corrupt) if doubts else self._verification.prepare_refetch(corrupt)
        self._result.retries += 1
        self._meter.add_refetched(corrupt.range[1] - corrupt.range[0])
        for start, end in split_at(corrupt.range, doubts, self._spec.concurrency.part_size):
            self._queue.requeue(Part(segment, start, end, fresh_connection=True), not_before=0.0)

    def _doubts(self, index: int, ranges: Sequence[ByteRange]) -> list[PeerRange]:
        """Returns what peers sent of a corrupt tensor or object, which is in doubt from now on."""
        if self._peers is None:
            return []
        doubts = [each for start, end in ranges for each in self._peers.origin.within(index, start, end)]
        self._peers.doubt(index, doubts, time.monotonic())
        return doubts

    def _check_objects(self) -> None:
        """Has checksums of objects computed, and refetches what doesn't match them."""
        objects = self._verification.objects
        self._hash_pool.drain_wakeups()
        for job, complete in self._hash_pool.finished():
            if not complete:
                label = self._spec.blueprint.objects[job.key[0]].label
                raise CacheDamaged(f"The file of {label} can't be read, or was truncated during the load.")
            objects.hashed(job)
        while objects.jobs:
            self._hash_pool.submit(objects.jobs.pop())
        corrupt_objects = objects.settle()
        for index in objects.take_settled():
            self._verification.complete_files.add_object(index)
            if self._peers is not None and index in objects.verified:
                self._peers.finished.add_object(index)
        for corrupt in corrupt_objects:
            self._refetch_object(corrupt)

    def _refetch_object(self, corrupt: CorruptObject) -> None:
        """Refetches what does not match a checksum of an object from the source: if peers sent any of it, only that."""
        self._result.retries += 1
        doubts = self._doubts(corrupt.object, corrupt.ranges)
        if not doubts:
            self._spec.on_mismatch(corrupt.object)
        else:
            self._verification.objects.allow_refetch(corrupt.object)
            corrupt = corrupt._replace(ranges=[(each.start, each.end) for each in doubts])
        for start, end in self._verification.grow(corrupt):
            self._spec.on_record(DiscardedRange(corrupt.object, start, end))
            self._verification.discard(corrupt.object, start, end)
            self._meter.add_refetched(end - start)
            for segment, hole in self._verification.within_segments(corrupt.object, start, end):
                self._verification.complete_files.remove_bytes(segment, hole[1] - hole[0])
                for first, last in split_at(hole, doubts, self._spec.concurrency.part_size):
                    self._queue.requeue(Part(segment, first, last, fresh_connection=True), not_before=0.0)

    # -- failures

    def _retry(self, pool: WorkerPool, part: Part, message: FetchFailed) -> None:
        failure = message.failure
        generation = self._sent_generation.pop(message.id)
        if message.end >= part.end:  # all is there, and checked by its hash: only what follows was wrong
            self._result.retries += 1
            return
        progressed = message.end > part.start
        attempt = 1 if progressed else part.attempt + 1
        denied = failure.retry is Retry.REFRESH_CREDENTIALS or failure.reason is Reason.ACCESS_DENIED
        if denied:
            if attempt > MAX_REFRESHES or not self._credential_state.refresh_after_denial(pool, failure, generation):
                raise self._error(failure)
            delay = 0.0
        elif failure.retry is Retry.NEVER:
            raise self._error(failure)
        else:
            start = max(message.end, part.start)
            if self._peers is not None and self._peers.queue.give_back(part, start, now=time.monotonic()):
                self._result.retries += 1
                return
            waits = failure.throttled and time.monotonic() - self._received_at < THROTTLED_SECONDS
            if attempt > MAX_ATTEMPTS and not waits:
                raise self._error(failure, attempts=attempt)
            delay = backoff_seconds(attempt, maximum=MAX_BACKOFF_SECONDS, retry_after=failure.retry_after)
        self._result.retries += 1
        remainder = Part(part.segment, max(message.end, part.start), part.end, attempt, part.fresh_connection)
        self._queue.requeue(remainder, not_before=time.monotonic() + delay)

    def _error(self, failure: RequestFailure, *, attempts: int = 1) -> TonnageError:
        suffix = f" {attempts} attempts failed." if attempts > 1 else ""
        return error_for(failure.reason, failure.message + suffix)

    def _write_error(self, part: Part, error: int) -> TonnageError:
        path = self._spec.paths[self._segments[part.segment].file_index]
        if error in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}:
            disk = os.statvfs(os.path.dirname(path))  # noqa: PTH120  # path is a string
            return InsufficientSpace(
                f"No space left while writing {path}: {self._queue.remaining} bytes remain, "
                f"{disk.f_bavail * disk.f_frsize} bytes are free."
            )
        return CacheNotWritable(f"Writing {path} failed: {os.strerror(error)}.")

    def _replace_worker(self, pool: WorkerPool, worker_exit: WorkerExit) -> None:
        """Starts a new worker in place of one that exited, and requeues its parts and hashes."""
        self._respawns += 1
        if self._respawns > MAX_RESPAWNS:
            if worker_exit.exit_code == -signal.SIGKILL:
                raise LoaderOOMKilled(
                    f"Worker processes were killed {self._respawns} times (SIGKILL), most likely by the OOM killer: "
                    f"{self._queue.remaining} bytes remained, {_memory_limit_text()}."
                )
            raise InternalError(
                f"Worker processes exited {self._respawns} times, the last with code {worker_exit.exit_code}."
            )
        self._result.retries += 1
        now = time.monotonic()
        for request, part in worker_exit.worker.parts.items():
            self._sent_generation.pop(request, None)
            self._queue.finished(part, end=part.start, now=now)
            if self._peers is not None and part.peer:
                self._peers.lost(part, request)
            else:
                self._queue.requeue(part, not_before=now)
        self._verification.pending_hashes += worker_exit.worker.hashes.values()
        pool.start(worker_exit.worker.number)
        self._tune(pool)


def max_open_files(workers: int) -> int:
    """Returns how many files may be open at a time while readers wait for them.

    Two, so that the connections of one that ends have the next one to turn to; more with many workers, because those
    that write one file slow each other down.
    """
    return max(2, workers // FILE_WRITERS)


def _memory_limit_text() -> str:
    limit = memory_limit()
    return "no memory limit was found" if limit is None else f"the memory limit is {limit} bytes"
