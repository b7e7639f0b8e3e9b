"""The share of pieces that are copied from mappings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.attach.copy.read_ways import (
    FIRST_SHARE,
    MAPPED_SHARE,
    MAPPING_COST,
    MIN_BYTES,
    PROBE_BYTES,
    PROBE_GAIN,
    SHARES,
    TRIAL_SHARE,
    ReadStats,
    WayChooser,
    WayStats,
    next_mapped_share,
)

shares = st.integers(0, SHARES)
ways = st.builds(WayStats, st.integers(0, 1 << 40), st.floats(0, 1e6))


def measured(read: float, mapped: float) -> ReadStats:
    """What is read by each way at these speeds, in bytes per second."""
    return ReadStats(WayStats(MIN_BYTES, MIN_BYTES / read), WayStats(MIN_BYTES, MIN_BYTES / mapped))


def decide(read: float, mapped: float, *, decisions: int, share: int = FIRST_SHARE) -> list[int]:
    found = []
    for _ in range(decisions):
        share = next_mapped_share(share, measured(read, mapped))
        found.append(share)
    return found


@given(shares, ways, ways)
def test_both_ways_keep_a_share_once_they_were_compared(share: int, read: WayStats, mapped: WayStats) -> None:
    found = next_mapped_share(share, ReadStats(read, mapped))
    assert found == share or TRIAL_SHARE <= found <= SHARES - TRIAL_SHARE


@given(shares, st.integers(0, MIN_BYTES - 1), st.floats(1e-9, 1e6), ways)
def test_too_few_bytes_change_nothing(share: int, read: int, seconds: float, mapped: WayStats) -> None:
    assert next_mapped_share(share, ReadStats(WayStats(read, seconds), mapped)) == share
    assert next_mapped_share(share, ReadStats(mapped, WayStats(read, seconds))) == share


@given(st.floats(1e6, 1e11), st.floats(1e6, 1e11))
def test_the_faster_way_has_nearly_everything_after_five_decisions(read: float, mapped: float) -> None:
    expected = SHARES - TRIAL_SHARE if mapped / MAPPING_COST > read * (1 + 1e-9) else TRIAL_SHARE
    if abs(mapped / MAPPING_COST / read - 1) > 1e-6:
        assert decide(read, mapped, decisions=5)[-1] == expected


@given(shares, st.floats(1e6, 1e11), st.floats(1e6, 1e11))
def test_a_decision_does_not_depend_on_the_unit_of_time(share: int, read: float, mapped: float) -> None:
    if abs(mapped / MAPPING_COST / read - 1) > 1e-6:
        assert next_mapped_share(share, measured(read, mapped)) == next_mapped_share(
            share, measured(read * 3, mapped * 3)
        )


def test_reads_that_slow_down_with_their_share_settle_where_both_are_equally_fast() -> None:
    """As `read` does for pages that were never read: the fewer threads read them, the faster they are."""
    share, visited = FIRST_SHARE, []
    for _ in range(40):
        reads = SHARES - share
        share = next_mapped_share(share, measured(read=40e9 / reads, mapped=5e9))
        visited.append(share)
    balanced = SHARES - 40 / (5 / MAPPING_COST)
    assert all(abs(share - balanced) <= 5 for share in visited[7:])


@given(st.floats(1e6, 1e11), st.floats(1e6, 1e11))
def test_a_chooser_tries_both_ways_evenly_and_decides_once(read: float, mapped: float) -> None:
    chooser = WayChooser()
    first = [chooser.next_is_mapped() for _ in range(SHARES)]
    assert sum(first) == FIRST_SHARE
    assert max(len(run) for run in "".join("m" if way else "r" for way in first).split("m")) <= SHARES // FIRST_SHARE
    for speeds in ((read, mapped), (mapped, read)):  # the second is too late to change anything
        for _ in range(PROBE_BYTES // MIN_BYTES * SHARES):
            by_mapping = chooser.next_is_mapped()
            chooser.record(mapped=by_mapping, size=MIN_BYTES, seconds=MIN_BYTES / speeds[by_mapping])
    if abs(mapped / PROBE_GAIN / read - 1) > 1e-6:
        found = sum(chooser.next_is_mapped() for _ in range(SHARES))
        assert found == (MAPPED_SHARE if mapped > read * PROBE_GAIN else 0)
