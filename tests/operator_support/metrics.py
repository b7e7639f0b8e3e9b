"""What counters of the controller and the webhook have counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from prometheus_client import Counter


def count(counter: Counter, **labels: Collection[str]) -> int:
    """Returns what a counter has counted, for all labels, or those with one of these values each."""
    return round(
        sum(
            sample.value
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
            if all(sample.labels[name] in values for name, values in labels.items())
        )
    )
