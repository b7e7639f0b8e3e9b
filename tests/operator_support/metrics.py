"""What counters of the controller and the webhook have counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter


def count(counter: Counter, **labels: str) -> int:
    """Returns what a counter has counted, with these values of labels and any values of the others."""
    return round(
        sum(
            sample.value
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
        )
    )
