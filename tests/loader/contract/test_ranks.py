"""Lists of ranks: written, read, compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract import ranks


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranks_are_read_as_they_are_written(some: set[int]) -> None:
    assert ranks.parse_ranks(ranks.format_ranks(some)) == tuple(sorted(some))


def test_ranks_cover_what_they_hold() -> None:
    assert ranks.includes_ranks(None, None)
    assert ranks.includes_ranks(None, "0-3")
    assert ranks.includes_ranks("0-3", "1,2")
    assert not ranks.includes_ranks("0-3", "3,4")
    assert not ranks.includes_ranks("0-3", None)


def test_the_highest_rank_is_a_limit() -> None:
    assert ranks.parse_ranks("4095", highest=4095) == (4095,)
    with pytest.raises(ValueError, match="above 4095"):
        ranks.parse_ranks("4096", highest=4095)
    assert ranks.parse_ranks(str(ranks.MAX_RANK)) == (ranks.MAX_RANK,)
    with pytest.raises(ValueError, match="above 65535"):
        ranks.parse_ranks(f"0-{ranks.MAX_RANK + 1}")
