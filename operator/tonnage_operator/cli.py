"""The command ``tonnage-operator``; its subcommands run processes, check them, and write CRDs."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage_operator import __version__
from tonnage_operator.config import ConfigError, ServerOptions, read_installation
from tonnage_operator.garbage import collect_rarely
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.credentials import ClientConfigError, find_client_config
from tonnage_operator.signals import stop_on_signals
from tonnage_operator.telemetry import configure_logging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage_operator.app import App

_EXIT_FAILURE = 1
_EXIT_USAGE = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tonnage-operator",
        description="Caches model weights on the nodes of a cluster, and injects them into pods.",
    )
    parser.add_argument("--version", action="version", version=f"tonnage-operator {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    controller = commands.add_parser(
        "controller",
        help="run the controller",
        description="Resolves sources, loads and evicts entries, and writes statuses. On a laptop, with the current "
        "kubeconfig: "
        "tonnage-operator controller --config installation.yaml",
    )
    webhook = commands.add_parser(
        "webhook", help="run the webhook", description="Injects loaders into pods that request weights."
    )
    gate = commands.add_parser(
        "gate",
        help="run the gate",
        description="Removes startup taints from nodes on which the models are warm, and after a timeout. It reads no "
        "Secret.",
    )
    for each in (controller, webhook, gate):
        each.add_argument("--config", type=Path, required=True, help="YAML file of the installation")
        each.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 - in a container
        each.add_argument("--health-port", type=int, default=8080, help="port of /healthz, /readyz and /metrics")
        each.add_argument("--log-format", choices=("json", "text"), default="json", help="log format")
        each.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
        _add_kubeconfig_options(each)
    for each in (controller, webhook):
        each.add_argument("--port", type=int, default=8443, help="port for loaders' reports, or for admission reviews")
        each.add_argument("--tls-cert", type=Path, help="serving certificate in PEM; reloaded when it changes")
        each.add_argument("--tls-key", type=Path, help="private key of the certificate in PEM")
    webhook.add_argument(
        "--client-ca", type=Path, help="CA in PEM of the API server's client certificate, which reviews then need"
    )
    webhook.add_argument(
        "--client-name", action="append", default=[], metavar="NAME",
        help="common name that this certificate must have; can be repeated; default: every name",
    )  # fmt: skip
    crd = commands.add_parser(
        "crd", help="write the CRDs", description="Writes the YAML of the CustomResourceDefinitions."
    )
    crd.add_argument("--output", type=Path, help="folder for the files; default: standard output")
    release = commands.add_parser(
        "release",
        help="remove finalizers before an uninstall",
        description="Removes the operator's finalizer from every ModelWeights, so that objects can be deleted without "
        "the operator. Stop the controller first. Entries that are still on nodes stay there.",
    )
    _add_kubeconfig_options(release)
    wipe = commands.add_parser(
        "wipe",
        help="delete all ModelWeights and empty the nodes before an uninstall",
        description="Deletes every ModelWeights, and waits until the controller, which must be running, has emptied "
        "the nodes. Exits with 1 and lists what remains when the time is up.",
    )
    wipe.add_argument("--within", type=float, default=240, metavar="SECONDS", help="time to wait; default: 240")
    _add_kubeconfig_options(wipe)
    check = commands.add_parser(
        "check",
        help="check that webhook and controller respond",
        description="Sends a request to each endpoint, with the CA that its clients use. Exits with 1 and lists the "
        "endpoints that don't respond.",
    )
    check.add_argument("--webhook", metavar="URL", help="/readyz of the webhook")
    check.add_argument("--webhook-ca", type=Path, metavar="FILE", help="CA of the webhook's certificate in PEM")
    check.add_argument("--reports", metavar="URL", help="endpoint to which loaders send reports")
    check.add_argument("--reports-ca", type=Path, metavar="FILE", help="CA of that endpoint's certificate in PEM")
    check.add_argument("--within", type=float, default=60, metavar="SECONDS", help="time to keep trying; default: 60")
    return parser


def _add_kubeconfig_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", help="default: the pod's service account, KUBECONFIG, ~/.kube/config")
    parser.add_argument("--context", help="context of the kubeconfig; default: the current one")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "crd":
            return _crd(options)
        commands = {"release": _release, "wipe": _wipe, "check": _check}
        return asyncio.run(commands.get(options.command, _run)(options))
    except (ConfigError, ClientConfigError) as error:
        sys.stderr.write(f"tonnage-operator: {error}\n")
        return _EXIT_USAGE
    except ApiError as error:
        sys.stderr.write(f"tonnage-operator: the request to the API server failed: {error.message or error.reason}\n")
        return _EXIT_FAILURE


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
    installation = read_installation(options.config, with_secrets=options.command != "gate")
    client_config = await find_client_config(options.kubeconfig, options.context)
    configure_logging(json_lines=options.log_format == "json", level=options.log_level)
    app = _app_class(options.command)(client_config, installation, _server_options(options))
    stop_on_signals(app.stopping)
    collecting = asyncio.create_task(collect_rarely(), name="garbage")
    await app.run()
    collecting.cancel()
    return 0


def _app_class(command: str) -> type[App]:
    """Returns the class of a process; imports only what this process needs."""
    if command == "controller":
        from tonnage_operator.controller.app import ControllerApp

        return ControllerApp
    if command == "gate":
        from tonnage_operator.gate.app import GateApp

        return GateApp
    from tonnage_operator.webhook.app import WebhookApp

    return WebhookApp


def _server_options(options: argparse.Namespace) -> ServerOptions:
    made = ServerOptions(options.host, health_port=options.health_port)
    if options.command == "gate":
        return made
    made = dataclasses.replace(made, port=options.port, cert=options.tls_cert, key=options.tls_key)
    if options.command == "webhook":
        return dataclasses.replace(made, client_ca=options.client_ca, client_names=tuple(options.client_name))
    return made


async def _release(options: argparse.Namespace) -> int:
    from tonnage_operator.controller.uninstall import FinalizerRestored, release_all

    try:
        released = await release_all(await find_client_config(options.kubeconfig, options.context))
    except FinalizerRestored as error:
        sys.stderr.write(f"tonnage-operator: {error}\n")
        return _EXIT_FAILURE
    sys.stdout.write(f"Removed the finalizer of {released} ModelWeights.\n")
    return 0


async def _wipe(options: argparse.Namespace) -> int:
    from tonnage_operator.controller.uninstall import wipe_all

    remaining = await wipe_all(
        await find_client_config(options.kubeconfig, options.context), timeout_seconds=options.within
    )
    for each in remaining:
        sys.stderr.write(f"Remaining: {each.text}.\n")
    blocking = any(each.blocking for each in remaining)
    sys.stdout.write("" if blocking else "All ModelWeights are deleted, and all ready nodes are empty.\n")
    return _EXIT_FAILURE if blocking else 0


async def _check(options: argparse.Namespace) -> int:
    from tonnage_operator.health_check import Probe, check

    probes = []
    if options.webhook:
        probes.append(Probe("webhook", "GET", options.webhook, options.webhook_ca, expected=200))
    if options.reports:
        # A report without a token is rejected.
        probes.append(Probe("controller", "POST", options.reports, options.reports_ca, expected=401))
    failures = await check(probes, timeout_seconds=options.within)
    for probe in probes:
        sys.stdout.write(f"{probe.target}: {failures.get(probe.target) or 'responds'}\n")
    return _EXIT_FAILURE if failures else 0
