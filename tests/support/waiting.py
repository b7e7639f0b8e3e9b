"""Waits for changes that no event announces."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, timeout: float = 15, interval: float = 0.1) -> T:
    """Returns the first true result of ``condition``, or fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout} s: {condition}"
        time.sleep(interval)
    return result


async def eventually_async(
    condition: Callable[[], T],
    *,
    timeout: float = 15,  # noqa: ASYNC109
    interval: float = 0.05,
) -> T:
    """Returns the first true result of ``condition``, or fails after ``timeout`` seconds. Other tasks continue."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout} s: {condition}"
        await asyncio.sleep(interval)
    return result
