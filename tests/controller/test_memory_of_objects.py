"""What one ``ModelWeights`` takes of the controller's memory is bounded, however long its lists are."""

from __future__ import annotations

import tracemalloc
from typing import Any

from operator_support import objects
from tonnage_operator.controller.state import MAX_SPEC_BYTES, ControllerState, parse_weights_record


def _manifest(keys: int, length: int, uid: str = objects.UID) -> dict[str, Any]:
    names = [f"{index:04}".ljust(length, "k") for index in range(keys)]
    source = {"s3": {"prefix": None, "keys": names}}
    return objects.modelweights_manifest({"source": source}, uid=uid, resourceVersion="1")


def test_a_spec_that_no_plan_can_hold_is_not_kept_and_named() -> None:
    record = parse_weights_record(_manifest(1000, 1024))
    assert record.weights is None
    assert f"at most {MAX_SPEC_BYTES} are read" in record.spec_error
    assert parse_weights_record(_manifest(90, 1024)).weights is not None


def _kept_bytes(keys: int, length: int, count: int = 20) -> float:
    """Returns the bytes that the state keeps for each of ``count`` objects."""
    state = ControllerState(objects.INSTALLATION)
    state.weights.put(_manifest(1, 10, uid="first"))
    tracemalloc.start()
    for index in range(count):
        state.weights.put(_manifest(keys, length, uid=f"uid-{index}"))
    kept = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    return kept


def test_the_largest_objects_take_little_more_than_their_text() -> None:
    assert _kept_bytes(1000, 1024) < 64 << 10
    assert _kept_bytes(180, 1024) < 2 * MAX_SPEC_BYTES
