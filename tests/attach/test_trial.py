"""How reading through a mapping or by ``read`` is chosen between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.attach.trial import CLEAR, MARGIN, PATIENCE, SAMPLES, SETTLING, STARTING, Trial
from tonnage.attach.unread import first_reads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST_VERDICT = STARTING + SAMPLES + SETTLING + SAMPLES
SECOND_VERDICT = SETTLING + PATIENCE + SAMPLES + SETTLING + SAMPLES
GIB = 1 << 30


def drive(trial: Trial, pieces: int, cost: Callable[[int, int], float]) -> list[int]:
    """The ways that were taken; ``cost`` gets a piece's number and way."""
    ways = []
    for number in range(pieces):
        ways.append(trial.choose())
        trial.took(ways[-1], 100, cost(number, ways[-1]) * 100)
    return ways


@given(read=st.floats(0.001, 10), mapped=st.floats(0.001, 10), first=st.sampled_from([0, 1]))
def test_the_quicker_way_wins_whichever_was_expected_to(read: float, mapped: float, first: int) -> None:
    trial = Trial(first)
    drive(trial, FIRST_VERDICT + SECOND_VERDICT, lambda _, way: (read, mapped)[way])
    assert trial.choose() == int(mapped < MARGIN * read)


@pytest.mark.parametrize("first", [0, 1])
def test_a_trial_begins_with_the_expected_way_and_tries_each_enough(first: int) -> None:
    ways = drive(Trial(first), FIRST_VERDICT, lambda _, way: 1.0 + way)
    assert ways == [first] * (STARTING + SAMPLES) + [1 - first] * (SETTLING + SAMPLES)


def test_a_sleeping_thread_does_not_decide() -> None:
    trial = Trial()
    drive(trial, FIRST_VERDICT, lambda number, way: 100.0 if number == STARTING + 3 else 2.0 - way)
    assert trial.choose() == 1


def test_a_clear_verdict_is_final() -> None:
    ways = drive(Trial(), 3000, lambda _, way: (1.0, 1.0 / CLEAR - 0.01)[way])
    assert set(ways[FIRST_VERDICT:]) == {1}


def test_a_verdict_that_was_disturbed_is_put_right() -> None:
    """Like a mapping that is tried while another load's tables are given back."""
    trial = Trial(1)
    ways = drive(trial, 3000, lambda number, way: 0.6 if way and number < 100 else (0.5, 0.2)[way])
    assert ways[FIRST_VERDICT] == 0
    assert ways[-1] == 1
    assert ways.count(0) < 0.12 * len(ways)


def test_a_close_verdict_is_looked_at_only_once_more() -> None:
    ways = drive(Trial(), 20_000, lambda _, way: (1.0, 1.1)[way])
    assert ways.count(1) == 2 * (SETTLING + SAMPLES)


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """The kernel's two files as they are given."""

    def make(lru: str | None, meminfo: str) -> dict[str, Path]:
        files = {"lru": tmp_path / "enabled", "meminfo": tmp_path / "meminfo"}
        if lru is not None:
            files["lru"].write_text(lru)
        files["meminfo"].write_text(meminfo)
        return files

    return make


def memory(*, shared: float, active: float) -> str:
    kinds = {"MemTotal": 9.0, "Active(anon)": active, "Shmem": shared}
    return "HugePages_Free: 0\n" + "".join(f"{name}:   {int(gib * 2**20)} kB\n" for name, gib in kinds.items())


@pytest.mark.parametrize("text", ["0x0007\n", "0x0001\n"])
def test_a_kernel_with_generations_has_no_slow_first_reads(kernel, text: str) -> None:
    assert first_reads(GIB, **kernel(text, memory(shared=5, active=0))) == "done"


@pytest.mark.parametrize("text", ["0x0000\n", "0x0006\n", "?", None])
@pytest.mark.parametrize(
    ("shared", "active", "found"),
    [(1.0, 0.0, "ahead"), (3.0, 2.4, "ahead"), (3.0, 2.8, "unknown"), (1.0, 1.0, "done"), (1.0, 4.0, "done")],
)
def test_elsewhere_the_lists_of_pages_tell(kernel, text: str | None, shared: float, active: float, found: str) -> None:
    assert first_reads(GIB, **kernel(text, memory(shared=shared, active=active))) == found


@pytest.mark.parametrize("meminfo", ["", "Shmem: 5 kB\n", "Shmem: many kB\nActive(anon): 4 kB\n", "\0\n"])
def test_a_kernel_that_does_not_tell_is_tried_out(kernel, meminfo: str) -> None:
    assert first_reads(GIB, **kernel(None, meminfo)) == "unknown"


def test_this_machine_tells() -> None:
    assert first_reads(1 << 60) in {"done", "unknown"}  # nobody has an exbibyte unread
