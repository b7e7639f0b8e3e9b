"""Calls in the manner of KServe's storage initializer: pairs of source and folder, and its variables.

KServe passes ``SOURCE FOLDER [SOURCE FOLDER]...`` and names servers in variables of its own, or in JSON of a storage
secret. What the command line or the usual variables have takes precedence. Pure, except that it changes its arguments.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from tonnage.cli.parser import UsageError
from tonnage.cli.plan_arguments import is_path
from tonnage.contract.plan import AddressingStyle
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

_SECRET_FIELDS = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "region": "AWS_DEFAULT_REGION",
    "ca_bundle": "AWS_CA_BUNDLE",
    "verify_ssl": "S3_VERIFY_SSL",
    "anonymous": "awsAnonymousCredential",
}
"""Fields of a storage secret of type s3, and the variables that they are in KServe's initializer."""

_STORAGE_CONFIGS = ("STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG")
_MAX_CONFIG_CHARACTERS = 64 << 10
_CA_FILE = "cabundle.crt"


def loads_of(arguments: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Yields the arguments of one load for each folder of ``SOURCE... FOLDER``, in order.

    Raises:
        UsageError: A folder has no source, or the last source no folder, or there are a cache or a plan too.
    """
    command = f"tonnage {arguments.command}"
    for option in ("into", "cache", "plan"):
        if getattr(arguments, option) and option not in arguments.from_environment:
            raise UsageError(f"--{option} and a folder behind SOURCE can't be combined.", command=command)
    groups: list[tuple[list[str], str]] = []
    sources: list[str] = []
    for word in arguments.sources:
        if not is_path(word):
            sources.append(_with_revision(word))
            continue
        if not sources:
            raise UsageError(f"{word!r} is a folder, and no SOURCE is before it.", command=command)
        groups.append((sources, word))
        sources = []
    if sources:
        raise UsageError(f"{sources[-1]!r} has no folder behind it.", command=command)
    from_environment = [name for name in arguments.from_environment if name not in {"into", "cache", "plan"}]
    settings = vars(arguments) | {"cache": None, "plan": None, "from_environment": from_environment}
    for group, folder in groups:
        yield argparse.Namespace(**settings | {"sources": group, "into": folder})


def translate_environment(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> list[str]:
    """Applies KServe's variables to arguments and environment. Returns sentences for the user.

    Raises:
        InvalidPlan: A storage secret is not JSON, or is of a type that can't be loaded from.
    """
    config: dict[str, str] = {}
    for variable in _STORAGE_CONFIGS:
        config |= _read_config(variable, environment.get(variable, ""))
    kind = config.get("type", "s3")
    if kind not in {"s3", "hf"}:
        raise InvalidPlan(f"The storage secret has type {kind[:40]!r}; models are loaded from s3, hf and http(s).")
    for field, variable in _SECRET_FIELDS.items():
        if config.get(field):
            environment[variable] = config[field]
    bundles = environment.get("CA_BUNDLE_VOLUME_MOUNT_POINT", "")
    if environment.get("CA_BUNDLE_CONFIGMAP_NAME") and bundles and not environment.get("AWS_CA_BUNDLE"):
        environment["AWS_CA_BUNDLE"] = f"{bundles.rstrip('/')}/{_CA_FILE}"
    if environment.get("awsAnonymousCredential", "").lower() == "true":
        arguments.anonymous = True
    if environment.get("S3_USER_VIRTUAL_BUCKET", "").lower() == "true":
        arguments.addressing_style = arguments.addressing_style or AddressingStyle.VIRTUAL
    if environment.get("S3_VERIFY_SSL", "").lower() in {"0", "false"}:
        return ["S3_VERIFY_SSL is ignored: certificates are always verified. Name your CA with AWS_CA_BUNDLE."]
    return []


def _read_config(variable: str, text: str) -> dict[str, str]:
    if not text.strip():
        return {}
    try:
        found = json.loads(text[:_MAX_CONFIG_CHARACTERS])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidPlan(f"{variable} is not a JSON object, as KServe writes it.")
    return {str(name): value for name, value in found.items() if isinstance(value, str)}


def _with_revision(source: str) -> str:
    """Returns a source as Tonnage writes it: KServe separates a repository's revision with a colon."""
    repository, colon, revision = source[5:].partition(":")
    if source[:5].lower() != "hf://" or not colon or "@" in source:
        return source
    return f"hf://{repository}@{revision}"
