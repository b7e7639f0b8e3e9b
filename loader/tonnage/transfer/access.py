"""With what the workers ask: credentials and URLs, renewed when they run out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.source.failures import Retry
from tonnage.transfer.protocol import Renew, Retarget, Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.source.failures import Failure
    from tonnage.source.target import Credentials
    from tonnage.transfer.job import Job
    from tonnage.transfer.pool import Pool


class Access:
    """What a job's requests are made with at the moment.

    Attributes:
        generation: Grows with each change, so that a refusal can be told apart from one of something older.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._credentials = [source.current() for source in job.credentials]
        self._targets = list(job.targets)
        self.generation = 0

    def setup(self) -> Setup:
        """Returns what a worker that starts now is told."""
        return Setup(
            list(self._targets),
            list(self._job.sources),
            list(self._credentials),
            list(self._job.paths),
            self._job.stall_seconds,
        )

    def keep_fresh(self, pool: Pool) -> None:
        """Renews credentials that will run out soon."""
        self._renew(pool, [source.current() for source in self._job.credentials])

    def may_ask_again(self, pool: Pool, failure: Failure, generation: int) -> bool:
        """Whether a refused request was made with what has been renewed since, or can be renewed now.

        Args:
            pool: The workers, which are told.
            failure: The refusal.
            generation: With which the request was made.
        """
        if generation != self.generation or self._retarget(pool):
            return True
        return failure.retry is Retry.REFRESH_CREDENTIALS and self._renew(pool, self._refreshed())

    def _refreshed(self) -> list[Credentials | None]:
        return [source.refresh(failed) for source, failed in zip(self._job.credentials, self._credentials, strict=True)]

    def _renew(self, pool: Pool, credentials: list[Credentials | None]) -> bool:
        before, self._credentials = self._credentials, credentials
        changed = [index for index, new in enumerate(credentials) if new != before[index]]
        for index in changed:
            pool.broadcast(Renew(index, credentials[index]))
        return self._advanced(pool, changed)

    def _retarget(self, pool: Pool) -> bool:
        if self._job.renewed_targets is None:
            return False
        before, self._targets = self._targets, list(self._job.renewed_targets())
        changed = [index for index, new in enumerate(self._targets) if new != before[index]]
        for index in changed:
            pool.broadcast(Retarget(index, self._targets[index]))
        return self._advanced(pool, changed)

    def _advanced(self, pool: Pool, changed: Sequence[int]) -> bool:
        if changed:
            self.generation += 1
            pool.renew(self.setup())
        return bool(changed)
