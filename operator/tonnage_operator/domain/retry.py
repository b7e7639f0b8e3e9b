"""When a failed Job is retried."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tonnage.contract.backoff import Backoff
from tonnage_operator.domain import units

if TYPE_CHECKING:
    from datetime import datetime

    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.job import Job

MAX_CLEANUP_ATTEMPTS: Final = 3
"""Failed cleanups after which a deleted object stops waiting. The entry stays in the record, and retries continue."""


def retry_delay(job: Job, installation: Installation, now: datetime) -> float:
    """Returns the seconds until a failed Job is retried; 0 or less: now. The number of attempts has no limit."""
    at = retry_time(job, installation)
    return (at - now).total_seconds() if at else 0.0


def retry_time(job: Job, installation: Installation) -> datetime | None:
    """Returns when a failed Job is retried; None if it is not known when it failed, so it is retried now.

    The end of the Job's name adds up to a fifth of the delay, so that nodes that failed together don't retry together,
    and the same Job always has the same delay.
    """
    if not job.finished_time:
        return None
    backoff = Backoff(installation.retry_base, installation.retry_cap, low=1.0, high=1.2)
    jitter = int.from_bytes(job.name.encode()[-4:], "big") % 1000 / 1000
    return units.parse_time(job.finished_time) + timedelta(seconds=backoff.delay(job.attempt, jitter=jitter))
