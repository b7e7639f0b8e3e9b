"""What can go wrong, each with a stable reason and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class LocalClusterError(Exception):
    """Something that ends a command.

    ``reason`` is stable, for programs; ``remedy`` is for people and may be empty.
    """

    reason = "InternalError"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class MissingRequirements(LocalClusterError):
    """This machine can't run a cluster; the message names all that is missing, one thing a line."""

    reason = "MachineLacks"

    def __init__(self, missing: Iterable[tuple[str, str]]) -> None:
        """Takes pairs of what is missing and what to do."""
        self.missing = tuple(missing)
        lines = [f"- {what}. {remedy}" for what, remedy in self.missing]
        super().__init__("\n".join(["This machine lacks what a local cluster needs:", *lines]))


class ClusterExists(LocalClusterError):
    """Another local cluster runs on this machine."""

    reason = "ClusterExists"


class NotRunning(LocalClusterError):
    """There is no cluster in the folder, or a part of it has ended."""

    reason = "NotRunning"


class FolderInUse(LocalClusterError):
    """The folder holds something else."""

    reason = "FolderInUse"


class StartFailed(LocalClusterError):
    """A part of the cluster ended early or never became ready; the message ends with its log."""

    reason = "StartFailed"


class CommandFailed(LocalClusterError):
    """A command against the cluster exited with an error or ran out of time."""

    reason = "CommandFailed"

    def __init__(self, command: Sequence[str], returncode: int | None, stderr: str) -> None:
        """``returncode`` is None where the command ran out of time."""
        how = "ran out of time" if returncode is None else f"exited with {returncode}"
        super().__init__(f"{' '.join(command)} {how}: {stderr.strip()}")
        self.returncode = returncode
        self.stderr = stderr
