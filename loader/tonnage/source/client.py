"""Small concurrent requests: HEADs, listings and short ranges over one CurlMulti.

Not for tensor data. Responses are bounded in size, retried as ``classify`` decides, and end by the deadline.
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
from tonnage.source.request_failure import BODY_LIMIT, RequestFailure, Retry
from tonnage.source.request_target import RequestTarget, configure_handle, is_resolving, was_connected
from tonnage.source.responses import check_partial, parse_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.source.request_target import Credentials

MAX_CONNECTIONS = 32
MAX_ATTEMPTS = 7
"""Attempts for one request, including the first. The delays between them add up to at most half a minute."""
OPTIONAL_ATTEMPTS = 2
CONNECT_SECONDS = 3.0
UNREACHABLE_SECONDS = 6.0
"""For how long a request is retried if its server is unreachable, or answers what it should not."""
STALL_SECONDS = 10
MAX_BACKOFF_SECONDS = 8.0
HEADERS_LIMIT = 256 * 1024
SELECT_SECONDS = 0.2
_SOON_FINAL = {Reason.ENDPOINT_UNREACHABLE, Reason.STORE_UNSUPPORTED, Reason.TLS_VERIFICATION_FAILED}
"""Reasons that rarely pass, so that they are retried for ``UNREACHABLE_SECONDS`` only."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One small request.

    Attributes:
        target: The object to request. Its pin is sent as a precondition.
        provider: The credentials to sign with.
        head: Send HEAD instead of GET.
        start: First byte of the requested range; -1 requests the whole object.
        end: End of the requested range, exclusive; used with ``start``.
        limit: Maximum size of the body in bytes; a longer body is truncated.
        exact: Whether the response must be exactly the requested range of the pinned revision.
        pinned: Whether a missing object means that its pinned revision is gone.
        optional: Whether its answer is only of use, so that it is retried once.
        amz_headers: Names, which begin with x-amz-, and values of headers to send. They are signed, too.
        follow: Whether an unsigned request follows redirects; otherwise a redirect is a failure, with its headers.
    """

    target: RequestTarget
    provider: CredentialProvider
    head: bool = False
    start: int = -1
    end: int = -1
    limit: int = BODY_LIMIT
    exact: bool = False
    pinned: bool = False
    optional: bool = False
    amz_headers: tuple[tuple[str, str], ...] = ()
    follow: bool = True


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The response to one request; ``failure`` is None if it succeeded. Header names are in lower case.

    ``address`` is the server's IP address; empty without a connection.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    failure: RequestFailure | None = None
    address: str = ""


class Client:
    """Runs small requests and keeps their connections open. Use it as a context manager, or call ``close``.

    Args:
        deadline: Value of ``time.monotonic()`` by which all requests must have ended; None: no limit.
        canceled: Polled several times a second; True interrupts the requests.
        on_retry: Called for each retry of a request.
        connections: Maximum number of concurrent requests.
    """

    def __init__(
        self,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_retry: Callable[[], None] = lambda: None,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._on_retry = on_retry
        self._deadline = deadline
        self._canceled = canceled
        self._connections = connections
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._handles: list[pycurl.Curl] = []
        self._resolving: set[pycurl.Curl] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for curl in self._handles:
            curl.close()
        self._handles.clear()
        if self._resolving:
            _leak(self._multi)
        else:
            self._multi.close()

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Runs all requests and returns their responses in the same order, including those of failed requests.

        Raises:
            Timeout: The deadline passed; the message names an unfinished request.
            Interrupted: ``canceled`` returned True.
            TonnageError: Credentials could not be obtained.
        """
        batch = _Batch(
            self._multi,
            self._handles,
            self._resolving,
            requests,
            connections=self._connections,
            on_retry=self._on_retry,
            deadline=self._deadline,
            canceled=self._canceled,
        )
        return batch.result()


def _leak(multi: pycurl.CurlMulti) -> None:
    """Keeps ``multi`` for ever: libcurl's cleanup waits for the threads that resolve names, and nothing can end these.

    A name server that does not answer would otherwise delay the end of the process beyond deadline and signals.
    """
    import ctypes  # for this rare case alone

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(multi))


class RangeRequest(NamedTuple):
    """Bytes ``start`` to ``end`` (exclusive) of a pinned object, and the credentials to sign with."""

    target: RequestTarget
    provider: CredentialProvider
    start: int
    end: int


def get_ranges(
    ranges: Sequence[RangeRequest],
    *,
    deadline: float | None = None,
    canceled: Callable[[], bool] | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> list[bytes]:
    """Fetches short ranges concurrently. Each response must be exactly the requested range of the pinned revision.

    Args:
        ranges: The ranges to fetch. All of them are held in memory.
        deadline: Value of ``time.monotonic()`` by which all requests must have ended; None: no limit.
        canceled: Polled several times a second; True interrupts the requests.
        on_retry: Called for each retry of a request.

    Returns:
        The bytes of each range, in the same order.

    Raises:
        FormatDamaged: A range is not within its object.
        TonnageError: A request failed; the error is that of the first failed range, in their order.
    """
    for target, _, start, end in ranges:
        if not 0 <= start <= end <= target.size:
            raise FormatDamaged(
                f"{target.label}: bytes {start} to {end} are outside the object of {target.size} bytes."
            )
    requests = [
        Request(target=target, provider=provider, start=start, end=end, limit=end - start, exact=True, pinned=True)
        for target, provider, start, end in ranges
        if start < end
    ]
    if not requests:
        return [b""] * len(ranges)
    with Client(deadline=deadline, canceled=canceled, on_retry=on_retry) as client:
        responses = iter(client.run(requests))
    return [_body(next(responses)) if each.start < each.end else b"" for each in ranges]


def _body(response: Response) -> bytes:
    if response.failure is not None:
        raise response.failure.to_exception()
    return response.body


class _PendingRequest:
    """One request and the state of its current attempt."""

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
        self.used = request.provider.current() if request.target.takes_credentials else None
        configure_handle(
            curl,
            request.target,
            self.used,
            method="HEAD" if request.head else "GET",
            connect_seconds=CONNECT_SECONDS,
            stall_seconds=STALL_SECONDS,
            amz_headers=request.amz_headers,
            follow=request.follow,
        )
        if request.start >= 0 and not request.head:
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
        space = max(self.request.limit, BODY_LIMIT) - len(self.body)
        self.body += data[:space]
        if len(data) > space:
            self.truncated = True
            return -1
        return None

    def _check_range(self) -> RequestFailure | None:
        """Returns a failure if this is not the requested range, so that the body need not be read."""
        status, headers = parse_headers(self.lines)
        request = self.request
        if not request.exact or status >= 300:
            return None
        failure = check_partial(request.target, status=status, headers=headers, start=request.start, end=request.end)
        # The first ranges of a load are requested here: a server that ignores them will do so again.
        return structs.replace(failure, retry=Retry.NEVER) if failure is not None and status == 200 else failure

    def _range_ignored(self) -> bool:
        """Whether the server sends the whole object although a range was requested."""
        return self.request.start >= 0 and not self.request.exact and parse_headers(self.lines)[0] == 200

    def finish(self, curl: pycurl.Curl, code: int) -> Response:
        """Returns the response of a completed attempt."""
        status, headers = parse_headers(self.lines)
        failure = self.range_failure
        aborted = self.truncated and code == pycurl.E_WRITE_ERROR
        if failure is None and ((code and not aborted) or not 200 <= status < 300):
            from tonnage.source.error_classification import classify  # not imported for requests that succeed

            failure = classify(
                curl_code=None if aborted else code,
                status=status,
                headers=headers,
                body=bytes(self.body),
                label=self.request.target.label,
                server=self.request.target.server,
                connected=was_connected(curl),
                pinned=self.request.pinned,
            )
        if failure is None and self.request.exact:
            failure = self._check_range() or self._wrong_length()
        return Response(
            status=status,
            headers=headers,
            body=bytes(self.body),
            failure=failure,
            address=curl.getinfo(pycurl.PRIMARY_IP),
        )

    def _wrong_length(self) -> RequestFailure | None:
        if len(self.body) == self.request.end - self.request.start:
            return None
        from tonnage.source.error_classification import classify

        return classify(
            curl_code=pycurl.E_PARTIAL_FILE, status=None, headers={}, body=b"", label=self.request.target.label
        )


class _Batch:
    """One call of ``Client.run``: the requests that wait, run on a handle, or have completed."""

    def __init__(
        self,
        multi: pycurl.CurlMulti,
        spare: list[pycurl.Curl],
        resolving: set[pycurl.Curl],
        requests: Sequence[Request],
        *,
        connections: int,
        on_retry: Callable[[], None],
        deadline: float | None,
        canceled: Callable[[], bool] | None,
    ) -> None:
        self._multi = multi
        self._spare = spare
        self._resolving = resolving
        self._on_retry = on_retry
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
            more, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                self._on_completed(curl, 0)
            for curl, code, _ in failed:
                self._on_completed(curl, code)
        if not self._running and self._waiting and not self._ready:
            time.sleep(min(self._select_timeout(), max(0.0, self._waiting[0][0] - time.monotonic())))
        elif self._running and self._multi.select(self._select_timeout()) == -1:
            time.sleep(0.005)  # libcurl has no descriptor yet, for example during name resolution

    def _select_timeout(self) -> float:
        """Seconds until the next retry, the deadline or libcurl's next timeout, at most ``SELECT_SECONDS``."""
        moments = [time.monotonic() + SELECT_SECONDS]
        moments += [self._waiting[0][0]] if self._waiting else []
        moments += [self._deadline] if self._deadline is not None else []
        timeout = self._multi.timeout()
        soonest = max(0.0, min(moments) - time.monotonic())
        return min(soonest, timeout / 1000) if timeout >= 0 else soonest

    def _release(self, curl: pycurl.Curl, code: int | None = None) -> _PendingRequest:
        """Takes a handle out of its transfer, which ended with libcurl's ``code``; None: it has not ended."""
        task = self._running.pop(curl)
        if code in {None, pycurl.E_OPERATION_TIMEDOUT} and is_resolving(curl):
            self._resolving.add(curl)
        self._multi.remove_handle(curl)
        self._spare.append(curl)
        return task

    def _on_completed(self, curl: pycurl.Curl, code: int) -> None:
        task = self._running[curl]
        response = task.finish(curl, code)
        self._release(curl, code)
        failure = response.failure
        if failure is not None and self._schedule_retry(task, failure):
            self._on_retry()
            return
        if failure is not None and task.attempts > 1:
            message = f"{failure.message.rstrip('.')}; {task.attempts} attempts failed."
            response = structs.replace(response, failure=structs.replace(failure, message=message))
        self._responses[task.number] = response

    def _schedule_retry(self, task: _PendingRequest, failure: RequestFailure) -> bool:
        """Schedules another attempt if the failure can be retried; returns whether it did."""
        if failure.retry is Retry.REFRESH_CREDENTIALS and not task.refreshed and task.used is not None:
            task.refreshed = True
            changed = task.request.provider.refresh(task.used) != task.used
            if changed:
                self._ready.append(task)
            return changed
        attempts = OPTIONAL_ATTEMPTS if task.request.optional else MAX_ATTEMPTS
        if failure.retry is not Retry.BACKOFF or task.attempts >= attempts:
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
        """Value of ``time.monotonic()`` until which a request may be retried."""
        latest = math.inf if self._deadline is None else self._deadline
        if failure.reason in _SOON_FINAL:
            latest = min(latest, task.first_attempt_at + UNREACHABLE_SECONDS)
        return latest

    def _check_limits(self) -> None:
        if self._canceled is not None and self._canceled():
            raise Interrupted("The load was interrupted during a request to the store.")
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        tasks = [*self._running.values(), *(each[2] for each in self._waiting), *self._ready]
        label = tasks[0].request.target.label if tasks else "the last request"
        raise Timeout(f"The deadline passed during a request for {label}.")
