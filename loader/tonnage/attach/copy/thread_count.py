"""Decides how many threads of the compiled ring copy, by how much of their time they wait. Pure.

Threads wait if the bus is the limit: fewer do the same then, and leave cores to others. If they hardly wait, more
threads may be faster, or slower: they share the memory's bandwidth and the caches. So a step down is taken back if it
cost throughput, and a step up if it gained none. As other programs use the memory too, the next one is tried some
windows later.
"""

from __future__ import annotations

from typing import NamedTuple

from tonnage.attach.copy_options import copying_cores

FIRST_THREADS = 16
"""A GPU's bus is filled by 8 to 16 of today's cores."""
MAX_THREADS = 24
"""More threads than that were never faster."""
STEP = 2
SPARE = 0.2
"""Share of the threads' time spent waiting above which a thread less does the same."""
BUSY = 0.08
"""Share below which more threads are tried."""
GAIN = 1.05
"""A step up is kept if it raised the throughput by this factor."""
LOSS = 0.95
"""A step down is kept if it left this share of the throughput."""
MIN_THREADS = 4
PAUSE = 6
"""Windows between a step that was taken back and the next one."""
WINDOW_BYTES = 512 << 20
"""Bytes that are copied between decisions."""


class Window(NamedTuple):
    """What all threads did since the last decision: bytes, wall-clock seconds, and threads' seconds of each kind."""

    bytes: int
    seconds: float
    reading: float
    waiting: float

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds

    @property
    def waiting_share(self) -> float:
        return self.waiting / (self.reading + self.waiting)


class ThreadCount(NamedTuple):
    """The state of the decision.

    Attributes:
        active: Threads that copy.
        limit: Most threads that may.
        tried_from: While a step is being tried: the threads before it, and the rate that it must reach.
        pause: Windows until the next step may be tried.
    """

    active: int
    limit: int
    tried_from: tuple[int, float] | None = None
    pause: int = 0


def first_thread_count(cores: int, *, devices: int = 1) -> ThreadCount:
    """Returns the state before anything was measured.

    Args:
        cores: Cores that this process may use.
        devices: GPUs of the host. Copies to all of them may run at once, so no copy goes beyond its share of the cores.
    """
    first = min(FIRST_THREADS, copying_cores(cores))
    return ThreadCount(first, max(first, min(MAX_THREADS, cores // devices)))


def can_decide(window: Window) -> bool:
    """Returns whether enough was copied."""
    return window.bytes >= WINDOW_BYTES and window.seconds > 0 and window.reading + window.waiting > 0


def next_thread_count(state: ThreadCount, window: Window) -> ThreadCount:
    """Returns the state after a window that was measured with ``state.active`` threads."""
    if not can_decide(window):
        return state
    if state.tried_from is not None and window.rate < state.tried_from[1]:
        return ThreadCount(state.tried_from[0], state.limit, pause=PAUSE)
    if state.pause:
        return ThreadCount(state.active, state.limit, pause=state.pause - 1)
    if window.waiting_share > SPARE and state.active > MIN_THREADS:
        return ThreadCount(state.active - 1, state.limit, tried_from=(state.active, window.rate * LOSS))
    if window.waiting_share < BUSY and state.active < state.limit:
        more = min(state.active + STEP, state.limit)
        return ThreadCount(more, state.limit, tried_from=(state.active, window.rate * GAIN))
    return ThreadCount(state.active, state.limit)
