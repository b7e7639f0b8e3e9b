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
from tonnage.reporting.client import DeliveryFailure, Endpoint, ReportClient
from tonnage.source.aws_config import find_ca_bundle
from tonnage.source.endpoint_urls import redact_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tonnage.contract.plan import Reporting
    from tonnage.contract.report import Progress, Report

PROGRESS_TIMEOUT = 2.0
"""How long a report of progress may take before it is given up for a newer one."""
INITIAL_BACKOFF = 0.1
MAX_BACKOFF = 1.0
POLL_INTERVAL = 0.05
"""How soon a signal is noticed while the last report is being sent."""
UNREPORTED_PHASES = frozenset({"resolving"})
"""Phases that are not told: of a hit there is no other, and it has no time to spare."""
_TERMINATION_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class _FinalReport(NamedTuple):
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
        bundle = reporting.ca_bundle or (find_ca_bundle("", {}) if reporting.url.lower().startswith("https:") else "")
        self.endpoint = Endpoint(reporting.url, bundle, reporting.token_file)
        self._template = template
        self._interval = reporting.interval
        self._condition = threading.Condition()
        self._latest_progress: Progress | None = None
        self._final: _FinalReport | None = None
        self._final_done = threading.Event()
        self._failure: DeliveryFailure | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def display_url(self) -> str:
        """Where reports go, as it may be shown."""
        return redact_url(self.endpoint.url)

    def progress(self, progress: Progress) -> None:
        """Takes the newest state, to be sent when it is time. Never waits; any thread may call it."""
        if progress.phase in UNREPORTED_PHASES:
            return
        with self._condition:
            self._latest_progress = progress
            self._notify_worker()

    def send_final(
        self, report: Report, *, timeout: float, canceled: Callable[[], bool] = lambda: False
    ) -> DeliveryFailure | None:
        """Sends the last report, again if need be, and waits until it has arrived.

        Args:
            report: What to say.
            timeout: Seconds after which it is given up, tries and pauses together.
            canceled: Asked about every 50 ms whether to give up at once.

        Returns:
            Why it did not arrive; None: it did.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            self._latest_progress = None
            self._final_done.clear()
            self._final = _FinalReport(encode_report(report), deadline)
            self._notify_worker()
        while not self._final_done.wait(POLL_INTERVAL):
            if time.monotonic() > deadline + POLL_INTERVAL or canceled():  # the thread knows better why
                return DeliveryFailure("there was no answer in time")
        return self._failure

    def close(self) -> None:
        """Ends it. What is under way is left to itself, and ends with the process at the latest."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _notify_worker(self) -> None:
        """Has the thread look, and starts it when there is something for it for the first time."""
        self._condition.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINATION_SIGNALS)  # signals are the main thread's
            self._thread.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _work(self) -> None:
        # Nobody else may have the handle: it could not be closed while a name is being looked up.
        client = ReportClient(self.endpoint)
        due = 0.0
        while (task := self._next_report(due)) is not None:
            if isinstance(task, _FinalReport):
                self._failure = _send_with_retries(client, task)
                self._final_done.set()
            else:
                due = time.monotonic() + self._interval
                report = msgspec.structs.replace(self._template, kind=ReportKind.PROGRESS, progress=task)
                client.send(encode_report(report), timeout=PROGRESS_TIMEOUT)
        client.close()

    def _next_report(self, due: float) -> Progress | _FinalReport | None:
        """Waits for what is to be sent next: progress not before ``due``. None: it is over."""
        with self._condition:
            while True:
                if self._final is not None:
                    final, self._final = self._final, None
                    return final
                if self._closed:
                    return None
                remaining_seconds = due - time.monotonic()
                if self._latest_progress is not None and remaining_seconds <= 0:
                    newest, self._latest_progress = self._latest_progress, None
                    return newest
                self._condition.wait(remaining_seconds if self._latest_progress is not None else None)


def _send_with_retries(client: ReportClient, final: _FinalReport) -> DeliveryFailure | None:
    backoff = INITIAL_BACKOFF
    while True:
        failure = client.send(final.body, timeout=final.deadline - time.monotonic())
        if failure is None or failure.permanent or time.monotonic() + backoff >= final.deadline:
            return failure
        time.sleep(backoff)
        backoff = min(backoff * 2, MAX_BACKOFF)
