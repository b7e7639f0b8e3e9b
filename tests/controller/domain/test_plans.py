"""Plans: what of the installation a loader is told."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.plans import load_plan, resolve_plan
from tonnage_operator.domain.resolving import seen_revision

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
def test_room_is_kept_free_on_the_nodes_own_paths_alone(cache: dict[str, Any], kept: int) -> None:
    weights = objects.weights({"cache": cache})
    seen = seen_revision(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert load_plan(weights, seen, INSTALLATION).limits.min_free == kept  # type: ignore[arg-type]
    assert resolve_plan(weights, INSTALLATION).limits.min_free == 0
