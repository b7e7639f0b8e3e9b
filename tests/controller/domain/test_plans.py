"""Plans: the installation's settings in them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from operator_support import objects
from tonnage import contract
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.specs.plans import LINE_CHARACTERS, build_load_plan, build_resolve_plan, plan_variable

INSTALLATION = Installation.model_validate(
    {
        "media": {
            "Memory": {"hostPath": "/dev/shm/tonnage", "minFree": "16Gi", "capacity": "400Gi"},
            "Disk": {"hostPath": "/var/tonnage"},
        },
        "loader": {"image": "loader"},
    }
)


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({"medium": "Memory"}, (16 << 30, 0, 400 << 30)),
        ({"medium": "Disk"}, (0, 10, 0)),
        ({"medium": "Memory", "delivery": "EmptyDir"}, (0, 0, 0)),
        ({"delivery": "PersistentVolumeClaim", "claimName": "weights"}, (0, 0, 0)),
    ],
    ids=str,
)
def test_capacity_and_min_free_apply_to_host_paths_only(cache: dict[str, Any], expected: tuple[int, ...]) -> None:
    weights = objects.modelweights({"cache": cache})
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    limits = build_load_plan(weights, seen, INSTALLATION).limits  # type: ignore[arg-type]
    assert (limits.min_free, limits.min_free_percent, limits.capacity) == expected
    assert build_resolve_plan(weights, INSTALLATION).limits.capacity == 0


def test_a_low_watermark_above_the_high_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="lowWatermarkPercent is above"):
        Installation.model_validate({"lowWatermarkPercent": 95, "loader": {"image": "loader"}})


def expanded(value: str, variables: dict[str, str]) -> str:
    """Returns the value of a variable as the kubelet sets it: a dollar sign is escaped by another one."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)", lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]), value
    )


@given(st.lists(st.text(st.sampled_from('$()AB/é\n"\\'), max_size=200), max_size=8), st.booleans())
@example(["models/$(A)/$$x"], True)
def test_a_plan_is_read_as_it_was_written_and_has_short_lines(keys: list[str], pinned: bool) -> None:
    pins = tuple(contract.ObjectPin(key=key, size=1, etag="0" * 32) for key in keys) if pinned else None
    plan = contract.Plan(sources=(contract.S3Source(bucket="b", keys=tuple(keys), objects=pins),), entry="r-0")
    text = plan_variable(plan)
    assert contract.decode_plan(expanded(text, {"A": "other"})) == plan
    longest = max([len(repr(key)) * 2 for key in keys], default=0)
    assert max(map(len, text.splitlines())) <= LINE_CHARACTERS + longest
    assert '"entry":"r-0"' in text
