"""Loads the fixtures that all areas share, and sets how many examples property tests try."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["support.s3_fixtures", "support.tensors_fixtures", "support.receivers"]

# Nothing here is judged by how long it takes on this machine.
settings.register_profile(
    "tonnage",
    deadline=None,
    max_examples=int(os.environ.get("EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tonnage")
