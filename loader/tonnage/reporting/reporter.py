"""Sends progress reports periodically, and retries the final report until a timeout.

A daemon thread sends them. Callers wait at most the given timeout, because a failing DNS lookup blocks libcurl for ten
seconds. The thread doesn't slow down the load, which transfers data in other processes.
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
"""Seconds after which a progress report is dropped in favor of a newer one."""
INITIAL_BACKOFF = 0.1
MAX_BACKOFF = 1.0
POLL_INTERVAL = 0.05
"""Seconds within which a signal is noticed while the final report is being sent."""
UNREPORTED_PHASES = frozenset({"resolving"})
"""Phases without a progress report. A cache hit only resolves, and reporting would delay it."""
_TERMINATION_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def report_endpoint(reporting: Reporting) -> Endpoint:
    """Returns the endpoint of a plan. It has the system's CAs by default; those of the store don't count."""
    bundle = reporting.ca_bundle or (find_ca_bundle("", {}) if reporting.url.lower().startswith("https:") else "")
    return Endpoint(reporting.url, bundle, reporting.token_file)


class _FinalReport(NamedTuple):
    """The final report and its delivery deadline, as ``time.monotonic()``."""

    body: bytes
    deadline: float


class Reporter:
    """Sends the reports of a plan. Use it as a context manager, or call ``close``.

    Progress is not queued: a newer state replaces one that was not sent in time.

    Args:
        reporting: The endpoint and the interval.
        template: The fields common to all reports.
    """

    def __init__(self, reporting: Reporting, template: Report) -> None:
        self.endpoint = report_endpoint(reporting)
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
        """The endpoint's URL without secrets."""
        return redact_url(self.endpoint.url)

    def progress(self, progress: Progress) -> None:
        """Stores the newest state, to be sent at the next interval. Never blocks; thread-safe."""
        if progress.phase in UNREPORTED_PHASES:
            return
        with self._condition:
            self._latest_progress = progress
            self._notify_worker()

    def send_final(
        self, report: Report, *, timeout: float, canceled: Callable[[], bool] = lambda: False
    ) -> DeliveryFailure | None:
        """Sends the final report with retries, and waits until it is delivered.

        Args:
            report: The report.
            timeout: Total seconds of all attempts and delays.
            canceled: Polled about every 50 ms; return True to stop waiting.

        Returns:
            Why it was not delivered; None if it was.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            self._latest_progress = None
            self._final_done.clear()
            self._final = _FinalReport(encode_report(report), deadline)
            self._notify_worker()
        while not self._final_done.wait(POLL_INTERVAL):
            if time.monotonic() > deadline + POLL_INTERVAL or canceled():
                return DeliveryFailure("timed out")
        return self._failure

    def close(self) -> None:
        """Stops the thread without waiting for it. A request in progress ends with the process at the latest."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _notify_worker(self) -> None:
        """Notifies the thread; starts it on first use."""
        self._condition.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINATION_SIGNALS)  # the main thread handles signals
            self._thread.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _work(self) -> None:
        # Only this thread uses the handle: closing it blocks during a DNS lookup.
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
        """Waits for the next report; progress is returned at ``due`` at the earliest. None after ``close``."""
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
