"""Collects the garbage of a process with many objects without pauses at any moment.

A full collection looks at every object: 0.1 seconds and more with 1,000 nodes, in which nothing is answered. Python
starts one whenever the number of objects has grown by a quarter.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

_INTERVAL: Final = 600.0
"""Seconds between two full collections: what they find are cycles that outlived the collections of young objects."""
_YOUNG: Final = 5_000
"""Objects after which young ones are collected: about what one answer of the API server has."""
_MIDDLE: Final = 20
_NEVER: Final = 1 << 30


async def collect_rarely() -> None:
    """Collects young objects as Python does, and all objects every ten minutes, until cancelled."""
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    try:
        while True:
            await asyncio.sleep(_INTERVAL)
            gc.collect()
    finally:
        gc.set_threshold(*before)
