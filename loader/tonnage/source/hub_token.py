"""Where the token of a hub comes from, as in huggingface_hub, and from mounted files first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.errors import CredentialsMissing, InvalidPlan
from tonnage.source.aws_config import CREDENTIALS_DIR
from tonnage.source.credentials import CredentialProvider
from tonnage.source.sigv4 import Credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
MAX_TOKEN_BYTES = 8192
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^{}]*)\})", re.ASCII)
_TOKEN = re.compile(r"[\x21-\x7e]+")


class HubTokenProvider(CredentialProvider):
    """Provides the token of a hub; None if there is none, because public repositories need none."""

    def _load(self, *, wait: bool = True) -> Credentials | None:  # noqa: ARG002  # a file is read at once
        token = find_token(self._environment)
        return Credentials(hub_token=token) if token else None


def find_token(environment: Mapping[str, str]) -> str:
    """Returns the token; empty if there is none.

    Order: the file ``HF_TOKEN`` in the folder of ``TONNAGE_CREDENTIALS_DIR``, the variables, and the file of
    ``HF_TOKEN_PATH`` or ``huggingface_hub``'s own. With ``HF_HUB_DISABLE_IMPLICIT_TOKEN`` only the first is asked.

    Raises:
        CredentialsMissing: The token has characters that a header can't have.
        InvalidPlan: A file can't be read.
    """
    mounted = environment.get(CREDENTIALS_DIR, "")
    if mounted and (token := _read(Path(mounted) / VARIABLES[0])):
        return _checked(token, f"the directory {mounted}")
    if environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return ""
    for name in VARIABLES:
        if token := environment.get(name, "").strip():
            return _checked(token, name)
    path = _expanded(environment.get("HF_TOKEN_PATH") or _default_path(environment), environment)
    return _checked(_read(Path(path)), path) if path else ""


def _default_path(environment: Mapping[str, str]) -> str:
    if environment.get("HF_HOME"):
        return f"{environment['HF_HOME']}/token"
    cache = environment.get("XDG_CACHE_HOME") or (f"{environment['HOME']}/.cache" if environment.get("HOME") else "")
    return f"{cache}/huggingface/token" if cache else ""


def _expanded(path: str, environment: Mapping[str, str]) -> str:
    """Returns a path with the home directory for ``~``, and with the values of variables, as ``huggingface_hub`` does.

    Variables without a value stay as they are, and so does ``~`` where no home directory is known.
    """
    home = environment.get("HOME", "")
    if home and (path == "~" or path.startswith("~/")):
        path = home + path[1:]
    return _VARIABLE.sub(lambda match: environment.get(match[1] or match[2], match[0]), path)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_BYTES).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        raise InvalidPlan(f"The hub's token in {path} can't be read: {type(error).__name__}.") from error


def _checked(token: str, place: str) -> str:
    if token and not _TOKEN.fullmatch(token):
        raise CredentialsMissing(
            f"The hub's token in {place} can't be sent: it has blanks, line ends or characters other than ASCII.",
            remedy="Set HF_TOKEN to the token as the hub issued it: one line, without quotes and blanks.",
        )
    return token
