"""A failed request: its reason, its message, and how to retry it. ``error_classification`` finds them."""

from __future__ import annotations

import enum

import msgspec

from tonnage.errors import Reason, TonnageError, error_for

BODY_LIMIT = 64 * 1024
"""Bytes of an error's body that are kept."""


class Retry(enum.Enum):
    """How to retry a failed request."""

    NEVER = "never"
    BACKOFF = "backoff"
    """Retry after a delay, not before ``retry_after``."""
    REFRESH_CREDENTIALS = "refresh-credentials"
    """Retry at once if the credentials can be refreshed."""


class RequestFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed request. ``reason`` is reported if the request is not retried.

    ``retry_after`` is in seconds from now, None if the server sent none. ``region`` is the bucket's region if the
    request was made in another one, otherwise empty. ``remedy`` is empty for that of the reason.
    ``path_style_refused``: the store takes the bucket in the host name only. ``throttled``: the store has more requests
    than it answers, of this load or of others, so the same request succeeds later.
    """

    reason: Reason
    message: str
    retry: Retry
    retry_after: float | None = None
    region: str = ""
    remedy: str = ""
    path_style_refused: bool = False
    throttled: bool = False

    def to_exception(self) -> TonnageError:
        return error_for(self.reason, self.message, remedy=self.remedy)
