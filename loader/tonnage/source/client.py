"""Small requests, many at once: HEADs, listings and short ranges over one CurlMulti.

Weights don't pass here. What does is bounded in size, retried as ``classify`` says, and over before the deadline.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec
import pycurl
from msgspec import structs

from tonnage.errors import FormatDamaged, Interrupted, Reason, Timeout
from tonnage.source.backoff import MAX_RETRY_AFTER_SECONDS, backoff_seconds
from tonnage.source.credentials import CredentialProvider
from tonnage.source.error_classification import BODY_LIMIT, RequestFailure, Retry, classify
from tonnage.source.request_target import RequestTarget, configure_handle
from tonnage.source.responses import check_partial, parse_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.source.request_target import Credentials

MAX_CONNECTIONS = 32
MAX_ATTEMPTS = 7
"""Tries of one request, the first included; waits between them add up to at most half a minute."""
CONNECT_SECONDS = 3.0
UNREACHABLE_SECONDS = 6.0
"""For how long a server that can't be reached is tried again."""
STALL_SECONDS = 10
MAX_BACKOFF_SECONDS = 8.0
HEADERS_LIMIT = 256 * 1024
SELECT_SECONDS = 0.2


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One small request.

    Attributes:
        target: What is asked for. Its pin goes along.
        provider: Who asks.
        head: HEAD instead of GET.
        start: First byte wanted; -1: the whole.
        end: The byte after the last one wanted, with ``start``.
        limit: The most bytes of body that are taken; a longer answer is cut there, which ``Response.cut`` tells.
        exact: Whether the answer must be just the asked range of the pinned revision.
        pinned: Whether absence means that a pinned revision is gone.
    """

    target: RequestTarget
    provider: CredentialProvider
    head: bool = False
    start: int = -1
    end: int = -1
    limit: int = BODY_LIMIT
    exact: bool = False
    pinned: bool = False


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What came back: of a success, or in ``failure`` why there is none. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    failure: RequestFailure | None = None


class Client:
    """Runs small requests on connections that it keeps. Use it as a context, or call ``close``.

    Args:
        deadline: The moment of ``time.monotonic()`` by which everything must have ended; None: no limit.
        canceled: Asked several times a second whether to give up.
        connections: The most requests that run at once.
    """

    def __init__(
        self,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._deadline = deadline
        self._canceled = canceled
        self._connections = connections
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._handles: list[pycurl.Curl] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        for curl in self._handles:
            curl.close()
        self._handles.clear()
        self._multi.close()

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Runs all requests and returns their answers in the same order; failures are answers too.

        Raises:
            Timeout: The deadline passed; the message names a request that was under way.
            Interrupted: ``canceled`` said so.
            TonnageError: Credentials could not be had.
        """
        batch = _Batch(
            self._multi,
            self._handles,
            requests,
            connections=self._connections,
            deadline=self._deadline,
            canceled=self._canceled,
        )
        return batch.result()


class RangeRequest(NamedTuple):
    """Bytes ``start`` to ``end`` (exclusive) of a pinned object, and who asks."""

    target: RequestTarget
    provider: CredentialProvider
    start: int
    end: int


def get_ranges(
    ranges: Sequence[RangeRequest], *, deadline: float | None = None, canceled: Callable[[], bool] | None = None
) -> list[bytes]:
    """Fetches short ranges, all at once; each is checked to be exactly the one asked for, of the pinned revision.

    Args:
        ranges: What to fetch; it is held in memory.
        deadline: The moment of ``time.monotonic()`` by which it must be there; None: no limit.
        canceled: Asked several times a second whether to give up.

    Returns:
        The bytes of each, in the same order.

    Raises:
        FormatDamaged: A range is not within its object.
        TonnageError: The first, in their order, that can't be had.
    """
    for target, _, start, end in ranges:
        if not 0 <= start <= end <= target.size:
            raise FormatDamaged(f"{target.label}: bytes {start} to {end} are outside of its {target.size} bytes.")
    requests = [
        Request(target=target, provider=provider, start=start, end=end, limit=end - start, exact=True, pinned=True)
        for target, provider, start, end in ranges
        if start < end
    ]
    if not requests:
        return [b""] * len(ranges)
    with Client(deadline=deadline, canceled=canceled) as client:
        responses = iter(client.run(requests))
    return [_body(next(responses)) if each.start < each.end else b"" for each in ranges]


def _body(answer: Response) -> bytes:
    if answer.failure is not None:
        raise answer.failure.to_exception()
    return answer.body


class _PendingRequest:
    """One request on its way through tries."""

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.request = request
        self.attempts = 0
        self.refreshed = False
        self.first_attempt_at = 0.0
        self.used: Credentials | None = None
        self.lines: list[bytes] = []
        self.size_of_lines = 0
        self.body = bytearray()
        self.truncated = False
        self.range_failure: RequestFailure | None = None

    def start(self, curl: pycurl.Curl) -> None:
        request = self.request
        if not self.attempts:
            self.first_attempt_at = time.monotonic()
        self.attempts += 1
        self.lines, self.size_of_lines, self.body, self.truncated, self.range_failure = [], 0, bytearray(), False, None
        self.used = request.provider.current() if request.target.sigv4 else None
        configure_handle(curl, request.target, self.used, connect_seconds=CONNECT_SECONDS, stall_seconds=STALL_SECONDS)
        if request.head:
            curl.setopt(pycurl.NOBODY, 1)
        elif request.start >= 0:
            curl.setopt(pycurl.RANGE, f"{request.start}-{request.end - 1}")
        curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        curl.setopt(pycurl.WRITEFUNCTION, self._on_body)

    def _on_header(self, line: bytes) -> int | None:
        self.size_of_lines += len(line)
        if self.size_of_lines > HEADERS_LIMIT:
            return -1
        self.lines.append(line)
        return None

    def _on_body(self, data: bytes) -> int | None:
        if not self.body:
            self.range_failure = self._check_range()
            self.truncated = self.range_failure is None and self._range_ignored()
            if self.range_failure is not None or self.truncated:
                return -1
        room = max(self.request.limit, BODY_LIMIT) - len(self.body)
        self.body += data[:room]
        if len(data) > room:
            self.truncated = True
            return -1
        return None

    def _check_range(self) -> RequestFailure | None:
        """Whether this answer is not to the question, so that its body need not be read."""
        status, headers = parse_headers(self.lines)
        request = self.request
        if not request.exact or status >= 300:
            return None
        return check_partial(request.target, status=status, headers=headers, start=request.start, end=request.end)

    def _range_ignored(self) -> bool:
        """Whether the whole object comes where a range was asked for."""
        return self.request.start >= 0 and not self.request.exact and parse_headers(self.lines)[0] == 200

    def finish(self, curl: pycurl.Curl, code: int) -> Response:
        """Judges an ended try."""
        status, headers = parse_headers(self.lines)
        label = self.request.target.label
        failure = self.range_failure
        aborted = self.truncated and code == pycurl.E_WRITE_ERROR
        connected = bool(curl.getinfo(pycurl.PRETRANSFER_TIME))
        if failure is None and code and not aborted:
            failure = classify(curl_code=code, status=None, headers={}, body=b"", label=label, connected=connected)
        if failure is None and not 200 <= status < 300:
            failure = classify(
                curl_code=None,
                status=status,
                headers=headers,
                body=bytes(self.body),
                label=label,
                pinned=self.request.pinned,
            )
        if failure is None and self.request.exact:
            failure = self._check_range() or self._wrong_length()
        return Response(status=status, headers=headers, body=bytes(self.body), failure=failure)

    def _wrong_length(self) -> RequestFailure | None:
        if len(self.body) == self.request.end - self.request.start:
            return None
        return classify(
            curl_code=pycurl.E_PARTIAL_FILE, status=None, headers={}, body=b"", label=self.request.target.label
        )


class _Batch:
    """One call of ``Client.run``: which tasks wait, which run on which handle, which have ended."""

    def __init__(
        self,
        multi: pycurl.CurlMulti,
        spare: list[pycurl.Curl],
        requests: Sequence[Request],
        *,
        connections: int,
        deadline: float | None,
        canceled: Callable[[], bool] | None,
    ) -> None:
        self._multi = multi
        self._spare = spare
        self._connections = connections
        self._deadline = deadline
        self._canceled = canceled
        self._ready = deque(_PendingRequest(number, request) for number, request in enumerate(requests))
        self._waiting: list[tuple[float, int, _PendingRequest]] = []
        self._running: dict[pycurl.Curl, _PendingRequest] = {}
        self._responses: dict[int, Response] = {}
        self._count = len(requests)
        self._order = itertools.count()

    def result(self) -> list[Response]:
        try:
            while len(self._responses) < self._count:
                self._start_ready()
                self._check_limits()
                self._drive()
        finally:
            for curl in list(self._running):
                self._release(curl)
        return [self._responses[number] for number in range(self._count)]

    def _start_ready(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        while self._ready and len(self._running) < self._connections:
            task = self._ready.popleft()
            curl = self._spare.pop() if self._spare else pycurl.Curl()
            task.start(curl)
            self._running[curl] = task
            self._multi.add_handle(curl)

    def _drive(self) -> None:
        while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
            pass
        more = 1
        while more:
            more, good, bad = self._multi.info_read()
            for curl in good:
                self._on_completed(curl, 0)
            for curl, code, _ in bad:
                self._on_completed(curl, code)
        if not self._running and self._waiting and not self._ready:
            time.sleep(min(self._select_timeout(), max(0.0, self._waiting[0][0] - time.monotonic())))
        elif self._running and self._multi.select(self._select_timeout()) == -1:
            time.sleep(0.005)  # libcurl has no descriptor yet, for instance while a name is resolved

    def _select_timeout(self) -> float:
        """For how many seconds at most nothing needs to be done here."""
        moments = [time.monotonic() + SELECT_SECONDS]
        moments += [self._waiting[0][0]] if self._waiting else []
        moments += [self._deadline] if self._deadline is not None else []
        timeout = self._multi.timeout()
        soonest = max(0.0, min(moments) - time.monotonic())
        return min(soonest, timeout / 1000) if timeout >= 0 else soonest

    def _release(self, curl: pycurl.Curl) -> _PendingRequest:
        task = self._running.pop(curl)
        self._multi.remove_handle(curl)
        self._spare.append(curl)
        return task

    def _on_completed(self, curl: pycurl.Curl, code: int) -> None:
        task = self._running[curl]
        response = task.finish(curl, code)
        self._release(curl)
        failure = response.failure
        if failure is not None and self._schedule_retry(task, failure):
            return
        if failure is not None and task.attempts > 1:
            message = f"{failure.message.rstrip('.')}; {task.attempts} tries failed."
            response = structs.replace(response, failure=structs.replace(failure, message=message))
        self._responses[task.number] = response

    def _schedule_retry(self, task: _PendingRequest, failure: RequestFailure) -> bool:
        """Arranges another try where one makes sense."""
        if failure.retry is Retry.REFRESH_CREDENTIALS and not task.refreshed and task.used is not None:
            task.refreshed = True
            renewed = task.request.provider.refresh(task.used) != task.used
            if renewed:
                self._ready.append(task)
            return renewed
        if failure.retry is not Retry.BACKOFF or task.attempts >= MAX_ATTEMPTS:
            return False
        retry_at = time.monotonic() + backoff_seconds(
            task.attempts, maximum=MAX_BACKOFF_SECONDS, retry_after=failure.retry_after
        )
        retry_after_too_long = (failure.retry_after or 0.0) > MAX_RETRY_AFTER_SECONDS
        if retry_after_too_long or retry_at >= self._retry_deadline(task, failure):
            return False
        heapq.heappush(self._waiting, (retry_at, next(self._order), task))
        return True

    def _retry_deadline(self, task: _PendingRequest, failure: RequestFailure) -> float:
        """Until when a task may be tried again."""
        latest = math.inf if self._deadline is None else self._deadline
        if failure.reason in {Reason.ENDPOINT_UNREACHABLE, Reason.TLS_VERIFICATION_FAILED}:
            latest = min(latest, task.first_attempt_at + UNREACHABLE_SECONDS)
        return latest

    def _check_limits(self) -> None:
        if self._canceled is not None and self._canceled():
            raise Interrupted("The load was interrupted while the store was being asked.")
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        tasks = [*self._running.values(), *(each[2] for each in self._waiting), *self._ready]
        label = tasks[0].request.target.label if tasks else "the last request"
        raise Timeout(f"The time for the load was over while {label} was being asked for.")
