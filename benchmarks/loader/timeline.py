"""How a load's throughput changes from its start to its end: what is lost before the first byte and by the last parts.

It is taken from samples of the loopback device's traffic, as (seconds from the start of the process, bytes so far).
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Traffic = list[tuple[float, int]]

GIGA = 1e9
BIN_SECONDS = 0.05
EDGE = 0.1
"""The share of the bytes that count as the beginning and as the end."""
FIRST = 0.002
"""The share of the bytes from which on tensor data arrives: indexes are smaller."""


def first_data_ms(traffic: Traffic) -> float:
    """Returns the milliseconds from the process's start until tensor data arrives."""
    return 1000 * _moment(traffic, FIRST)


def end_ms(traffic: Traffic, seconds: float) -> float:
    """Returns the milliseconds from the last byte to the process's exit."""
    return 1000 * (seconds - _moment(traffic, 1.0))


def tail_ratio(traffic: Traffic) -> float:
    """Returns the throughput of the last tenth of the bytes, relative to that of the eight in the middle."""
    middle = (1 - 2 * EDGE) / max(1e-9, _moment(traffic, 1 - EDGE) - _moment(traffic, EDGE))
    return EDGE / max(1e-9, _moment(traffic, 0.999) - _moment(traffic, 0.999 - EDGE)) / middle


def throughput(traffic: Traffic) -> tuple[list[float], list[float]]:
    """Returns the middles of equal intervals in seconds, and the GB/s in each."""
    moments, rates = [], []
    before, at = 0, 0.0
    for moment, count in traffic:
        if moment - at >= BIN_SECONDS:
            moments.append((at + moment) / 2)
            rates.append((count - before) / GIGA / (moment - at))
            before, at = count, moment
    return moments, rates


def chart(runs: Sequence[tuple[str, str, Traffic]], title: str, path: Path) -> None:
    """Draws the throughput of runs, given as label, color and samples, over time."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {"font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "tonnage", "svg.fonttype": "none"}
    )
    figure, axis = plt.subplots(figsize=(11, 3.2), layout="constrained")
    for label, color, traffic in runs:
        axis.plot(*throughput(traffic), label=label, color=color, linewidth=1.4)
    axis.set_xlabel("seconds from the start of the process")
    axis.set_ylabel("GB/s")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def _moment(traffic: Traffic, share: float) -> float:
    """Returns when this share of all bytes has arrived, in seconds, between samples by interpolation."""
    wanted = share * traffic[-1][1]
    place = bisect.bisect_left(traffic, wanted, key=lambda sample: sample[1])
    after = traffic[min(place, len(traffic) - 1)]
    if not place or after[1] == traffic[place - 1][1]:
        return after[0]
    before = traffic[place - 1]
    return before[0] + (after[0] - before[0]) * (wanted - before[1]) / (after[1] - before[1])
