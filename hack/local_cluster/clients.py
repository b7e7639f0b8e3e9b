"""Runs kubectl and helm as the cluster's administrator."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from local_cluster.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Clients:
    """The two programs; ``folder`` is for their caches."""

    kubectl_program: Path
    helm_program: Path
    kubeconfig: Path
    folder: Path

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Runs kubectl and returns what it printed.

        Raises:
            CommandFailed: It exited with an error, or ran out of ``timeout`` seconds; with what it wrote to stderr.
        """
        own = [f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.folder / 'kubectl'}"]
        return run_command(
            [str(self.kubectl_program), *own, *args], display_command=["kubectl", *args], stdin=stdin, timeout=timeout
        )

    def helm(self, *args: str, timeout: float = 300) -> str:
        """Runs helm and returns what it printed.

        Raises:
            CommandFailed: It exited with an error, or ran out of ``timeout`` seconds; with what it wrote to stderr.
        """
        command = [str(self.helm_program), *args]
        return run_command(command, display_command=["helm", *args], timeout=timeout, environment=self.environment())

    def environment(self) -> dict[str, str]:
        """Returns this process's environment, changed so that kubectl and helm use the cluster."""
        homes = {f"HELM_{name}_HOME": str(self.folder / "helm") for name in ("CACHE", "CONFIG", "DATA")}
        return {**os.environ, **homes, "KUBECONFIG": str(self.kubeconfig)}


def run_command(
    command: Sequence[str],
    *,
    display_command: Sequence[str],
    stdin: str | None = None,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a command and returns what it printed. Errors name it as ``display_command``.

    Raises:
        CommandFailed: It exited with an error, or ran out of ``timeout`` seconds; with what it wrote to stderr.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        written = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else ""
        raise CommandFailed(display_command, None, written) from None
    if done.returncode:
        raise CommandFailed(display_command, done.returncode, done.stderr)
    return done.stdout
