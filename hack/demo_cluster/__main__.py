"""``python -m demo_cluster demo|up``: the demo of Tonnage on a real one-node cluster, or a cluster to try it on."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from demo_cluster.install import cluster_for_walkthrough, start_demo_cluster
from demo_cluster.step_printer import DemoFailed
from demo_cluster.walkthrough import run_walkthrough
from e2e_support.images import ImageBuildUnavailable
from local_cluster.__main__ import default_folder
from local_cluster.errors import LocalClusterError


def main() -> int:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tonnage-demo-", ignore_cleanup_errors=True) as work:
        try:
            if arguments.command == "up":
                start_demo_cluster(arguments.folder, Path(work), small=arguments.small)
            else:
                with cluster_for_walkthrough(arguments.folder, Path(work)) as site:
                    run_walkthrough(site, Path(work) / "models", small=arguments.small)
                print("\nAll checks passed.")
        except (DemoFailed, LocalClusterError, ImageBuildUnavailable) as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. What the demo started was stopped.", file=sys.stderr)
            return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo_cluster", description=__doc__)
    parser.add_argument("command", choices=("demo", "up"), nargs="?", default="demo")
    parser.add_argument("--small", action="store_true", help="use a model of 40 MB instead of 460 MB")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="folder of the cluster that `up` starts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
