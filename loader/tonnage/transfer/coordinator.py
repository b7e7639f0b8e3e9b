"""The coordinator: gives parts to workers, takes their results, decides about failures, until every byte is right."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from tonnage.cache.cgroups import memory_limit
from tonnage.errors import (
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
from tonnage.source.failures import Retry
from tonnage.source.waiting import backoff
from tonnage.transfer.access import Access
from tonnage.transfer.job import Done, Job, Outcome, Undone
from tonnage.transfer.meter import Meter
from tonnage.transfer.policy import (
    FIRST_CONNECTIONS,
    LONGEST_WAIT,
    MAX_ATTEMPTS,
    PART_SECONDS,
    SMALLEST_PART,
    ConnectionTuner,
    Pacer,
)
from tonnage.transfer.pool import Death, Member, Pool
from tonnage.transfer.protocol import (
    Fetch,
    Fetched,
    FetchFailed,
    Hashed,
    Received,
    Tune,
    WriteFailed,
)
from tonnage.transfer.verification import Verification
from tonnage.transfer.work import Part, WorkQueue

if TYPE_CHECKING:
    from tonnage.planning.segments import Range
    from tonnage.source.failures import Failure
    from tonnage.transfer.checks import Wrong

POLL_SECONDS = 0.1
PREFETCH = 1
"""Parts a worker has waiting beyond its connections, so that none idles for the length of a message."""
MAX_RESPAWNS = 3
MAX_REFRESHES = 2
"""New credentials in a row that a part may be refused with."""
CREDENTIAL_CHECK_SECONDS = 20.0


def transfer(job: Job) -> Outcome:
    """Brings every byte of the job's blueprint to its place, verified.

    Raises:
        TonnageError: Of the reason that stopped it. What is on disk has been recorded.
    """
    return _Transfer(job).run()


class _Transfer:
    """The state of one transfer."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._segments = job.blueprint.segments
        self._outcome = Outcome()
        self._verification = Verification(job, self._outcome)
        self._next_id = 0
        done = self._verification.replay()
        self._queue = WorkQueue(
            self._segments,
            done,
            largest=job.concurrency.part_size,
            smallest=min(SMALLEST_PART, job.concurrency.part_size),
        )
        self._access = Access(job)
        self._sent_generation: dict[int, int] = {}
        self._respawns = 0
        width = job.concurrency
        most = -(-width.connections // width.workers)
        self._tuner = ConnectionTuner(first=most if width.fixed else FIRST_CONNECTIONS, most=most)
        self._pacer = Pacer(job.bandwidth, now=time.monotonic())
        self._meter = Meter(total=job.blueprint.source_bytes, resumed=self._outcome.resumed)

    # -- the loop

    def run(self) -> Outcome:
        """Runs to the end."""
        if self._busy:
            pool = Pool(
                count=self._job.concurrency.workers,
                setup=self._access.setup(),
                keep=self._job.keep,
                environment=self._job.environment,
            )
            try:
                self._tune(pool)
                self._loop(pool)
            finally:
                pool.close()
        self._verification.check_complete()
        self._outcome.headers = self._verification.headers
        return self._outcome

    @property
    def _busy(self) -> bool:
        return bool(self._queue.remaining or self._verification.to_hash)

    def _loop(self, pool: Pool) -> None:
        checked = time.monotonic()
        self._dispatch(pool)
        while self._busy or any(member.parts or member.hashes for member in pool.members.values()):
            for member, message in pool.events(self._timeout()):
                self._handle(pool, member, message)
            now = time.monotonic()
            self._check_time(now)
            if now - checked > CREDENTIAL_CHECK_SECONDS:
                checked = now
                self._access.keep_fresh(pool)
            self._adapt(pool, now)
            self._dispatch(pool)
            self._progress(now)

    def _adapt(self, pool: Pool, now: float) -> None:
        """Fits connections and part size to the rate."""
        rate = self._meter.interval_rate(now, skip=ConnectionTuner.SETTLING, seconds=ConnectionTuner.INTERVAL)
        if rate is None or not self._queue.remaining:
            return
        width = self._job.concurrency
        each = rate / max(1, self._tuner.connections * len(pool.members))
        self._queue.largest = int(min(max(width.part_size, each * PART_SECONDS), width.largest_part))
        if not self._tuner.settled:
            self._tuner.measured(rate)
            self._tune(pool)

    def _timeout(self) -> float:
        now = time.monotonic()
        due = self._queue.next_time()
        waits = [POLL_SECONDS, *([due - now] if due is not None else [])]
        if self._queue.remaining and (pause := self._pacer.wait(now)) > 0:
            waits.append(pause)
        return max(min(waits), 0.0)

    def _check_time(self, now: float) -> None:
        if self._job.canceled():
            raise Interrupted("The load was asked to stop; what is on disk is kept.")
        if self._job.deadline is not None and now > self._job.deadline:
            total = self._job.blueprint.source_bytes
            raise Timeout(f"The deadline passed with {self._meter.loaded} of {total} bytes loaded.")

    def _progress(self, now: float) -> None:
        if self._meter.due(now):
            self._job.on_progress(
                self._meter.progress(
                    now,
                    verified=self._verification.verified,
                    tensors=self._verification.tensors,
                    retries=self._outcome.retries,
                )
            )

    # -- giving work

    def _tune(self, pool: Pool) -> None:
        count = max(1, len(pool.members)) * self._tuner.connections
        self._outcome.connections = count
        pool.broadcast(Tune(self._tuner.connections))

    def _dispatch(self, pool: Pool) -> None:
        now = time.monotonic()
        slots = self._tuner.connections * len(pool.members)
        for member in pool.members.values():
            while self._verification.to_hash and not member.hashes:
                wanted = self._verification.to_hash.pop()
                member.hashes[wanted.request.id] = wanted
                member.process.send(wanted.request)
        wanting = list(pool.members.values())
        while wanting and self._queue.remaining:
            for member in list(wanting):
                if len(member.parts) >= self._tuner.connections + PREFETCH:
                    wanting.remove(member)
                    continue
                if self._pacer.wait(now) > 0:
                    return
                part = self._queue.take(member.number, slots=slots, now=now, most=self._pacer.most)
                if part is None:
                    return
                self._pacer.took(part.end - part.start)
                self._give(member, part)

    def _give(self, member: Member, part: Part) -> None:
        self._next_id += 1
        segment = self._segments[part.segment]
        member.parts[self._next_id] = part
        self._sent_generation[self._next_id] = self._access.generation
        pieces = [(piece.end, int(piece.role), piece.target) for piece in segment.pieces(part.start, part.end)]
        member.process.send(
            Fetch(self._next_id, segment.object, segment.file, part.start, part.end, pieces, part.fresh)
        )

    # -- taking results

    def _handle(self, pool: Pool, member: Member, message: object) -> None:
        match message:
            case Received(count):
                self._outcome.downloaded += count
                self._meter.received(count)
            case Fetched():
                part = member.parts.pop(message.id)
                del self._sent_generation[message.id]
                self._take(part, message.end, message.checksums, message.captured)
            case FetchFailed():
                part = member.parts.pop(message.id)
                self._take(part, message.end, message.checksums, message.captured)
                self._retry(pool, part, message)
            case WriteFailed(request, error):
                part = member.parts.pop(request)
                raise self._write_error(part, error)
            case Hashed(request, digest):
                wrong = self._verification.hashed(member.hashes.pop(request), digest)
                if wrong is not None:
                    self._queue_again(wrong)
            case Death():
                self._replace(pool, message)
            case _:
                raise InternalError(f"A worker sent {type(message).__name__}.")

    def _take(self, part: Part, end: int, checksums: list[int], captured: list[bytes]) -> None:
        if end <= part.start:
            return
        done = Done(part.segment, part.start, end, checksums, captured)
        self._job.record(done)
        for wrong in self._verification.add(done):
            self._queue_again(wrong)

    def _queue_again(self, wrong: Wrong) -> None:
        """Fetches a wrong tensor once more over other connections; the second time it is an error."""
        self._job.record(Undone(wrong.object, wrong.tensor))
        segment = self._verification.forget(wrong)
        self._outcome.retries += 1
        self._meter.wasted(wrong.range[1] - wrong.range[0])
        for start, end in _split(wrong.range, self._job.concurrency.part_size):
            self._queue.delay(Part(segment, start, end, fresh=True), until=0.0)

    # -- failures

    def _retry(self, pool: Pool, part: Part, message: FetchFailed) -> None:
        failure = message.failure
        generation = self._sent_generation.pop(message.id)
        progressed = message.end > part.start
        attempt = 1 if progressed else part.attempt + 1
        refused = failure.retry is Retry.REFRESH_CREDENTIALS or failure.reason is Reason.ACCESS_DENIED
        if refused:
            if attempt > MAX_REFRESHES or not self._access.may_ask_again(pool, failure, generation):
                raise self._error(failure)
            waiting = 0.0
        elif failure.retry is Retry.NEVER:
            raise self._error(failure)
        else:
            if attempt > MAX_ATTEMPTS:
                raise self._error(failure, attempts=attempt)
            waiting = backoff(attempt, longest=LONGEST_WAIT, retry_after=failure.retry_after)
        self._outcome.retries += 1
        rest = Part(part.segment, max(message.end, part.start), part.end, attempt, part.fresh)
        self._queue.delay(rest, until=time.monotonic() + waiting)

    def _error(self, failure: Failure, *, attempts: int = 1) -> TonnageError:
        again = f" It was tried {attempts} times." if attempts > 1 else ""
        return error_for(failure.reason, failure.message + again)

    def _write_error(self, part: Part, error: int) -> TonnageError:
        path = self._job.paths[self._segments[part.segment].file]
        if error in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}:
            disk = os.statvfs(os.path.dirname(path))  # noqa: PTH120  # a string suffices
            return InsufficientSpace(
                f"No room left while writing {path}: {self._queue.remaining} bytes are still to come, "
                f"{disk.f_bavail * disk.f_frsize} bytes are free."
            )
        return CacheNotWritable(f"Writing {path} failed: {os.strerror(error)}.")

    def _replace(self, pool: Pool, death: Death) -> None:
        """Another worker takes over what a dead one had."""
        self._respawns += 1
        if self._respawns > MAX_RESPAWNS:
            if death.code == -signal.SIGKILL:
                raise LoaderOOMKilled(
                    f"Worker processes were killed {self._respawns} times, as the kernel does for want of memory: "
                    f"{self._queue.remaining} bytes were still to come, the memory limit is "
                    f"{memory_limit() or 'the machine'}."
                )
            raise InternalError(f"Worker processes kept dying, the last with exit code {death.code}.")
        self._outcome.retries += 1
        now = time.monotonic()
        for request, part in death.member.parts.items():
            self._sent_generation.pop(request, None)
            self._queue.delay(part, until=now)
        self._verification.to_hash += death.member.hashes.values()
        pool.start(death.member.number)
        self._tune(pool)


def _split(whole: Range, size: int) -> list[Range]:
    return [(start, min(start + size, whole[1])) for start in range(whole[0], whole[1], size)]
