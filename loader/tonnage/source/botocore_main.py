"""The process that runs botocore: answers which credentials its chain finds.

It is a process of its own because botocore runs the programs and waits for the servers that a profile names, without a
deadline of ours, and asks on a terminal for codes of MFA devices. ``botocore_process`` starts it in a session without a
terminal, reads its answers and kills it. Requests are lines of text, answers lines of JSON; an exception is an answer
too, and the last one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from botocore.session import Session

if TYPE_CHECKING:
    from types import TracebackType

MAX_TEXT = 2000
"""Characters of an exception's text that are passed on."""


class _Asked:
    """What is being done, for the answer about an exception."""

    method = ""
    """botocore's name of the provider that was asked for credentials."""


def main(requests: int, answers: int) -> None:
    """Answers requests until the other process closes its end."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, lines), daemon=True).start()
    session = Session()

    def answer(value: dict[str, Any]) -> None:
        os.write(answers, json.dumps(value).encode() + b"\n")

    def report(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        answer({"error": describe(error, session)})

    sys.excepthook = report
    while True:
        lines.get()
        answer(load_credentials(session))


def _receive(descriptor: int, lines: queue.SimpleQueue[str]) -> None:
    """Passes requests on. At their end the process ends, with the programs that botocore has started."""
    with os.fdopen(descriptor) as stream:
        for line in stream:
            lines.put(line.strip())
    os.killpg(0, signal.SIGKILL)


def load_credentials(session: Session) -> dict[str, Any]:
    """Returns the credentials of the first provider of botocore's chain that has any; an empty dict if none has."""
    for provider in session.get_component("credential_provider").providers:
        _Asked.method = provider.METHOD or ""
        found = provider.load()
        if found is not None:
            _Asked.method = found.method or _Asked.method
            frozen = found.get_frozen_credentials()
            expiry = getattr(found, "_expiry_time", None)
            return {
                "access_key": frozen.access_key or "",
                "secret_key": frozen.secret_key or "",
                "session_token": frozen.token or "",
                "expires_at": None if expiry is None else expiry.timestamp(),
                "method": _Asked.method,
            }
    return {}


def describe(error: BaseException, session: Session) -> dict[str, Any]:
    """Returns an exception's classes, its text, the file that it is about, the provider and the service's code."""
    response = getattr(error, "response", None)
    service = response.get("Error", {}) if isinstance(response, dict) else {}
    return {
        "kinds": [cls.__name__ for cls in type(error).__mro__],
        "text": str(error)[:MAX_TEXT],
        "file": str(getattr(error, "filename", None) or ""),
        "method": _Asked.method,
        "program": _program(session) if _Asked.method == "custom-process" else "",
        "operation": str(getattr(error, "operation_name", "")),
        "code": str(service.get("Code", ""))[:64],
        "message": str(service.get("Message", ""))[:MAX_TEXT],
    }


def _program(session: Session) -> str:
    """Returns the profile's credential_process without its arguments, which may be secret."""
    profiles = session.full_config.get("profiles", {})
    command = profiles.get(session.profile or "default", {}).get("credential_process", "")
    return str(command).strip().partition(" ")[0]
