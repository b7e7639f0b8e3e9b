"""``python -m demo_cluster story|up``: Tonnage's story on a real node, or a cluster with Tonnage to play with."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from demo_cluster.install import cluster_for_walkthrough, start_demo_cluster
from demo_cluster.walkthrough import DemoFailed, run_walkthrough
from e2e_support.images import ImageBuildUnavailable as ImagesLacking
from local_cluster.__main__ import default_folder
from local_cluster.errors import LocalClusterError


def main() -> int:
    """Runs the command and returns its exit status."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tonnage-demo-", ignore_cleanup_errors=True) as work:
        try:
            if arguments.command == "up":
                start_demo_cluster(arguments.folder, Path(work), small=arguments.small)
            else:
                with cluster_for_walkthrough(arguments.folder, Path(work)) as site:
                    run_walkthrough(site, Path(work) / "models", small=arguments.small)
                print("\nAll of it was as it must be.")
        except (DemoFailed, LocalClusterError, ImagesLacking) as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted; what was started for the story is gone.", file=sys.stderr)
            return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo_cluster", description=__doc__)
    parser.add_argument("command", choices=("story", "up"), nargs="?", default="story")
    parser.add_argument("--small", action="store_true", help="a model of 40 MB instead of 460 MB")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="of the cluster that stays")
    return parser


if __name__ == "__main__":
    sys.exit(main())
