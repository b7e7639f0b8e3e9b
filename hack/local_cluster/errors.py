"""The errors of local clusters, each with a stable reason and a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class LocalClusterError(Exception):
    """An error that ends a command.

    ``reason`` is stable, for programs; ``remedy`` is a sentence, or empty.
    """

    reason = "InternalError"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class MissingRequirements(LocalClusterError):
    """This machine can't run a cluster; the message lists everything that is missing, one per line."""

    reason = "MachineLacks"

    def __init__(self, missing: Iterable[tuple[str, str]]) -> None:
        """Takes pairs of what is missing and the remedy."""
        self.missing = tuple(missing)
        lines = [f"- {what}. {remedy}" for what, remedy in self.missing]
        super().__init__("\n".join(["This machine can't run a local cluster. Missing:", *lines]))


class ClusterExists(LocalClusterError):
    """Another local cluster runs on this machine."""

    reason = "ClusterExists"


class NotRunning(LocalClusterError):
    """The folder has no cluster, or the cluster or a program of it is not running."""

    reason = "NotRunning"


class FolderInUse(LocalClusterError):
    """The folder has other files."""

    reason = "FolderInUse"


class StartFailed(LocalClusterError):
    """A program of the cluster exited or did not become ready; the message ends with its log."""

    reason = "StartFailed"


class CommandFailed(LocalClusterError):
    """A command against the cluster failed or timed out."""

    reason = "CommandFailed"

    def __init__(self, command: Sequence[str], returncode: int | None, stderr: str) -> None:
        """``returncode`` is None if the command timed out."""
        how = "timed out" if returncode is None else f"exited with {returncode}"
        super().__init__(f"{' '.join(command)} {how}: {stderr.strip()}")
        self.returncode = returncode
        self.stderr = stderr
