"""Loads the fixtures that all areas share, and sets how many examples property tests try."""

from __future__ import annotations

import gc
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


def pytest_configure() -> None:
    """Looks for unreachable objects less often, which saves a tenth of the time of tests that compute."""
    gc.set_threshold(20_000)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of garbage collections: PyTorch and its like make each of them as long as a test."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Lets libraries end as they do otherwise: Triton prints what it has leaked."""
    gc.unfreeze()
