"""``python -m local_cluster up|down|status|reboot|kubectl|helm``: a one-node cluster that runs until ``down``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from local_cluster import cluster as clusters
from local_cluster.errors import LocalClusterError, NotRunning
from local_cluster.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COMMAND_LINE = "PYTHONPATH=hack .venv/bin/python -m local_cluster"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except LocalClusterError as error:
        print(f"local_cluster: {error}", file=sys.stderr)
        if error.remedy:
            print(error.remedy, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("local_cluster: interrupted; everything that was started has been stopped.", file=sys.stderr)
        return 130


def default_folder() -> Path:
    """Returns the default of ``--folder``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tonnage" / "cluster"


def _up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    cluster = _find_running(options.folder) or clusters.start(
        options.folder, keep=True, progress=Progress(printed=True)
    )
    storage = cluster.object_storage
    print(f"""\
The cluster is ready ({time.monotonic() - began:.0f} s). Use it in a shell:

  export KUBECONFIG={cluster.kubeconfig}
  export PATH={cluster.program_folder}:$PATH
  kubectl get pods -A

S3 server, for pods and this machine: {storage.endpoint} (users and keys: {cluster.folder}/object-storage/s3.json)
Logs: {cluster.folder}/logs
Remove the cluster: {_command(options.folder)} down""")
    return 0


def _down(options: argparse.Namespace) -> int:
    try:
        clusters.delete(options.folder)
    except NotRunning as error:
        print(error, file=sys.stderr)
        return 0
    print("Removed the cluster.", file=sys.stderr)
    return 0


def _status(options: argparse.Namespace) -> int:
    cluster = clusters.attach(options.folder)
    print(f"node {'on' if cluster.is_running else 'off'}, boot ID {cluster.boot_id}, folder {cluster.folder}")
    processes = cluster.processes().values()
    for process in processes:
        print(f"{process.name:24} {process.pid if process.is_running else 'stopped'}")
    return 0 if cluster.is_running and all(process.is_running for process in processes) else 1


def _reboot(options: argparse.Namespace) -> int:
    cluster = _require_running(options.folder)
    cluster.reboot_node()
    print(f"Rebooted the node; its boot ID is {cluster.boot_id}.", file=sys.stderr)
    return 0


def _run_client(options: argparse.Namespace) -> NoReturn:
    cluster = _require_running(options.folder)
    program = getattr(cluster.clients, options.program + "_program")
    os.execvpe(program, [options.program, *options.arguments], cluster.clients.environment())


def _command(folder: Path) -> str:
    """Returns this command's command line for the cluster in ``folder``."""
    return _COMMAND_LINE if folder == default_folder() else f"{_COMMAND_LINE} --folder {folder}"


def _find_running(folder: Path) -> clusters.Cluster | None:
    try:
        return _require_running(folder)
    except NotRunning:
        return None


def _require_running(folder: Path) -> clusters.Cluster:
    cluster = clusters.attach(folder)
    if not cluster.is_running:
        raise NotRunning(f"The cluster in {folder} is not running.", f"Start it: {_command(folder)} up")
    return cluster


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_cluster", description=__doc__)
    folder = default_folder()
    parser.add_argument(
        "--folder", type=Path, default=folder, help=f"folder of the cluster's files (default: {folder})"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, help_text in (
        ("up", _up, "start a cluster and leave it running"),
        ("down", _down, "stop the cluster and remove it with all its data"),
        ("status", _status, "list the programs; exit with 0 if all are running"),
        ("reboot", _reboot, "reboot the node, without a clean shutdown"),
    ):
        commands.add_parser(name, help=help_text).set_defaults(run=run)
    for name in ("kubectl", "helm"):
        command = commands.add_parser(name, help=f"run {name} as the cluster's administrator", add_help=False)
        command.add_argument("arguments", nargs=argparse.REMAINDER)
        command.set_defaults(run=_run_client, program=name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
