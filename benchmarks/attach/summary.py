"""Writes results as a table and a chart."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
TITLES = {
    "peers": "Shared memory, ordinary 4 KiB pages",
    "iterator": "Iterators of vLLM's load formats, with a model that copies each tensor",
    "fresh": "Shared memory, ordinary pages not read since they were written",
    "huge": "Shared memory, huge pages",
    "gpus": "Several GPUs at once",
    "gpus-fresh": "Several GPUs at once, pages not read since they were written",
    "gpus-huge": "Several GPUs at once, huge pages",
    "cold": "From a disk, page cache empty",
    "tune": "Copy options",
}

COLUMNS = (
    "", "runs", "first call, GB/s", "of limit", "next call, GB/s", "best call, GB/s", "CPU s/GB",
    "GPU memory beyond weights", "pinned",
)  # fmt: skip


def build_rows(results: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    """Returns one row per contender: by number of GPUs, limits first, then in the order of the first call's median."""
    labels: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for record in result["records"]:
            if record["stage"] == stage:
                labels.setdefault(record["label"], []).append(record)
    rows = [_row(label, records) for label, records in labels.items()]
    return sorted(rows, key=lambda row: (row["gpus"], not row["limit"], -(row["first"] or 0)))


def _row(label: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    good = [record for record in records if "error" not in record]
    firsts = [record["bytes"] / record["calls"][0]["seconds"] / 1e9 for record in good]
    bests = [max(record["bytes"] / call["seconds"] / 1e9 for call in record["calls"]) for record in good]
    nexts = [record["bytes"] / record["calls"][1]["seconds"] / 1e9 for record in good if len(record["calls"]) > 1]
    cpu = [record["calls"][0]["cpu_seconds"] / (record["bytes"] / 1e9) for record in good]
    extras = [record["peak_extra_bytes"] for record in good if "peak_extra_bytes" in record]
    pinned = [each["pinned_bytes"] for record in good for each in record.get("stats", [])]
    return {
        "label": label,
        "limit": any(record["contender"] in {"limit", "host-memory"} for record in records),
        "uses_nvlink": any(record["contender"] == "exchange" for record in records),
        "gpus": records[0].get("gpus", 1),
        "runs": len(good),
        "first": statistics.median(firsts) if firsts else None,
        "first_range": (min(firsts), max(firsts)) if firsts else None,
        "next": statistics.median(nexts) if nexts else None,
        "next_range": (min(nexts), max(nexts)) if nexts else None,
        "best": statistics.median(bests) if bests else None,
        "best_range": (min(bests), max(bests)) if bests else None,
        "cpu": statistics.median(cpu) if cpu else None,
        "extra": max(extras, default=None),
        "pinned": max(pinned, default=None),
        "errors": [record["error"] for record in records if "error" in record],
    }


def find_limit(rows: list[dict[str, Any]], gpus: int = 1) -> float | None:
    """Returns the least limit that was measured in the same stage, of the links or of the host's memory.

    A limit that a contender passed in its first call is none: Python's threads read memory slower than compiled ones.
    """
    measured = [row for row in rows if row["first"] and row["gpus"] == gpus]
    limits = [row["first"] for row in measured if row["limit"]]
    reached = max((row["first"] for row in measured if not row["limit"] and not row["uses_nvlink"]), default=0.0)
    return min((limit for limit in limits if limit >= reached), default=max(limits, default=None))


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        limit = find_limit(rows, row["gpus"])
        share = f"{row['first'] / limit:.2f}" if limit and row["first"] and not row["limit"] else ""
        cells = [
            f"**{row['label']}**"
            if row["label"].partition(": ")[2].startswith("tonnage") or row["label"].startswith("tonnage")
            else row["label"],
            str(row["runs"]),
            _format_range(row["first"], row["first_range"]) if row["first"] else _failure_text(row),
            share,
            _format_range(row["next"], row["next_range"]),
            _format_range(row["best"], row["best_range"]),
            f"{row['cpu']:.2f}" if row["cpu"] else "",
            f"{row['extra'] / MIB:.0f} MiB" if row["extra"] is not None else "",
            f"{row['pinned'] / MIB:.0f} MiB" if row["pinned"] is not None else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _format_range(value: float | None, ends: tuple[float, float] | None) -> str:
    return f"{value:.1f} ({ends[0]:.1f}–{ends[1]:.1f})" if value and ends else ""


def _failure_text(row: dict[str, Any]) -> str:
    last = row["errors"][-1].strip().splitlines()[-1] if row["errors"] else "no run"
    return "failed: " + last[-120:].replace("|", "/")


def write_report(results: list[dict[str, Any]], out: Path, name: str) -> None:
    """Writes the table as ``name.md`` and, if matplotlib is installed, a chart as ``name.svg``."""
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for stage, title in TITLES.items():
        rows = build_rows(results, stage)
        if rows:
            parts += [f"### {title}", "", format_table(rows), ""]
    for result in results:
        if "correct" in result:
            parts += [f"Correctness: {result['correct'].get('summary', result['correct'])}", ""]
    host = results[0].get("facts", {}) if results else {}
    versions = ", ".join(f"{key} {value}" for key, value in host.get("packages", {}).items() if value)
    parts += [
        (
            f"Median (minimum–maximum). {host.get('cores', '?')} cores, {'; '.join(host.get('gpus', []))}, "
            f"kernel {host.get('kernel', '?')}. {versions}."
        ),
        "",
    ]
    (out / f"{name}.md").write_text("\n".join(parts))
    shown = ("peers", "iterator", "fresh", "huge", "gpus", "gpus-fresh", "gpus-huge", "cold")
    charted = [(TITLES[stage], rows) for stage in shown if (rows := build_rows(results, stage))]
    if charted:
        _chart(charted, out / f"{name}.svg")


def _chart(stages: list[tuple[str, list[dict[str, Any]]]], path: Path) -> None:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return
    heights = [max(2, sum(not row["limit"] for row in rows)) for _, rows in stages]
    figure, axes = plt.subplots(
        len(stages), 1, figsize=(9, 0.42 * sum(heights) + 1.1 * len(stages)), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for (title, rows), axis in zip(stages, axes[:, 0], strict=True):
        bars = [row for row in rows if not row["limit"] and row["first"]][::-1]
        widest = max((row["best"] for row in rows if row["best"]), default=1.0)
        for at, row in enumerate(bars):
            ours = row["label"].split(": ")[-1].startswith("tonnage")
            color = "#0b6e4f" if ours else "#8a8f98"
            axis.barh(at, row["best"], color=color, alpha=0.35, height=0.7)
            low, high = row["first_range"]
            axis.barh(at, row["first"], color=color, height=0.7)
            axis.plot([low, high], [at, at], color="black", linewidth=1)
            inside = row["first"] > widest / 8
            text_x, color, side = (low * 0.98, "white", "right") if inside else (row["best"], "black", "left")
            axis.text(text_x, at, f" {row['first']:.1f}", va="center", ha=side, color=color, fontsize=8)
        axis.set_yticks(range(len(bars)), [row["label"] for row in bars], fontsize=8)
        for gpus in {row["gpus"] for row in bars}:
            beside = [at for at, row in enumerate(bars) if row["gpus"] == gpus]
            if limit := find_limit(rows, gpus):
                axis.vlines(limit, beside[0] - 0.5, beside[-1] + 0.5, color="#b3261e", linestyle="--", linewidth=1)
        axis.set_title(title, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("GB/s: first call in a fresh process (solid), best call (pale), limit (dashed)")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
