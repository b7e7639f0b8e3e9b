"""A hit shows only objects that the store has confirmed to this identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.faults import Fault
from support.load_harness import SMALL_LIMITS
from support.models import make_tensors, to_tensors_file
from tonnage.contract import FileSelection, ObjectPin, Outcome, Plan, RankSelection, Report, S3Source
from tonnage.errors import AccessDenied, InvalidPlan
from tonnage.loading import resolve_plan, run_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.load_harness import LoadHarness

RANKS = ("bucket/ranks/model-rank-000.tensors", "bucket/ranks/model-rank-001.tensors")
DENIED = Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")


def load(harness: LoadHarness, prefix: str, files: FileSelection, pins: Sequence[ObjectPin] | None = None) -> Report:
    source = S3Source(
        bucket="bucket",
        prefix=prefix,
        endpoint=harness.server.endpoint,
        region="us-east-1",
        anonymous=True,
        objects=None if pins is None else tuple(pins),
    )
    plan = Plan(sources=(source,), files=files, limits=SMALL_LIMITS)
    if pins is None:
        return resolve_plan(plan, environment={})
    return run_plan(plan, cache=harness.cache, environment={}).report


def pins_of(harness: LoadHarness, prefix: str) -> tuple[ObjectPin, ...]:
    report = load(harness, prefix, FileSelection())
    assert report.resolved is not None
    return report.resolved[0].objects


@pytest.fixture
def ranks(harness: LoadHarness) -> LoadHarness:
    for seed, key in enumerate(RANKS):
        harness.server.put(key, to_tensors_file(make_tensors(seed=seed, count=2, rows=16)))
    return harness


def test_objects_of_other_ranks_that_an_entry_shows_must_be_readable(ranks: LoadHarness) -> None:
    pins = pins_of(ranks, "ranks/")
    assert load(ranks, "ranks/", FileSelection(), pins).outcome is Outcome.LOADED
    only_first = FileSelection(ranks=RankSelection(wanted=(0,)))
    assert load(ranks, "ranks/", only_first, pins).outcome is Outcome.HIT
    ranks.server.add_fault(DENIED, key=RANKS[1])
    with pytest.raises(AccessDenied, match="model-rank-001"):
        load(ranks, "ranks/", only_first, pins)


def test_a_plan_that_pins_what_it_leaves_out_is_refused(harness: LoadHarness) -> None:
    pins = pins_of(harness, "model/")
    assert load(harness, "model/", FileSelection(), pins).outcome is Outcome.LOADED
    harness.server.add_fault(DENIED, key="bucket/model/config.json")
    with pytest.raises(InvalidPlan, match=r"pins 'model/config\.json', but its patterns leave it out"):
        load(harness, "model/", FileSelection(exclude=("config.json",)), pins)
