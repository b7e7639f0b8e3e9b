"""``tonnage peer serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cli import output
from tonnage.cli.parser import UsageError
from tonnage.source.aws_config import find_ca_bundle

if TYPE_CHECKING:
    import argparse

    from tonnage.cli.invocation import Invocation


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Serves until SIGTERM.

    Raises:
        InvalidPlan: An option is missing, or nginx rejects the configuration.
        InternalError: nginx ended by itself.
    """
    from tonnage.peer_server.serve import serve
    from tonnage.peer_server.settings import PeerSettings

    if not arguments.media or not arguments.secrets:
        raise UsageError("--media and --secrets are required.", command="tonnage peer")
    default = PeerSettings(media={}, secrets=Path(), run_dir=Path("/run/tonnage"))
    settings = PeerSettings(
        media={name: Path(folder) for name, folder in arguments.media},
        secrets=Path(arguments.secrets).absolute(),
        run_dir=Path(arguments.run_dir or default.run_dir).absolute(),
        address=arguments.address or ("[::]" if Path("/proc/net/if_inet6").exists() else "0.0.0.0"),  # noqa: S104
        port=arguments.port or default.port,
        connections=arguments.connections or default.connections,
        connections_per_loader=arguments.connections_per_loader or default.connections_per_loader,
        rate=arguments.rate or 0,
        processes=default.processes if arguments.processes is None else arguments.processes,
        ca_bundle=find_ca_bundle(arguments.ca_bundle or "", invocation.environment),
        local_stores=arguments.local_stores,
        as_root=os.geteuid() == 0,
    )
    serve(
        settings,
        canceled=invocation.cancellation.canceled,
        on_ready=lambda: output.print_stderr(f"serving on port {settings.port}"),
    )
    return 0
