"""The command ``tonnage-operator``: ``controller``, ``webhook``, ``crd``, ``release``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage_operator import __version__
from tonnage_operator.config import BadConfig, Listening, read_installation
from tonnage_operator.kube.access import NoAccess, find_access
from tonnage_operator.telemetry import configure_logging

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tonnage-operator", description="Keeps model weights warm on the nodes of a cluster, and injects them."
    )
    parser.add_argument("--version", action="version", version=f"tonnage-operator {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    controller = commands.add_parser(
        "controller",
        help="run the controller",
        description="Resolves, warms, cleans up, and writes statuses. On a laptop, with the current kubeconfig: "
        "tonnage-operator controller --config installation.yaml",
    )
    webhook = commands.add_parser(
        "webhook", help="run the webhook", description="Injects loaders into pods that ask for weights."
    )
    for each in (controller, webhook):
        each.add_argument("--config", type=Path, required=True, help="the installation's YAML file")
        each.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 - in a container
        each.add_argument("--port", type=int, default=8443, help="port for reports, or for admission reviews")
        each.add_argument("--health-port", type=int, default=8080, help="port of /healthz, /readyz and /metrics")
        each.add_argument("--tls-cert", type=Path, help="PEM of the serving certificate; reloaded when it changes")
        each.add_argument("--tls-key", type=Path, help="PEM of its key")
        each.add_argument("--log-format", choices=("json", "text"), default="json", help="how log lines look")
        each.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
        _add_cluster(each)
    crd = commands.add_parser("crd", help="write the CRDs", description="Writes the CRDs' YAML.")
    crd.add_argument("--output", type=Path, help="folder; absent: standard output")
    release = commands.add_parser(
        "release",
        help="let objects go before an uninstall",
        description="Removes the operator's finalizer from every ModelWeights, so that nothing hangs once the "
        "operator is "
        "gone. Entries on nodes that aren't emptied yet stay where they are.",
    )
    _add_cluster(release)
    return parser


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", help="absent: this pod's service account, KUBECONFIG, ~/.kube/config")
    parser.add_argument("--context", help="context of the kubeconfig; absent: the current one")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "crd":
                return _crd(options)
            case "release":
                return asyncio.run(_release(options))
            case _:
                return asyncio.run(_run(options))
    except (BadConfig, NoAccess) as error:
        sys.stderr.write(f"tonnage-operator: {error}\n")
        return _USAGE


def _crd(options: argparse.Namespace) -> int:
    from tonnage_operator.api import crd

    for name, text in crd.files().items():
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / name).write_text(text)
        else:
            sys.stdout.write("---\n" + text)
    return 0


async def _run(options: argparse.Namespace) -> int:
    configure_logging(json_lines=options.log_format == "json", level=options.log_level)
    installation = read_installation(options.config)
    access = find_access(options.kubeconfig, options.context)
    listening = Listening(options.host, options.port, options.health_port, options.tls_cert, options.tls_key)
    if options.command == "controller":
        from tonnage_operator.controller.running import Controller

        process: Controller | Webhook = Controller(access, installation, listening)
    else:
        from tonnage_operator.webhook.running import Webhook

        process = Webhook(access, installation, listening)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    await process.run()
    return 0


async def _release(options: argparse.Namespace) -> int:
    from tonnage_operator.controller.release import release_all

    released = await release_all(find_access(options.kubeconfig, options.context))
    sys.stdout.write(f"Released {released} objects.\n")
    return 0


if TYPE_CHECKING:
    from tonnage_operator.controller.running import Controller
    from tonnage_operator.webhook.running import Webhook
