"""Sends the reports of one load: progress in passing, and the last word with a little patience."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import msgspec
import pycurl

from tonnage.contract.report import ReportKind, encode_report
from tonnage.reporting.post import Endpoint, Failure, Post
from tonnage.source.environment import ca_bundle
from tonnage.source.urls import redact_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tonnage.contract.plan import Reporting
    from tonnage.contract.report import Progress, Report

PROGRESS_SECONDS = 5.0
"""How long a report of progress may take before it is given up for a newer one."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
SELECT_SECONDS = 0.05
"""How soon a signal is noticed while the last report is being sent."""
QUIET_PHASES = frozenset({"resolving"})
"""Phases that are not told: of a hit there is no other, and it has no time to spare."""


class Reporter:
    """Sends reports about one plan. Use it as a context, or call ``close``.

    Progress goes out while the load's own loop turns: ``progress`` keeps the newest state, ``poll`` moves bytes; both
    may be called by any thread, and neither ever waits. What can't be sent in time is replaced by what is newer.

    Args:
        reporting: Where to, and how often.
        template: The fields that all reports have in common.
    """

    def __init__(self, reporting: Reporting, template: Report) -> None:
        # The system's authorities where the plan names none; those of the store have no say here.
        bundle = reporting.ca_bundle or (ca_bundle("", {}) if reporting.url.lower().startswith("https:") else "")
        self.endpoint = Endpoint(reporting.url, bundle, reporting.token_file)
        self._template = template
        self._interval = reporting.interval
        self._post = Post(self.endpoint)
        self._multi = pycurl.CurlMulti()
        self._lock = threading.Lock()
        self._under_way = False
        self._failure: Failure | None = None
        self._newest: Progress | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def place(self) -> str:
        """Where reports go, as it may be shown."""
        return redact_url(self.endpoint.url)

    def progress(self, progress: Progress) -> None:
        """Takes the newest state, to be sent when it is time."""
        if progress.phase not in QUIET_PHASES:
            self._newest = progress
            self.poll()

    def poll(self) -> None:
        """Goes on with what is under way, and starts what is due. Never waits."""
        if not self._lock.acquire(blocking=False):
            return  # another thread is at it
        try:
            newest = self._newest
            if not self._under_way and newest is not None and (now := time.monotonic()) >= self._due:
                self._due = now + self._interval
                self._newest = None
                report = msgspec.structs.replace(self._template, kind=ReportKind.PROGRESS, progress=newest)
                self._start(encode_report(report), seconds=PROGRESS_SECONDS)
            self._drive()
        finally:
            self._lock.release()

    def send(self, report: Report, *, patience: float, canceled: Callable[[], bool] = lambda: False) -> Failure | None:
        """Sends a report that matters, again if need be, and waits until it has arrived.

        Args:
            report: What to say.
            patience: Seconds after which it is given up, tries and pauses together.
            canceled: Asked about every 50 ms whether to give up at once.

        Returns:
            Why it did not arrive; None: it did.
        """
        began = time.monotonic()
        deadline = began + patience
        body = encode_report(report)
        pause = FIRST_PAUSE
        with self._lock:
            # Progress that is under way must not arrive after the end.
            self._wait(began + patience / 3, canceled)
            while True:
                failure = self._try(body, deadline, canceled)
                if failure is None or failure.permanent or canceled() or time.monotonic() + pause >= deadline:
                    return failure
                _sleep(pause, canceled)
                pause = min(pause * 2, LONGEST_PAUSE)

    def close(self) -> None:
        """Gives up what is under way and closes the connection."""
        with self._lock:
            self._newest = None
            self._abandon()
            self._multi.close()
            self._post.close()

    def _try(self, body: bytes, deadline: float, canceled: Callable[[], bool]) -> Failure | None:
        failure = self._start(body, seconds=deadline - time.monotonic())
        if failure is not None:
            return failure
        return self._wait(deadline, canceled)

    def _start(self, body: bytes, *, seconds: float) -> Failure | None:
        failure = self._post.prepare(body, seconds=seconds)
        if failure is None:
            self._multi.add_handle(self._post.curl)
            self._under_way = True
            self._failure = None
        return failure

    def _wait(self, deadline: float, canceled: Callable[[], bool]) -> Failure | None:
        """Waits for what is under way, gives it up when that takes too long, and returns why it did not arrive."""
        while self._drive():
            left = deadline - time.monotonic()
            if left <= 0 or canceled():
                self._abandon()
                return Failure("there was no answer in time")
            if self._multi.select(min(left, SELECT_SECONDS)) == -1:
                time.sleep(0.005)  # libcurl has no descriptor yet, for instance while a name is resolved
        return self._failure

    def _drive(self) -> bool:
        """Moves bytes as far as that goes without waiting; returns whether there are more to come."""
        if not self._under_way:
            return False
        while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
            pass
        _, good, bad = self._multi.info_read()
        if good or bad:
            self._abandon()
            self._failure = self._post.outcome(bad[0][1] if bad else 0)
        return self._under_way

    def _abandon(self) -> None:
        if self._under_way:
            self._under_way = False
            self._multi.remove_handle(self._post.curl)


def _sleep(seconds: float, canceled: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not canceled():
        time.sleep(min(left, SELECT_SECONDS))
