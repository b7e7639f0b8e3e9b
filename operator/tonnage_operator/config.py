"""How the processes are set up: the installation's YAML file, and where to listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from tonnage_operator.domain.installation import Installation

if TYPE_CHECKING:
    from pathlib import Path


class BadConfig(Exception):
    """The installation's file can't be used; the text says which field and why."""


@dataclass(frozen=True)
class Listening:
    """Where a process listens. Port 0: one that is free. Without a certificate: plain HTTP, for a laptop."""

    host: str = "0.0.0.0"  # noqa: S104 - a container's own network
    port: int = 8443
    health_port: int = 8080
    cert: Path | None = None
    key: Path | None = None


def read_installation(path: Path) -> Installation:
    """Reads the installation's file.

    Raises:
        BadConfig: It is missing, no YAML, or a field is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text())
        return Installation.model_validate(content)
    except OSError as error:
        raise BadConfig(f"{path} can't be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BadConfig(f"{path} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadConfig(f"{path}: {where}: {first['msg']}") from error
