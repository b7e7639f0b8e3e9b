"""The number of threads of the compiled ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from tonnage.attach.copy.thread_count import (
    FIRST_THREADS,
    MAX_THREADS,
    MIN_THREADS,
    PAUSE,
    SPARE,
    STEP,
    WINDOW_BYTES,
    ThreadCount,
    Window,
    first_thread_count,
    next_thread_count,
)

if TYPE_CHECKING:
    from collections.abc import Callable

cores = st.integers(1, 256)
windows = st.builds(Window, st.integers(0, 1 << 40), st.floats(0, 10), st.floats(0, 100), st.floats(0, 100))


def run(state: ThreadCount, machine: Callable[[int], float], *, bus: float, decisions: int = 60) -> list[ThreadCount]:
    """Decides for a machine whose threads together read ``machine(threads)`` bytes a second."""
    states = [state]
    for _ in range(decisions):
        rate = min(bus, machine(state.active))
        seconds = WINDOW_BYTES / rate
        reading = seconds * state.active * rate / machine(state.active)
        state = next_thread_count(state, Window(WINDOW_BYTES, seconds, reading, seconds * state.active - reading))
        states.append(state)
    return states


@given(cores, st.lists(windows, max_size=30))
def test_the_number_stays_within_the_cores_whatever_is_measured(cores: int, seen: list[Window]) -> None:
    state = first_thread_count(cores)
    for window in seen:
        state = next_thread_count(state, window)
        assert 1 <= state.active <= cores


@given(cores, st.builds(Window, st.integers(0, WINDOW_BYTES - 1), st.floats(0, 10), st.floats(0, 9), st.floats(0, 9)))
def test_too_few_bytes_change_nothing(cores: int, window: Window) -> None:
    state = first_thread_count(cores)
    assert next_thread_count(state, window) == state


@given(st.integers(MIN_THREADS + 1, 256), st.floats(1e9, 20e9))
@example(8, 6.25e9)  # the bus is not the limit of the six threads that begin
def test_where_the_bus_is_the_limit_threads_are_given_back_and_it_stays_full(cores: int, each: float) -> None:
    bus = 50e9
    first = first_thread_count(cores)
    for state in run(first, lambda threads: threads * each, bus=bus):
        if first.active * each >= bus:
            assert state.active * each >= bus or state.active == MIN_THREADS


@given(cores, st.floats(SPARE, 1, exclude_min=True))
def test_threads_that_wait_although_the_bus_is_not_full_stay(cores: int, waiting: float) -> None:
    """For buffers, for example, or for the driver."""
    state = first = first_thread_count(cores)
    for _ in range(60):
        window = Window(WINDOW_BYTES, WINDOW_BYTES / state.active, 1 - waiting, waiting)
        state = next_thread_count(state, window)
        assert state.active >= first.active - 1


@given(st.floats(0.5e9, 2e9), st.integers(1, 8))
def test_where_each_thread_adds_its_share_a_gpu_has_its_share_of_the_cores(each: float, devices: int) -> None:
    first = first_thread_count(22, devices=devices)
    most = max(first.active, 22 // devices)
    assert run(first, lambda threads: threads * each, bus=1e12)[-1].active == most


@given(st.integers(FIRST_THREADS, 128), st.floats(20e9, 60e9))
def test_where_memory_is_the_limit_a_step_up_is_tried_at_times_and_taken_back(cores: int, memory: float) -> None:
    first = first_thread_count(cores)
    states = run(first, lambda _: memory, bus=1e12)
    assert {state.active for state in states} <= {first.active, min(first.active + STEP, cores)}
    assert sum(state.active > first.active for state in states) <= len(states) / PAUSE


@given(st.integers(1, PAUSE))
def test_threads_that_did_not_help_are_tried_again_when_other_programs_leave_the_memory(decisions: int) -> None:
    busy = run(first_thread_count(32), lambda _: 30e9, bus=1e12, decisions=decisions)
    assert run(busy[-1], lambda threads: threads * 2e9, bus=1e12)[-1].active == MAX_THREADS
