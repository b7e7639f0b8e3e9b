"""Measures how long a fleet takes to get a model, with peers and with the bucket alone, over shaped links.

Each node is a network namespace with one link, shaped in both directions; so is the bucket, which nginx serves. All
loads start at the same time, as processes, and all files are compared afterwards. The limit is the model's size over
one link. `make bench-fleet` runs it with the defaults: 8 nodes, 512 MB, 240 Mb/s, 5 runs of each in turn. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import torch
from network import Network, network
from scene import KEY, Scene

from support.tensors_writer import build_tensors_file, raw_tensors

TENSORS = 64
NAME = "fleet"
WAYS = {
    "peers": "with peers",
    "own-headers": "with peers, each node reads all headers",
    "bucket": "bucket alone",
}
COLORS = {"peers": "#0969da", "own-headers": "#8250df", "bucket": "#818b98"}


@dataclass(frozen=True)
class Sample:
    """Megabytes a second that the bucket has sent and that nodes have received on average, and the share of busy cores.

    ``seconds`` is the end of an interval, from the start of the loads.
    """

    seconds: float
    bucket: float
    node: float
    busy: float


@dataclass(frozen=True)
class Run:
    """One run: seconds until each node had the model, what the bucket's link has sent, and what happened over time."""

    seconds: list[float]
    bucket_bytes: int
    peer_bytes: int
    problems: list[str]
    samples: list[Sample]
    requests: dict[str, int]
    """What the bucket was asked, by kind."""

    @property
    def all_warm(self) -> float:
        """Seconds until all nodes had the model."""
        return max(self.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rate", type=int, default=240, help="megabits per second of each link")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["peers", "bucket"])
    parser.add_argument("--tensors", type=int, default=TENSORS)
    parser.add_argument("--out", type=Path, help=f"folder for {NAME}.json, .md and .svg")
    parser.add_argument("--faults", nargs="*", default=[], help='faults to run once each, or "all"; see faults.py')
    options = parser.parse_args()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        parser.error("network namespaces need root")
    with tempfile.TemporaryDirectory(prefix="tonnage-fleet-", dir="/dev/shm") as temporary:
        folder = Path(temporary)
        size = make_model(folder / "bucket" / KEY, options.megabytes * 1_000_000, options.tensors)
        print(f"model: {size:,} bytes", file=sys.stderr)
        names = [f"node{number}" for number in range(options.nodes)]
        runs = measure(folder, options, names, size)
        make_model(folder / "bucket" / faults.OTHER_KEY, 8_000_000)
        rows = faults.run_faults(folder, options, names) if options.faults else []
    result = summary(runs, options) | {"faults": rows}
    text = table(result) + ("\n" + faults.table(rows) if rows else "")
    print(text)
    if options.out:
        (options.out / f"{NAME}.json").write_text(json.dumps(result) + "\n")
        (options.out / f"{NAME}.md").write_text(text)
        chart(result, options.out / f"{NAME}.svg")
    return 0


def measure(folder: Path, options: argparse.Namespace, nodes: list[str], size: int) -> dict[str, list[Run]]:
    """Runs all ways in turn, and returns the runs of each."""
    runs: dict[str, list[Run]] = {way: [] for way in options.ways}
    for _ in range(options.runs):
        for way, found in runs.items():
            with network(["controller", "bucket", *nodes], f"{options.rate}mbit") as found_network:
                run = run_once(folder, found_network, way)
            found.append(run)
            print(f"{way}: {run.all_warm:.1f} s, bucket {run.bucket_bytes / size:.2f} models", file=sys.stderr)
            for problem in run.problems:
                print(f"  {problem}", file=sys.stderr)
    return runs


def make_model(path: Path, size: int, count: int = TENSORS) -> int:
    """Writes a model of equal tensors, and returns its size in bytes."""
    path.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    each = size // count // 1000
    tensors = {
        f"layers.{number}.weight": torch.randint(0, 256, (1000, each), generator=generator, dtype=torch.uint8)
        for number in range(count)
    }
    path.write_bytes(build_tensors_file(raw_tensors(tensors)).data)
    return path.stat().st_size


def run_once(folder: Path, links: Network, way: str) -> Run:
    """Has all nodes load at the same time, in one way, and compares what they have."""
    with_peers = way != "bucket"
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        with Scene(work, folder / "bucket", links) as scene:
            names = list(scene.nodes)
            scene.shares_headers = way == "peers"
            if with_peers:
                scene.start_controller()
                scene.start_peers(names)
            bucket = links.hosts["bucket"]
            before = bucket.sent_bytes()
            with links.counting(work / "counters"):
                started = time.monotonic()
                loads = scene.load(names, scene.plan(with_peers=with_peers))
            sent = bucket.sent_bytes() - before
        reports = loads.reports.values()
        problems = [json.dumps(each) for each in reports if each.get("outcome") != "loaded" or each["dropped_peers"]]
        requests = scene.count_requests()
        if len(scene.digests(names)) != 1:
            raise RuntimeError("the nodes have different bytes")
        samples = read_samples(work / "counters", links, started)
        peer_bytes = sum(each["peer_bytes"] for each in reports)
        return Run(list(loads.seconds.values()), sent, peer_bytes, problems, samples, requests)
    finally:
        shutil.rmtree(work)


def read_samples(counters: Path, links: Network, started: float) -> list[Sample]:
    """Returns what links and cores did in each interval since the loads began."""
    bucket = links.port("bucket")
    ports = [links.port(name) for name in links.hosts if name.startswith("node")]
    samples: list[Sample] = []
    before: tuple[float, dict[str, list[int]]] | None = None
    for line in counters.read_text().splitlines():
        at, busy, found = json.loads(line)
        if before is not None and at > started:
            seconds = (at - before[0]) * 1e6
            received = sum(found[port][1] - before[1][port][1] for port in ports)
            sent = found[bucket][0] - before[1][bucket][0]
            samples.append(Sample(at - started, sent / seconds, received / seconds / len(ports), busy))
        before = at, found
    return samples


def median_run(runs: list[Run]) -> Run:
    """Returns the run that is in the middle by its time."""
    return sorted(runs, key=lambda run: run.all_warm)[len(runs) // 2]


def _busy(run: Run) -> float:
    """Returns which share of all cores was busy during a run."""
    during = [each.busy for each in run.samples if each.seconds <= run.all_warm]
    return statistics.fmean(during) if during else 0.0


def summary(runs: dict[str, list[Run]], options: argparse.Namespace) -> dict[str, Any]:
    """Returns medians and ranges, with the limit."""
    size = options.megabytes * 1_000_000
    limit = size * 8 / (options.rate * 1e6)

    def row(found: list[Run]) -> dict[str, Any]:
        seconds = [run.all_warm for run in found]
        models = [run.bucket_bytes / size for run in found]
        return {
            "all_warm_seconds": round(statistics.median(seconds), 2),
            "range_seconds": [round(min(seconds), 2), round(max(seconds), 2)],
            "times_the_limit": round(statistics.median(seconds) / limit, 2),
            "bucket_models": round(statistics.median(models), 2),
            "bucket_models_range": [round(min(models), 2), round(max(models), 2)],
            "requests": {
                kind: statistics.median_high(run.requests[kind] for run in found) for kind in found[0].requests
            },
            "busy_cores": round(statistics.median([_busy(run) for run in found]), 2),
            "seconds_of_nodes": [[round(each, 2) for each in sorted(run.seconds)] for run in found],
            "samples": [
                [round(value, 2) for value in (each.seconds, each.bucket, each.node, each.busy)]
                for each in median_run(found).samples
            ],
        }

    return {
        "nodes": options.nodes,
        "megabytes": options.megabytes,
        "megabits_per_second": options.rate,
        "runs": options.runs,
        "cores": os.cpu_count(),
        "limit_seconds": round(limit, 2),
        **{way: row(found) for way, found in runs.items()},
    }


def table(result: dict[str, Any]) -> str:
    """Returns the table in Markdown."""
    head = (
        f"{result['nodes']} nodes and a bucket, each with a link of {result['megabits_per_second']} Mb/s, "
        f"{result['megabytes']} MB, {result['cores']} cores, medians of {result['runs']} runs in turn. The limit, the "
        f"model's size over a link, is {result['limit_seconds']} s. Requests: HEAD, index, headers alone, data."
    )
    lines = [
        head,
        "",
        "| way | all nodes have the model (range) | to the limit | the bucket sent (range) | requests | busy cores |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for way, label in _ways(result):
        row = result[way]
        low, high = row["range_seconds"]
        least, most = row["bucket_models_range"]
        lines.append(
            f"| {label} | {row['all_warm_seconds']} s ({low}–{high}) | {row['times_the_limit']} × | "
            f"{row['bucket_models']} models ({least}–{most}) | {', '.join(map(str, row['requests'].values()))} | "
            f"{100 * row['busy_cores']:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def _ways(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(way, label) for way, label in WAYS.items() if way in result]


def chart(result: dict[str, Any], path: Path) -> None:
    """Draws what the links did over time, in the median run of each way."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "tonnage", "svg.fonttype": "none"}):
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
        for way, label in _ways(result):
            samples = [each for each in result[way]["samples"] if each[0] <= result[way]["range_seconds"][1] + 0.5]
            at = [each[0] for each in samples]
            upper.plot(at, [each[2] for each in samples], color=COLORS[way], linewidth=1.4, label=label)
            lower.plot(at, [each[1] for each in samples], color=COLORS[way], linewidth=1.4, label=label)
        for axis, what in ((upper, "a node receives"), (lower, "the bucket sends")):
            axis.axvline(result["limit_seconds"], color="#cf222e", linewidth=0.9, linestyle=":", label="the limit")
            axis.set_ylabel(f"{what}, MB/s")
            axis.set_ylim(0, result["megabits_per_second"] / 8 * 1.1)
            axis.set_xlim(left=0)
            axis.spines[["top", "right"]].set_visible(False)
        upper.legend(frameon=False, loc="upper right")
        lower.set_xlabel("seconds")
        upper.set_title(
            f"{result['nodes']} nodes, {result['megabytes']} MB, links of {result['megabits_per_second']} Mb/s",
            fontsize=10,
        )
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
