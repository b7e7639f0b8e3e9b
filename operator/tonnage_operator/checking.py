"""Asks webhook and controller over the network whether they answer, trusting what their callers trust."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp

from tonnage_operator.config import BadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PATIENCE: Final = 5.0
_LOOK_AGAIN: Final = 1.0


@dataclass(frozen=True)
class Question:
    """One endpoint, and the HTTP status that shows it answers as it should."""

    what: str
    method: str
    url: str
    ca: Path | None
    expected: int

    @classmethod
    def webhook(cls, url: str, ca: Path | None) -> Question:
        """Returns the question whether the webhook is ready."""
        return cls("webhook", "GET", url, ca, 200)

    @classmethod
    def reports(cls, url: str, ca: Path | None) -> Question:
        """Returns the question whether the controller takes reports: one without a token is refused."""
        return cls("controller", "POST", url, ca, 401)


async def check(questions: Sequence[Question], *, within: float) -> dict[str, str]:
    """Asks until all answer as they should or the time is up; returns what is wrong, by who it is.

    Args:
        questions: What to ask.
        within: Seconds.

    Raises:
        BadConfig: A CA's file can't be used.
    """
    deadline = time.monotonic() + within
    open_ = {each.what: each for each in questions}
    contexts = {each.what: _context(each) for each in questions}
    wrong: dict[str, str] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE)) as session:
        while open_:
            for what, question in list(open_.items()):
                wrong[what] = await _ask(session, question, contexts[what])
                if not wrong[what]:
                    del open_[what], wrong[what]
            if not open_ or time.monotonic() > deadline:
                break
            await asyncio.sleep(_LOOK_AGAIN)
    return wrong


def _context(question: Question) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=question.ca)
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"{question.ca}, the CA of the {question.what}, can't be used: {error}") from error


async def _ask(session: aiohttp.ClientSession, question: Question, context: ssl.SSLContext) -> str:
    """Returns what is wrong with the answer; empty: nothing."""
    try:
        async with session.request(question.method, question.url, ssl=context) as answer:
            if answer.status == question.expected:
                return ""
            return f"{question.url} answered {answer.status} and not {question.expected}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"{question.url} did not answer: {error!r}"
