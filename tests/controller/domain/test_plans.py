"""Plans: the installation's settings in them."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.specs.plans import build_load_plan, build_resolve_plan

INSTALLATION = Installation.model_validate(
    {
        "media": {"Memory": {"hostPath": "/dev/shm/tonnage", "minFree": "16Gi"}, "Disk": {"hostPath": "/var/tonnage"}},
        "loader": {"image": "loader"},
    }
)


@pytest.mark.parametrize(
    ("cache", "kept"),
    [
        ({"medium": "Memory"}, 16 << 30),
        ({"medium": "Disk"}, 0),
        ({"medium": "Memory", "delivery": "EmptyDir"}, 0),
        ({"delivery": "PersistentVolumeClaim", "claimName": "weights"}, 0),
    ],
    ids=str,
)
def test_min_free_applies_to_host_paths_only(cache: dict[str, Any], kept: int) -> None:
    weights = objects.modelweights({"cache": cache})
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert build_load_plan(weights, seen, INSTALLATION).limits.min_free == kept  # type: ignore[arg-type]
    assert build_resolve_plan(weights, INSTALLATION).limits.min_free == 0
