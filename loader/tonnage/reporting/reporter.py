"""Sends the reports of one load: progress in passing, and the last word with a little patience.

A thread does it, which nobody waits for longer than is said: a name that can't be looked up, for one, keeps libcurl for
ten seconds. It costs the load nothing, since its bytes pass through other processes.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.contract.report import ReportKind, encode_report
from tonnage.reporting.post import Endpoint, Failure, Post
from tonnage.source.environment import ca_bundle
from tonnage.source.urls import redact_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tonnage.contract.plan import Reporting
    from tonnage.contract.report import Progress, Report

PROGRESS_SECONDS = 2.0
"""How long a report of progress may take before it is given up for a newer one."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
LOOK_SECONDS = 0.05
"""How soon a signal is noticed while the last report is being sent."""
QUIET_PHASES = frozenset({"resolving"})
"""Phases that are not told: of a hit there is no other, and it has no time to spare."""
_ENDING = {signal.SIGTERM, signal.SIGINT}


class _Last(NamedTuple):
    """The report that ends it all, and the moment after which nobody waits for it."""

    body: bytes
    deadline: float


class Reporter:
    """Sends reports about one plan. Use it as a context, or call ``close``.

    Of progress only the newest state is kept, so that what can't be sent in time is replaced, not queued.

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
        self._changed = threading.Condition()
        self._newest: Progress | None = None
        self._last: _Last | None = None
        self._ended = threading.Event()
        self._failure: Failure | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def place(self) -> str:
        """Where reports go, as it may be shown."""
        return redact_url(self.endpoint.url)

    def progress(self, progress: Progress) -> None:
        """Takes the newest state, to be sent when it is time. Never waits; any thread may call it."""
        if progress.phase in QUIET_PHASES:
            return
        with self._changed:
            self._newest = progress
            self._wake()

    def send(self, report: Report, *, patience: float, canceled: Callable[[], bool] = lambda: False) -> Failure | None:
        """Sends the last report, again if need be, and waits until it has arrived.

        Args:
            report: What to say.
            patience: Seconds after which it is given up, tries and pauses together.
            canceled: Asked about every 50 ms whether to give up at once.

        Returns:
            Why it did not arrive; None: it did.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            self._newest = None
            self._ended.clear()
            self._last = _Last(encode_report(report), deadline)
            self._wake()
        while not self._ended.wait(LOOK_SECONDS):
            if time.monotonic() > deadline + LOOK_SECONDS or canceled():  # the thread knows better why
                return Failure("there was no answer in time")
        return self._failure

    def close(self) -> None:
        """Ends it. What is under way is left to itself, and ends with the process at the latest."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _wake(self) -> None:
        """Has the thread look, and starts it when there is something for it for the first time."""
        self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # signals are the main thread's
            self._thread.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _work(self) -> None:
        # Nobody else may have the handle: it could not be closed while a name is being looked up.
        post = Post(self.endpoint)
        due = 0.0
        while (task := self._next(due)) is not None:
            if isinstance(task, _Last):
                self._failure = _deliver(post, task)
                self._ended.set()
            else:
                due = time.monotonic() + self._interval
                report = msgspec.structs.replace(self._template, kind=ReportKind.PROGRESS, progress=task)
                post.send(encode_report(report), seconds=PROGRESS_SECONDS)
        post.close()

    def _next(self, due: float) -> Progress | _Last | None:
        """Waits for what is to be sent next: progress not before ``due``. None: it is over."""
        with self._changed:
            while True:
                if self._last is not None:
                    last, self._last = self._last, None
                    return last
                if self._closed:
                    return None
                left = due - time.monotonic()
                if self._newest is not None and left <= 0:
                    newest, self._newest = self._newest, None
                    return newest
                self._changed.wait(left if self._newest is not None else None)


def _deliver(post: Post, last: _Last) -> Failure | None:
    pause = FIRST_PAUSE
    while True:
        failure = post.send(last.body, seconds=last.deadline - time.monotonic())
        if failure is None or failure.permanent or time.monotonic() + pause >= last.deadline:
            return failure
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)
