"""The report: medians and ranges as a table in Markdown, JSON with all samples, and a chart."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from timeline import Traffic

GIGA = 1e9
MEBI = 1 << 20

HOW_CPU_AND_MEMORY = (
    "- CPU is user and system time of the contender's whole process tree, the server's left out. Peak memory is the "
    "sampled peak of the proportional set sizes (PSS) of its processes together."
)
HOW_TIME = (
    "- Tonnage, curl, s5cmd, `hf download` and the floor are timed as whole processes, from start to exit; tensorizer "
    "and Run:ai's streamer from the call to its return, imports left out. Their memory holds the model itself."
)

TIMELINE_ROWS = ("curl", "floor", "tonnage")
"""The contenders whose throughput over time is drawn."""

HIGHLIGHT, PLAIN, LIMIT = "#e4572e", "#7b8794", "#b8c0c8"


@dataclass(frozen=True)
class Sample:
    """One run of one contender. Milliseconds are from its start; -1 if unknown."""

    bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    largest_process_bytes: int
    first_request_ms: float = -1
    first_get_ms: float = -1
    first_data_ms: float = -1
    end_ms: float = -1
    tail_ratio: float = -1
    traffic: Traffic = dataclasses.field(default_factory=list)

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes / GIGA / self.seconds

    @property
    def cpu_seconds_per_gigabyte(self) -> float:
        return self.cpu_seconds / (self.bytes / GIGA)


@dataclass(frozen=True)
class Row:
    """One contender's samples, with its description for the table."""

    name: str
    label: str
    verifies: str
    target: str
    variant: dict[str, int]
    samples: tuple[Sample, ...]

    def spread(self, figure: Callable[[Sample], float]) -> tuple[float, float, float]:
        """Returns the median, minimum and maximum of a figure."""
        values = [figure(sample) for sample in self.samples]
        return statistics.median(values), min(values), max(values)


@dataclass(frozen=True)
class Result:
    """The results of a benchmark. `extras` are single figures, by description."""

    title: str
    conditions: dict[str, str]
    rows: tuple[Row, ...]
    absent: dict[str, str]
    extras: dict[str, float | None]


FIGURES: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("GB/s", lambda sample: sample.gigabytes_per_second),
    ("CPU s per GB", lambda sample: sample.cpu_seconds_per_gigabyte),
    ("peak memory, MiB", lambda sample: sample.peak_bytes / MEBI),
    ("largest process, MiB", lambda sample: sample.largest_process_bytes / MEBI),
)


def markdown(result: Result) -> str:
    """Returns the whole report in Markdown."""
    names = [name for name, _ in FIGURES]
    lines = [f"# {result.title}", "", "Median (smallest to largest) of each contender's runs.", ""]
    lines.append(f"| contender | verifies | into | {' | '.join(names)} |")
    lines.append("|---|---|---|" + "---:|" * len(names))
    for row in result.rows:
        cells = [_cell(row.spread(figure)) for _, figure in FIGURES]
        lines.append(f"| {row.label} | {row.verifies or 'nothing'} | {row.target} | {' | '.join(cells)} |")
    lines += ["", *_comparisons(result.rows), ""]
    lines += [f"- {meaning}: {value:.3g}" for meaning, value in result.extras.items() if value is not None]
    lines += [f"- Not in this run: {name}, because {reason}." for name, reason in result.absent.items()]
    variants = [f"{row.label} {_variant(row.variant)}" for row in result.rows if row.variant]
    if variants:
        lines.append(f"- Each peer ran in the fastest of the settings tried: {'; '.join(variants)}.")
    lines += [
        HOW_CPU_AND_MEMORY,
        HOW_TIME,
        "",
        "| condition | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in result.conditions.items()),
        "",
    ]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Returns the results with all samples."""
    found = dataclasses.asdict(result)
    for row in found["rows"]:
        for sample in row["samples"]:
            del sample["traffic"]  # thousands of numbers, of which the chart of the timeline shows some
    return json.dumps(found, indent=1) + "\n"


def chart(result: Result, path: Path) -> None:
    """Draws throughput, CPU and memory side by side, with whiskers from the smallest to the largest run."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    # A fixed salt and no date: equal figures give equal files.
    plt.rcParams.update(
        {"font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "tonnage", "svg.fonttype": "none"}
    )
    rows = result.rows[::-1]
    panels = FIGURES[:3]
    height = 0.42 * len(rows) + 1.3
    figure, axes = plt.subplots(1, len(panels), figsize=(11, height), sharey=True, layout="constrained")
    for axis, (name, value) in zip(axes, panels, strict=True):
        spreads = [row.spread(value) for row in rows]
        medians = [median for median, _, _ in spreads]
        whiskers = [[m - low for m, low, _ in spreads], [high - m for m, _, high in spreads]]
        axis.barh([row.label for row in rows], medians, color=[_color(row) for row in rows], height=0.62)
        axis.errorbar(medians, range(len(rows)), xerr=whiskers, fmt="none", ecolor="#333c44", elinewidth=1, capsize=2)
        for place, (median, _, high) in enumerate(spreads):
            axis.annotate(_number(median), (high, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.margins(x=0.16)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False)
    figure.suptitle(result.title, fontsize=11, fontweight="bold")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def timeline_chart(result: Result, path: Path) -> None:
    """Draws the throughput over time of the median run of a few contenders."""
    rows = [row for row in result.rows if row.name in TIMELINE_ROWS and row.samples]
    runs = []
    for row, color in zip(rows, (LIMIT, PLAIN, HIGHLIGHT)[-len(rows) :], strict=True):
        by_speed = sorted(row.samples, key=lambda sample: sample.seconds)
        runs.append((row.label, color, by_speed[len(by_speed) // 2].traffic))
    timeline.chart(runs, f"{result.title}: median runs", path)


COMPARED = dict.fromkeys(("tonnage-safetensors", "tonnage-shards"), ("tonnage", "s5cmd", "runai", "hf"))
"""With which contenders those that load safetensors are compared; `tonnage` is with all."""


def _comparisons(rows: Sequence[Row]) -> list[str]:
    """Returns a line per contender: the ratios of Tonnage's median throughput and CPU to its."""
    by_name = {row.name: row for row in rows}
    lines = []
    for name, others in {"tonnage": by_name, **COMPARED}.items():
        ours = by_name.get(name)
        for row in [by_name[other] for other in others if other in by_name] if ours is not None else ():
            if ours is not None and row is not ours:
                speed = ours.spread(FIGURES[0][1])[0] / row.spread(FIGURES[0][1])[0]
                cpu = ours.spread(FIGURES[1][1])[0] / row.spread(FIGURES[1][1])[0]
                lines.append(f"- {ours.label} against {row.label}: {speed:.2f} × its throughput, {cpu:.2f} × its CPU.")
    return lines


def _cell(spread: tuple[float, float, float]) -> str:
    median, low, high = map(_number, spread)
    return f"**{median}** ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def _variant(variant: dict[str, int]) -> str:
    return "(" + ", ".join(f"{value} {name}" for name, value in variant.items()) + ")"


def _color(row: Row) -> str:
    if row.name.startswith("tonnage"):
        return HIGHLIGHT
    return LIMIT if row.name in {"curl", "floor"} else PLAIN
