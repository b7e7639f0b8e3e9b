"""Configuration of the processes: the installation's YAML file, and the addresses to listen on."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.signing import MIN_KEY_BYTES, SigningKeys


class ConfigError(Exception):
    """The configuration is invalid; the message names the file, the field and the error."""


@dataclass(frozen=True)
class ServerOptions:
    """Where a process listens. Port 0: any free port. Without a certificate: plain HTTP, for a laptop.

    ``client_ca`` is the CA of the clients that may send admission reviews, ``client_names`` their certificates' common
    names; empty: every name.
    """

    host: str = "0.0.0.0"  # noqa: S104 - a container's own network
    port: int = 8443
    health_port: int = 8080
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    client_names: tuple[str, ...] = ()


def read_installation(path: Path, *, with_secrets: bool = True) -> Installation:
    """Reads the installation's file.

    Args:
        path: The file.
        with_secrets: Whether to read the signing keys and the CA file that it names, too.

    Raises:
        ConfigError: A file is missing or malformed, or a field is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text())
        installation = Installation.model_validate(content)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
    if not with_secrets:
        return installation
    installation = installation.model_copy(
        update={"signing": read_signing_keys(path.parent, installation.signing_folder)}
    )
    if ca_file := installation.reports.ca_file:
        return installation.with_report_ca(read_ca(Path(ca_file)))
    return installation


def read_signing_keys(base: Path, folder: str) -> SigningKeys:
    """Returns the keys in a folder: ``current``, and ``previous`` if that file exists and is not empty.

    Args:
        base: The folder of the installation's file, for a relative path.
        folder: The folder with the keys.

    Raises:
        ConfigError: There is no current key, or a key is too short to be one.
    """
    if not folder:
        raise ConfigError(
            "signingFolder is not set: name a folder with a file current of at least "
            f"{MIN_KEY_BYTES} random characters. Controller and webhook need the same one."
        )
    keys = []
    for name in ("current", "previous"):
        path = base / folder / name
        try:
            key = path.read_bytes().strip()
        except FileNotFoundError:
            key = b""
        except OSError as error:
            raise ConfigError(f"The signing key {path} can't be read: {error.strerror}") from error
        if key or name == "current":
            if len(key) < MIN_KEY_BYTES:
                raise ConfigError(f"The signing key {path} is missing, or shorter than {MIN_KEY_BYTES} bytes.")
            keys.append(key)
    return SigningKeys(tuple(keys))


def read_ca(path: Path) -> str:
    """Returns the content of a PEM file with at least one CA.

    Raises:
        ConfigError: The file is missing, or holds no CA.
    """
    try:
        pem = path.read_text()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except OSError as error:
        # ssl.SSLError is an OSError too.
        raise ConfigError(f"{path} can't be read as a CA: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no CA in PEM: {error}") from error
    return pem
