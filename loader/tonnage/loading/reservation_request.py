"""Asks the operator for room on the node before the first byte, in pods, which see their own entry only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tonnage.contract import Progress, Report, ReportKind, decode_reservation_answer, encode_report
from tonnage.errors import InsufficientSpace, Interrupted, InvalidPlan
from tonnage.reporting.client import ReportClient
from tonnage.reporting.reporter import report_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.contract import Plan
    from tonnage.contract.plan import Reporting

REQUEST_TIMEOUT = 5.0
UNANSWERED_SECONDS = 20.0
"""Time after which a load goes on without an answer: a controller that restarts must not keep servers from starting.
The medium's free space is checked in any case."""
INITIAL_BACKOFF = 0.1
MAX_BACKOFF = 1.0


def request_room(
    plan: Plan,
    reporting: Reporting,
    *,
    entry_name: str,
    required_bytes: int,
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
    deadline: float | None,
    canceled: Callable[[], bool],
) -> None:
    """Returns when the operator has reserved room for an entry, or can't be asked.

    Args:
        plan: The plan.
        reporting: Its endpoint.
        entry_name: The entry to load.
        required_bytes: The bytes of the whole entry once it is loaded.
        on_progress: Called while the load waits.
        on_note: Called with a sentence if the operator could not be asked.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        canceled: Polled; return True to cancel.

    Raises:
        InsufficientSpace: There is no room, with the operator's sentence about needed and used bytes.
        Interrupted: ``canceled`` returned True.
    """
    body = encode_report(
        Report(kind=ReportKind.RESERVATION, entry=entry_name, bytes=required_bytes, identity=plan.identity)
    )
    client = ReportClient(report_endpoint(reporting))
    backoff, unanswered_since = INITIAL_BACKOFF, time.monotonic()
    message = ""
    try:
        while True:
            failure = client.send(body, timeout=REQUEST_TIMEOUT)
            problem, permanent = (failure.message, failure.permanent) if failure else ("", False)
            if failure is None:
                try:
                    answer = decode_reservation_answer(client.response)
                except InvalidPlan as error:  # of an earlier release
                    problem, permanent = error.message, True
                else:
                    unanswered_since, message = time.monotonic(), answer.message
                    if answer.granted:
                        return
                    if not answer.wait:
                        raise InsufficientSpace(message)
                    waiting = Progress(phase="waiting", total_bytes=required_bytes, waiting_for=f"room. {message}")
                    on_progress(waiting)
            if problem and (permanent or time.monotonic() - unanswered_since > UNANSWERED_SECONDS):
                on_note(f"The operator could not be asked for room on this node, so the load went on: {problem}")
                return
            if canceled():
                raise Interrupted("Interrupted while waiting for room on this node.")
            if deadline is not None and time.monotonic() + backoff >= deadline:
                raise InsufficientSpace(f"Timed out waiting for room on this node. {message}".rstrip())
            time.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF)
    finally:
        client.close()
