"""Waiting for what a cluster does in its own time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def eventually(check: Callable[[], T], *, within: float = 15, every: float = 0.1) -> T:
    """Returns the first true result of ``check``, or fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"did not come true within {within} s: {check}"
        time.sleep(every)
    return result


async def soon(check: Callable[[], T], *, within: float = 15, every: float = 0.05) -> T:
    """Returns the first true result of ``check``, or fails after ``within`` seconds; other tasks go on."""
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"did not come true within {within} s: {check}"
        await asyncio.sleep(every)
    return result
