"""Simulates a fleet of 1,000 nodes that get a model of 140 GB, by the loader's own code: see ``simulated_fleet``.

`PYTHONPATH=loader:operator python benchmarks/fleet/simulation.py --out docs/performance` writes a table, a chart and
fleet-simulation.json. All ways are simulated at the same time, as far as there are cores; the result is the same each
time.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from simulated_fleet import Fleet, Outcome, Settings

GIGABIT = 1e9 / 8
NAME = "fleet-simulation"
WAYS = {
    "together": "all within a second",
    "dying": "all within a second, {dying:.0%} of the loaders die",
    "staged": "{first_loads}, then as holders feed more",
    "own-headers": "all within a second, each node reads all headers",
}
STYLES = {"together": "-", "dying": "-.", "staged": "--", "own-headers": ":"}
COLORS = {25: "#0969da", 100: "#1a7f37"}


def llama_70b() -> tuple[int, ...]:
    """Returns the sizes of the tensors of a model of 140 GB, without the small ones."""
    hidden, inner, keys, vocabulary = 8192, 28672, 1024, 128256
    layer = [hidden * hidden, hidden * keys, hidden * keys, hidden * hidden, *[hidden * inner] * 3]
    return tuple(2 * count for count in [vocabulary * hidden, *layer * 80, vocabulary * hidden])


def settings_of(options: argparse.Namespace, gigabits: int, way: str) -> Settings:
    """Returns the settings of one way, with links of a rate."""
    return Settings(
        tensors=llama_70b(),
        nodes=options.nodes,
        link=gigabits * GIGABIT,
        bucket=options.bucket * GIGABIT,
        unit=options.unit_mib << 20,
        step=0.5 / gigabits,
        seed=options.seed,
        first_loads=options.first_loads if way == "staged" else 0,
        dying=options.dying if way == "dying" else 0.0,
        shares_headers=way != "own-headers",
        requests=options.requests,
    )


def simulate(options: argparse.Namespace, case: tuple[int, str]) -> dict[str, Any]:
    """Returns what is known of a simulated fan-out: links of a rate, in one way."""
    gc.disable()  # nothing is in a cycle, and there is much
    began = time.monotonic()
    settings = settings_of(options, *case)
    found = {"way": case[1], **row(settings, Fleet(settings).run())}
    print({key: value for key, value in found.items() if key != "timeline"}, file=sys.stderr)
    print(f"{time.monotonic() - began:.0f} s of computing", file=sys.stderr)
    return found


def row(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """Returns what is known of a simulated fan-out."""
    seconds = sorted(outcome.seconds) or [float("nan")]
    return {
        "nodes": settings.nodes,
        "model_gb": round(settings.size / 1e9, 1),
        "link_gigabits": round(settings.link / GIGABIT),
        "unit_mib": settings.unit >> 20,
        "bucket_gigabits": round(settings.bucket / GIGABIT),
        "first_loads": settings.first_loads,
        "dying": settings.dying,
        "limit_seconds": round(settings.limit, 1),
        "bucket_alone_seconds": round(settings.nodes * settings.size / settings.bucket),
        "all_warm_seconds": round(seconds[-1], 1),
        "half_warm_seconds": round(statistics.median(seconds), 1),
        "times_the_limit": round(seconds[-1] / settings.limit, 2),
        "bucket_models": round(outcome.bucket_bytes / settings.size, 2),
        "requests_per_second": settings.requests,
        "requests": outcome.requests,
        "failed_loads": outcome.failed,
        "timeline": [
            [round(at, 2), round(sent / settings.size, 3), round(got / settings.size / settings.nodes, 4), complete]
            for at, sent, got, complete in outcome.timeline
        ],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    first = rows[0]
    rate = first["requests_per_second"]
    answers = f"answers {rate:,.0f} requests a second" if rate else "answers any number of requests"
    head = (
        f"Simulated: {first['nodes']:,} nodes, {first['model_gb']:.0f} GB, the bucket behind "
        f"{first['bucket_gigabits']} Gb/s {answers}, units of {first['unit_mib']} MiB at most. The bucket alone would "
        f"take {first['bucket_alone_seconds']:,} s. Requests: for headers, for data, refused."
    )
    lines = [
        head,
        "",
        "| links | begin | half of the nodes | all nodes | to the limit | failed | bucket sends | requests |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in rows:
        begin = WAYS[each["way"]].format(**each)
        lines.append(
            f"| {each['link_gigabits']} Gb/s | {begin} | {each['half_warm_seconds']} s | "
            f"{each['all_warm_seconds']} s | {each['times_the_limit']} × | {each['failed_loads']} | "
            f"{each['bucket_models']} models | "
            f"{' · '.join(f'{count:,}' for count in each['requests'].values())} |"
        )
    return "\n".join(lines) + "\n"


def chart(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws which part of the fleet's bytes have arrived, over time."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "tonnage", "svg.fonttype": "none"}):
        figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
        for each in rows:
            color = COLORS.get(each["link_gigabits"], "#59636e")
            at = [0.0, *(point[0] for point in each["timeline"])]
            got = [0.0, *(100 * point[2] for point in each["timeline"])]
            label = f"{each['link_gigabits']} Gb/s, {WAYS[each['way']].format(**each)}"
            axis.plot(at, got, STYLES[each["way"]], color=color, linewidth=1.5, label=label)
            axis.axvline(each["limit_seconds"], color=color, linewidth=0.8, linestyle=":")
        axis.set_xlabel("seconds (dotted: the limit)")
        axis.set_ylabel("% of all bytes that nodes have")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 101)
        axis.legend(frameon=False, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
        first = rows[0]
        axis.set_title(f"{first['nodes']:,} nodes, {first['model_gb']:.0f} GB, simulated", fontsize=10)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--bucket", type=float, default=100, help="gigabits per second of the bucket's link")
    parser.add_argument("--links", type=int, nargs="+", default=[25, 100], help="gigabits per second of a node's link")
    parser.add_argument(
        "--unit-mib", type=int, default=64, help="largest unit; the loader takes 16, which takes longer"
    )
    parser.add_argument(
        "--requests",
        type=float,
        default=5500,
        help="requests a second that the bucket answers, as Amazon S3 does for a prefix; 0: any number",
    )
    parser.add_argument("--first-loads", type=int, default=4, help="spec.placement.maxConcurrentNodes")
    parser.add_argument("--dying", type=float, default=0.05, help="share of the loaders that die")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help=f"folder for {NAME}.json, .md and .svg")
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    cases = [(gigabits, way) for gigabits in sorted(options.links, reverse=True) for way in options.ways]
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(functools.partial(simulate, options), cases))
    rows.sort(key=lambda each: each["link_gigabits"])
    print(table(rows))
    if options.out:
        (options.out / f"{NAME}.json").write_text(json.dumps({"seed": options.seed, "rows": rows}) + "\n")
        (options.out / f"{NAME}.md").write_text(table(rows))
        chart(rows, options.out / f"{NAME}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
