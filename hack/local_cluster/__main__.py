"""``python -m local_cluster up|down|status|reboot|kubectl|helm``: a cluster that stays until it is taken down."""

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
from local_cluster.progress import PrintedProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COMMAND_LINE = "PYTHONPATH=hack .venv/bin/python -m local_cluster"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
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
        print("local_cluster: interrupted; what was started is gone.", file=sys.stderr)
        return 130


def default_folder() -> Path:
    """Returns where the command keeps its cluster unless told otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tonnage" / "cluster"


def _up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    cluster = _find_running(options.folder) or clusters.start(options.folder, keep=True, progress=PrintedProgress())
    storage = cluster.object_storage
    print(f"""\
A one-node cluster runs ({time.monotonic() - began:.0f} s). In a shell:

  export KUBECONFIG={cluster.kubeconfig}
  export PATH={cluster.program_folder}:$PATH
  kubectl get pods -A

S3 server, for pods and for this machine: {storage.endpoint} (its users: {cluster.folder}/object-storage/s3.json)
Logs: {cluster.folder}/logs
End it, and leave nothing: {_command(options.folder)} down""")
    return 0


def _down(options: argparse.Namespace) -> int:
    try:
        clusters.delete(options.folder)
    except NotRunning as error:
        print(error, file=sys.stderr)
        return 0
    print("The cluster is gone.", file=sys.stderr)
    return 0


def _status(options: argparse.Namespace) -> int:
    cluster = clusters.attach(options.folder)
    print(f"machine {'on' if cluster.is_running else 'off'}, boot {cluster.boot_id}, in {cluster.folder}")
    processes = cluster.processes().values()
    for process in processes:
        print(f"{process.name:24} {process.pid if process.is_running else 'ended'}")
    return 0 if cluster.is_running and all(process.is_running for process in processes) else 1


def _reboot(options: argparse.Namespace) -> int:
    cluster = _require_running(options.folder)
    cluster.reboot_node()
    print(f"The node is ready again, boot {cluster.boot_id}.", file=sys.stderr)
    return 0


def _run_client(options: argparse.Namespace) -> NoReturn:
    cluster = _require_running(options.folder)
    program = getattr(cluster.clients, options.program + "_program")
    os.execvpe(program, [options.program, *options.arguments], cluster.clients.environment())


def _command(folder: Path) -> str:
    """Returns how to call this command for the cluster in ``folder``."""
    return _COMMAND_LINE if folder == default_folder() else f"{_COMMAND_LINE} --folder {folder}"


def _find_running(folder: Path) -> clusters.Cluster | None:
    try:
        return _require_running(folder)
    except NotRunning:
        return None


def _require_running(folder: Path) -> clusters.Cluster:
    cluster = clusters.attach(folder)
    if not cluster.is_running:
        raise NotRunning(f"The cluster in {folder} does not run.", f"Start it: {_command(folder)} up")
    return cluster


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_cluster", description=__doc__)
    folder = default_folder()
    parser.add_argument("--folder", type=Path, default=folder, help=f"where its files are (default: {folder})")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, help_text in (
        ("up", _up, "start a cluster and leave it running"),
        ("down", _down, "end the cluster and leave nothing behind"),
        ("status", _status, "say what runs; exit with 0 if all of it does"),
        ("reboot", _reboot, "cut the node's power and switch it on again"),
    ):
        commands.add_parser(name, help=help_text).set_defaults(run=run)
    for name in ("kubectl", "helm"):
        command = commands.add_parser(name, help=f"run {name} as the administrator", add_help=False)
        command.add_argument("arguments", nargs=argparse.REMAINDER)
        command.set_defaults(run=_run_client, program=name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
