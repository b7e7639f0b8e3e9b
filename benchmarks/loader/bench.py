"""Compares Tonnage with other loaders: the same object on the same server, with an empty cache each time.

The contenders run in turn, in rotating order. `make bench` runs it with the defaults; --help lists the regimes. Writes
a table, JSON and a chart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import host
import results
import timeline
from contenders import CONTENDERS, Contender, RunConfig, Variant, load_command
from model_file import make_model
from results import Result, Row, Sample
from servers import find_nginx, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

SECONDS_FOR_A_RUN = 600
WARM_FACTOR = 1.5
SETTLE_TIMEOUT_SECONDS = 60


class ContenderFailed(Exception):
    """A run failed or its result is wrong. The last line of the message is the most specific."""


def parse_bytes(text: str) -> int:
    """Parses `512M`, `4G` or a plain number of bytes."""
    unit = UNITS.get(text[-1:].upper())
    return int(float(text[:-1]) * unit) if unit else int(text)


def parse_arguments() -> argparse.Namespace:
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--regime", choices=("cpu", "network"), default="cpu", help="the bottleneck: the CPU, or a shaped network")
    add("--rate", type=int, default=400, help="bandwidth of the shaped network, in MB/s (10^6)")
    add("--huge", action="store_true", help="use caches in a tmpfs with huge pages, mounted for the run (root only)")
    add("--size", type=parse_bytes, help="size of the model, such as 2G (default: 4G)")
    add("--repetitions", type=int, default=5, help="runs of each contender")
    add("--hits", type=int, default=20, help="number of cache hits to time")
    add("--contenders", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add("--no-tuning", dest="tuning", action="store_false", help="run each peer with its first setting only")
    add(
        "--settings",
        nargs="+",
        default=[],
        type=lambda text: tuple(text.split("=", 1)),
        metavar="KEY=VALUE",
        help="try only those settings of peers that have this value, such as readers=16",
    )
    add(
        "--server",
        choices=("auto", "nginx", "sendfile", "seaweedfs"),
        default="auto",
        help="auto: nginx if installed, otherwise sendfile",
    )
    add("--nginx", default=find_nginx(), help="path of nginx")
    add("--server-workers", type=int, default=os.cpu_count(), help="processes of the server")
    add("--processes", type=int, default=os.cpu_count(), help="processes of curl and of the floor")
    add("--tonnage", nargs=argparse.REMAINDER, default=[], help="pass all following arguments to `tonnage load`")
    add("--output", type=Path, default=REPOSITORY / "docs" / "performance", help="folder for table, JSON and chart")
    add("--name", help="base name of the files; derived from the regime if not set")
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark and writes its results."""
    arguments = parse_arguments()
    if arguments.regime == "network":
        host.enter_shaped_network(arguments.rate * 10**6)
    size = arguments.size or 4 << 30
    kind = arguments.server
    if kind == "auto":
        kind = "nginx" if arguments.nginx else "sendfile"
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(host.work_directory(huge=False, size=0))
        log(f"writing a model of {size / 1e9:.1f} GB")
        read = {each.reads for each in CONTENDERS if each.name in arguments.contenders}
        model = make_model(source / "root", size, whole="safetensors" in read, shards="shards" in read)
        server = stack.enter_context(
            serve(kind, model, workers=arguments.server_workers, directory=source / "server", nginx=arguments.nginx)
        )
        os.environ.update(server.environment)
        cache = stack.enter_context(host.work_directory(huge=arguments.huge, size=3 * size))
        setting = RunConfig(
            server=server,
            model=model,
            out=cache,
            processes=arguments.processes,
            tonnage_options=tuple(arguments.tonnage),
        )
        present, absent = select_contenders(arguments.contenders, setting)
        rows = run_rounds(present, absent, setting, arguments)
        ours = next((row.samples for row in rows if row.name == "tonnage"), ())
        result = Result(
            title=title(arguments, size),
            conditions={**host.describe(), **conditions(arguments, setting)},
            rows=rows,
            absent=absent,
            extras=extras(setting, ours, arguments.hits),
        )
    write(result, arguments)
    return 0


def select_contenders(names: list[str], setting: RunConfig) -> tuple[list[Contender], dict[str, str]]:
    """Returns the contenders of `names` that can run, and the reasons why the others can't."""
    present, absent = [], {}
    for contender in CONTENDERS:
        if contender.name in names:
            reason = contender.unavailable_reason(setting)
            if reason:
                absent[contender.label] = reason
                log(f"skipping {contender.label}: {reason}")
            else:
                present.append(contender)
    return present, absent


def run_rounds(
    present: list[Contender], absent: dict[str, str], setting: RunConfig, arguments: argparse.Namespace
) -> tuple[Row, ...]:
    """Runs all contenders in rotating order. A peer that fails is excluded; `absent` gets the reason."""
    variants: dict[str, Variant] = {}
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in present}

    def exclude(contender: Contender, error: ContenderFailed) -> None:
        if contender.name.startswith("tonnage"):
            raise error
        log(str(error))
        absent[contender.label] = "it failed: " + str(error).strip().splitlines()[-1].rstrip(".")
        present.remove(contender)

    for contender in list(present):
        try:
            variants[contender.name] = tune(contender, setting, arguments)
        except ContenderFailed as error:
            exclude(contender, error)
    for repetition in range(arguments.repetitions):
        turn = repetition % len(present)
        for contender in [*present[turn:], *present[:turn]]:
            try:
                sample = run(contender, setting, variants[contender.name])
            except ContenderFailed as error:
                exclude(contender, error)
                continue
            samples[contender.name].append(sample)
            speed = f"{sample.gigabytes_per_second:.2f} GB/s"
            log(f"{repetition + 1}/{arguments.repetitions} {contender.label}: {speed}")
    return tuple(Row(c.name, c.label, c.verifies, c.target, variants[c.name], tuple(samples[c.name])) for c in present)


def tune(contender: Contender, setting: RunConfig, arguments: argparse.Namespace) -> Variant:
    """Runs each variant once and returns the fastest. A single variant runs too, as a warm-up like the others'."""
    wanted = [
        v for v in contender.variants if all(str(v.get(key, value)) == value for key, value in arguments.settings)
    ]
    variants = (wanted or contender.variants)[: None if arguments.tuning else 1]
    speeds = []
    for variant in variants:
        speed = run(contender, setting, variant).gigabytes_per_second
        log(f"trying {contender.label} {variant or ''}: {speed:.2f} GB/s")
        speeds.append(speed)
    return variants[speeds.index(max(speeds))]


def run(contender: Contender, setting: RunConfig, variant: Variant) -> Sample:
    """Runs a contender once in an empty directory, checks its result, and returns its figures."""
    with temporary_directory(setting.out) as out:
        host.warm_memory(out, int(setting.model.size * WARM_FACTOR))
        own = replace(setting, out=out / "cache")
        own.out.mkdir()
        mark = setting.server.log_offset()
        figures, output = measure(contender.command(own, variant), out / "result.json", contender.label)
        problem = contender.validate(own, output)
        if problem:
            raise ContenderFailed(f"{contender.label}: {problem}")
    cpu, seconds = figures["user_seconds"] + figures["system_seconds"], figures["seconds"]
    if contender.self_timed:
        clock = json.loads(output.splitlines()[-1])
        cpu, seconds = clock["cpu_seconds"], clock["seconds"]
    traffic: timeline.Traffic = figures["traffic"]
    requests = setting.server.requests_since(mark)
    gets = [request for request in requests if request.method == "GET"]
    return Sample(
        bytes=setting.model.size,
        seconds=seconds,
        cpu_seconds=cpu,
        peak_bytes=int(figures["peak_pss_bytes"]),
        largest_process_bytes=int(figures["largest_rss_bytes"]),
        first_request_ms=1000 * (requests[0].time - figures["started"]) if requests else -1,
        first_get_ms=1000 * (gets[0].time - figures["started"]) if gets else -1,
        first_data_ms=timeline.first_data_ms(traffic),
        end_ms=timeline.end_ms(traffic, figures["seconds"]),
        tail_ratio=timeline.tail_ratio(traffic),
        traffic=traffic,
    )


def measure(command: list[str], result: Path, label: str) -> tuple[dict[str, Any], str]:
    """Runs a command with `measure_process.py`. Returns its figures and its standard output."""
    runner = [sys.executable, str(HERE / "measure_process.py"), str(result), *command]
    subprocess.run(runner, check=True, timeout=SECONDS_FOR_A_RUN)
    took: dict[str, Any] = json.loads(result.read_text())
    output = result.with_suffix(".out").read_text()
    if took["code"] != 0:
        errors = result.with_suffix(".err").read_text()[-2000:]
        raise ContenderFailed(f"{label} exited with {took['code']}:\n{output[-2000:]}\n{errors}")
    return took, output


def extras(setting: RunConfig, samples: Sequence[Sample], hits: int) -> dict[str, float | None]:
    """Returns figures of Tonnage alone: time to the first request, a cache hit, and the cost of holding an entry."""
    if not samples:
        return {}
    first = {
        "milliseconds from process start to the first request, median": [s.first_request_ms for s in samples],
        "milliseconds from process start to the first GET, median": [s.first_get_ms for s in samples],
        "milliseconds from process start to the first tensor data, median": [s.first_data_ms for s in samples],
        "milliseconds from the last byte to the process's exit, median": [s.end_ms for s in samples],
        "throughput of the last tenth of the bytes, of the middle's, median": [s.tail_ratio for s in samples],
    }
    found: dict[str, float | None] = {
        meaning: statistics.median(values) if min(values) >= 0 else None for meaning, values in first.items()
    }
    with temporary_directory(setting.out) as out:
        own = replace(setting, out=out)
        command = load_command(own)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = []
        for _ in range(hits):
            began = time.perf_counter()
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            seconds.append(time.perf_counter() - began)
            if json.loads(answer.splitlines()[-1])["outcome"] != "hit":
                raise ContenderFailed("A second load was not a hit.")
        found[f"milliseconds of a cache hit, whole process, median of {hits}"] = 1000 * statistics.median(seconds)
        resident, exit_seconds = measure_holder(load_command(own, "--hold"))
    found["MiB resident of a process that holds an entry (--hold)"] = resident / results.MEBI
    found["milliseconds from SIGTERM to its end"] = 1000 * exit_seconds
    return found


def measure_holder(command: list[str]) -> tuple[int, float]:
    """Returns a holder's resident bytes, and the seconds from SIGTERM to its exit."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    resident, deadline = 0, time.monotonic() + SETTLE_TIMEOUT_SECONDS
    while time.monotonic() < deadline:  # it executes the small holder after its report: wait for a constant value
        time.sleep(0.5)
        before, resident = resident, resident_bytes(process.pid)
        if before == resident:
            break
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.wait()
    return resident, time.perf_counter() - began


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def conditions(arguments: argparse.Namespace, setting: RunConfig) -> dict[str, str]:
    """Returns the settings of this run, for the report."""
    return {
        "model": f"{setting.model.size} bytes, {len(setting.model.crcs)} tensors, bf16",
        "server": f"{setting.server.kind}, {arguments.server_workers} processes, on loopback",
        "processes of curl and the floor": str(arguments.processes),
        "options of tonnage": " ".join(arguments.tonnage) or "none",
        "runs of each contender": str(arguments.repetitions),
    }


def title(arguments: argparse.Namespace, size: int) -> str:
    """Returns the title of the report."""
    limit = f"a network of {arguments.rate} MB/s" if arguments.regime == "network" else "the CPU is the limit"
    pages = ", cache in huge pages" if arguments.huge else ""
    return f"Loading {size / 1e9:.1f} GB: {limit}, {os.cpu_count()} cores shared with the server{pages}"


def write(result: Result, arguments: argparse.Namespace) -> None:
    """Writes table, JSON and chart, and prints the table."""
    name = arguments.name or f"loader-{arguments.regime}{'-huge' if arguments.huge else ''}"
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / name
    text = results.markdown(result)
    target.with_suffix(".json").write_text(results.as_json(result))
    try:
        results.chart(result, target.with_suffix(".svg"))
        results.timeline_chart(result, arguments.output / f"{name}-timeline.svg")
    except ImportError:
        log("no chart: matplotlib is not installed")
    else:
        charts = f"![the same as a chart]({name}.svg)\n\n![throughput over time]({name}-timeline.svg)"
        text = text.replace("\n", f"\n\n{charts}\n", 1)
    target.with_suffix(".md").write_text(text)
    print(text)


@contextlib.contextmanager
def temporary_directory(parent: Path) -> Iterator[Path]:
    """Creates an empty directory, and removes it with its contents at the end."""
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    sys.exit(main())
