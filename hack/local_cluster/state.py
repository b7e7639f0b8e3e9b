"""The state of a cluster for later commands: one JSON file in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from local_cluster.process_identity import ProcessIdentity

if TYPE_CHECKING:
    from pathlib import Path

FILE = "cluster.json"
_VERSION = 2


@dataclass
class State:
    """Processes and programs of a cluster, and what must be removed after it.

    ``made_folders`` are the folders that the cluster created, the innermost last.
    """

    made_folders: list[str] = field(default_factory=list)
    programs: dict[str, str] = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    slot: int | None = None
    audited: bool = False
    boot_id: str = ""
    holder: ProcessIdentity | None = None
    init: ProcessIdentity | None = None
    processes: dict[str, ProcessIdentity | None] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Replaces the file in ``folder``."""
        temporary = folder / f".{FILE}"
        temporary.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=1))
        temporary.replace(folder / FILE)


def read(folder: Path) -> State | None:
    """Returns the state in ``folder``; None if there is none or it has another version."""
    try:
        fields = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    if fields.pop("version", None) != _VERSION:
        return None
    for name in ("holder", "init"):
        fields[name] = _identity(fields[name])
    fields["processes"] = {name: _identity(each) for name, each in fields["processes"].items()}
    return State(**fields)


def _identity(fields: dict[str, int] | None) -> ProcessIdentity | None:
    return ProcessIdentity(**fields) if fields else None
