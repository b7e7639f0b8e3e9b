"""``python -m tonnage.attach bench PATH``: measures how fast this machine loads weights."""

from __future__ import annotations

import argparse
import json
import sys

from tonnage.errors import TonnageError

_ABOUT = "Measures how fast weights are copied from a cache to this machine's devices."
_ABOUT_BENCH = """\
Loads the weights several times and prints the throughput of each load in GB/s (10**9 bytes per second), beside the
bandwidth of copies from pinned memory in the same run. The first load includes pinning and allocating, as in a new
process. Without a GPU it measures how fast the cache is read. Nothing is changed."""
_EXAMPLES = """\
examples:
  python -m tonnage.attach bench /models/llama-70b
  python -m tonnage.attach bench /models/llama-405b --rank 3 --device cuda:3
  python -m tonnage.attach bench model.tensors --way register --repeat 5 --json"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for wrong arguments, or that of the error's reason."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tonnage.attach", description=_ABOUT, epilog=_EXAMPLES, formatter_class=form
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bench = commands.add_parser(
        "bench",
        help="load weights several times and compare with the bus bandwidth",
        description=_ABOUT_BENCH,
        epilog=_EXAMPLES,
        formatter_class=form,
    )
    bench.add_argument("path", help="a cache entry, a directory of safetensors files, or one .tensors file")
    bench.add_argument("--device", help="for example cuda:1; default: the current GPU, or the CPU without one")
    bench.add_argument("--rank", type=int, help="rank to load, if the weights are sharded by rank")
    bench.add_argument("--repeat", type=int, default=3, help="number of loads (default 3)")
    bench.add_argument("--way", choices=["auto", "ring", "register", "plain"], default="auto", help="how to copy")
    bench.add_argument("--threads", type=int, default=0, help="worker threads; default: depends on the number of cores")
    bench.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    try:
        text = _bench(args)
    except TonnageError as error:
        sys.stderr.write(f"{error.reason}: {error}\n{error.remedy}\n")
        return error.exit_code
    sys.stdout.write(text + "\n")
    return 0


def _bench(args: argparse.Namespace) -> str:
    from tonnage.attach import CopyOptions, require_torch

    require_torch()
    from tonnage.attach.bench import as_dict, format_result, measure  # imports PyTorch

    result = measure(
        args.path,
        device=args.device,
        repeat=args.repeat,
        rank=args.rank,
        options=CopyOptions(way=args.way, threads=args.threads),
    )
    return json.dumps(as_dict(result), indent=1) if args.json else format_result(result)


if __name__ == "__main__":
    sys.exit(main())
