"""When a failed Job is retried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator.domain import units

if TYPE_CHECKING:
    from datetime import datetime

    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.job import Job

MAX_CLEANUP_ATTEMPTS: Final = 3
"""Failed cleanups after which a deleted object stops waiting. The entry stays in the record, and retries continue."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff without a limit on the number of attempts. Times are in seconds."""

    base: float
    cap: float

    def delay(self, attempt: int, jitter_key: str) -> float:
        """Returns the seconds between the end of an attempt, counted from 1, and the start of the next one.

        The end of ``jitter_key`` adds up to a fifth, so that nodes that failed together don't retry together. The same
        text gives the same delay.
        """
        plain = min(self.cap, self.base * 2.0 ** min(attempt - 1, 30))
        share = int.from_bytes(jitter_key.encode()[-4:], "big") % 1000 / 1000
        return plain * (1 + 0.2 * share)


def retry_delay(job: Job, installation: Installation, now: datetime) -> float:
    """Returns the seconds until a failed Job is retried; 0 or less: now."""
    policy = RetryPolicy(installation.retry_base, installation.retry_cap)
    waited = (now - units.parse_time(job.finished_time)).total_seconds() if job.finished_time else 0.0
    return policy.delay(job.attempt, job.name) - waited
