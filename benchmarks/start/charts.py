"""Draws the charts of pods' starts from what the benchmarks of this folder measured.

``first_token.py`` and ``streaming.py`` call it; ``python benchmarks/start/charts.py docs/performance`` draws the charts
of the first token again, from the JSON file there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST_TOKEN: Final = "start-first-token"
STEPS_CHART: Final = "start-steps"
STEPS: Final = {
    "admitted": "admission, with the injection",
    "bound": "scheduling",
    "loader": "the kubelet starts the loader, with Python",
    "loaded": "load or hit",
    "server": "the kubelet starts the server",
    "asks": "engine, until it asks for weights",
    "attached": "weights into the model",
    "first token": "engine, until the first token",
}
"""What a pod does until each point of its start, in their order."""
COLORS: Final = ("#8250df", "#bf8700", "#8c959f", "#1a7f37", "#afb8c1", "#9ecae9", "#0969da", "#d0d7de")
INK: Final = "#1f2328"
AT_ONCE_SECONDS: Final = 15.0
"""A pod whose server starts earlier did not wait for a download."""


def bars(rows: Mapping[str, Sequence[float]], label: str, target: Path, *, gray: str = "") -> None:
    """Writes a chart with a bar for the median of each row, and a point for each value, as SVG.

    Args:
        rows: Seconds by title.
        label: Title of the axis.
        target: The file.
        gray: Title of the row that the others are compared with.
    """
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.7 + 0.5 * len(rows)))
        for position, (title, seconds) in enumerate(rows.items()):
            median = statistics.median(seconds)
            axes.barh(position, median, height=0.4, color="#d0d7de" if title == gray else "#9ecae9")
            axes.plot(seconds, [position] * len(seconds), ".", color=INK, markersize=4)
            axes.annotate(title, (0, position - 0.22), (3, 0), textcoords="offset points", va="bottom")
            axes.annotate(f"{median:.1f}", (max(seconds), position), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks([])
        axes.set_xlim(0, 1.1 * max(map(max, rows.values())))
        axes.set_ylim(-0.7, len(rows) - 0.6)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        _save(figure, target)


def lengths(pods: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the median seconds of each step of pods. A step that ran beside a later one is not among them.

    Args:
        pods: Seconds from a pod's creation to the end of each step.
    """
    ends = {step: _median(pods, step) for step in STEPS}
    if ends["loaded"] > ends["server"]:
        del ends["loaded"]
    found, began = {}, 0.0
    for step, end in ends.items():
        found[step], began = max(0.0, end - began), end
    return found


def steps(found: Mapping[str, Sequence[Mapping[str, float]]], titles: Mapping[str, str], target: Path) -> None:
    """Writes a chart of where the time of pods' starts goes: until the first token, and until the server starts.

    Args:
        found: For each way to start, the pods with the seconds from their creation to the end of each step.
        titles: Titles of the ways.
        target: The file.
    """
    plt = _pyplot()
    colors = dict(zip(STEPS, COLORS, strict=True))
    at_once = {way: pods for way, pods in found.items() if _median(pods, "server") < AT_ONCE_SECONDS}
    with plt.rc_context(_STYLE):
        figure, (whole, beginning) = plt.subplots(
            2, 1, figsize=(8, 2.2 + 0.45 * (len(found) + len(at_once))), height_ratios=(len(found), len(at_once))
        )
        for axes, shown in ((whole, found), (beginning, at_once)):
            for position, pods in enumerate(shown.values()):
                left = 0.0
                for step, seconds in lengths(pods).items():
                    axes.barh(position, seconds, left=left, color=colors[step])
                    _label_step(axes, position, left, seconds, milliseconds=axes is beginning)
                    left += seconds
                if "loaded" not in lengths(pods):  # the load goes on beside the engine
                    began, seconds = _median(pods, "loader"), _median(pods, "loaded") - _median(pods, "loader")
                    axes.barh(position + 0.32, seconds, left=began, height=0.16, color=colors["loaded"])
            axes.set_yticks(range(len(shown)), [titles[way] for way in shown])
            axes.invert_yaxis()
        beginning.set_xlim(0, 1.05 * max(_median(pods, "server") for pods in at_once.values()))
        whole.set_xlabel("seconds from the pod's creation to the first token")
        beginning.set_xlabel("seconds until the server's process starts, with the milliseconds of each step")
        handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS]
        figure.legend(handles, STEPS.values(), loc="lower center", ncols=3, frameon=False, fontsize=8)
        _save(figure, target, bottom=0.12)


def _median(pods: Sequence[Mapping[str, float]], step: str) -> float:
    return statistics.median(pod[step] for pod in pods)


def _label_step(axes: Axes, position: int, left: float, seconds: float, *, milliseconds: bool) -> None:
    """Writes a step's length into its bar, if the bar is wide enough."""
    label, least = (f"{seconds * 1000:.0f}", 0.1) if milliseconds else (f"{seconds:.0f}", 2.0)
    if seconds >= least:
        axes.text(left + seconds / 2, position, label, ha="center", va="center", clip_on=True)


_STYLE: Final = {"font.size": 9, "svg.hashsalt": "tonnage", "svg.fonttype": "none"}


def _pyplot() -> ModuleType:
    importlib.import_module("matplotlib").use("svg")
    return importlib.import_module("matplotlib.pyplot")


def _save(figure: Figure, target: Path, *, bottom: float = 0) -> None:
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(target, metadata={"Date": None})
    _pyplot().close(figure)


def draw_first_token(folder: Path) -> None:
    """Draws the charts of ``first_token.py`` from its JSON file."""
    result = json.loads((folder / f"{FIRST_TOKEN}.json").read_text())
    rows = {result["ways"][way]: [pod["first token"] for pod in pods] for way, pods in result["pods"].items()}
    gray = result["ways"]["cold"]
    bars(rows, "seconds from the pod's creation to vLLM's first token", folder / f"{FIRST_TOKEN}.svg", gray=gray)
    steps(result["pods"], {way: way for way in result["pods"]}, folder / f"{STEPS_CHART}.svg")


def try_drawing(draw: Callable[[], None]) -> None:
    """Draws, if matplotlib is installed."""
    try:
        draw()
    except ImportError:
        print("no chart: matplotlib is not installed", file=sys.stderr)


def main() -> None:
    """Draws the charts of the first token again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"the folder with {FIRST_TOKEN}.json")
    draw_first_token(parser.parse_args().folder)


if __name__ == "__main__":
    main()
