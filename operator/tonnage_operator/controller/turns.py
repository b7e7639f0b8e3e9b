"""Spreads decisions over the turns of the event loop, so that requests are answered between two of them."""

from __future__ import annotations

import asyncio
from typing import Final

_TURNS: Final = 2
"""Turns of the event loop between two decisions: one to read a request that has arrived, one to answer it."""


class Turns:
    """Lets one decision begin at a time, however many objects wait for theirs.

    A decision takes milliseconds in which nothing else runs. A hundred that are due together, as after a list of all
    objects, would otherwise run in a single turn of the event loop.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def wait(self) -> None:
        """Returns when the next decision may run: first come, first served."""
        async with self._lock:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
