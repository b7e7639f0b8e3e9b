"""What AWS's config and credentials files configure for S3: read by botocore's loader of files, without its session.

The loader of files is imported in a few hundredths of a second, a session in half a second, which is longer than a
cache hit may take. Which variable or file takes precedence is as in a session.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from botocore.configloader import load_config, raw_config_parse
from botocore.exceptions import BotoCoreError, ConfigNotFound, ProfileNotFound

from tonnage.errors import InvalidPlan
from tonnage.source.aws_config import AwsSettings, aws_files
from tonnage.source.credential_errors import answer_error

if TYPE_CHECKING:
    from collections.abc import Mapping

_Profile = dict[str, Any]


def read_settings(values: Mapping[str, str]) -> AwsSettings:
    """Returns what variables and AWS's files configure.

    Args:
        values: The variables, as ``aws_values`` returns them.

    Raises:
        CredentialsMissing: The files don't have the profile.
        InvalidPlan: A file can't be parsed, or names a section of services that it doesn't have.
    """
    try:
        return _read(values)
    except BotoCoreError as error:
        kinds = [each.__name__ for each in type(error).__mro__]
        answer = {"kinds": kinds, "text": str(error), "file": "", "method": "", "program": "", "operation": ""}
        raise answer_error(answer, values) from error


def _read(values: Mapping[str, str]) -> AwsSettings:
    config = _load(values)
    profile = _select_profile(config, values)
    s3 = _section(profile, "s3")

    def setting(variable: str, name: str) -> str:
        return str(values.get(variable, profile.get(name)) or "")

    ignored = _is_true(setting("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls"))
    dualstack = values.get("AWS_USE_DUALSTACK_ENDPOINT", profile.get("use_dualstack_endpoint"))
    return AwsSettings(
        region=setting("AWS_DEFAULT_REGION", "region"),
        endpoint="" if ignored else _endpoint(config, profile, values),
        ca_bundle=setting("AWS_CA_BUNDLE", "ca_bundle"),
        addressing_style=str(s3.get("addressing_style") or ""),
        dualstack=_is_true(s3.get("use_dualstack_endpoint") if dualstack is None else dualstack),
        fips=_is_true(setting("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint")),
    )


def _load(values: Mapping[str, str]) -> dict[str, Any]:
    """Returns the config file's sections. Profiles of the credentials file are among its own, and take precedence."""
    config: dict[str, Any] = {"profiles": {}}
    config_file, credentials_file = aws_files(values)
    with contextlib.suppress(ConfigNotFound):
        config = load_config(config_file)
    with contextlib.suppress(ConfigNotFound):
        for name, section in raw_config_parse(credentials_file).items():
            config["profiles"].setdefault(name, {}).update(section)
    return config


def _select_profile(config: Mapping[str, Any], values: Mapping[str, str]) -> _Profile:
    name = values.get("AWS_DEFAULT_PROFILE", values.get("AWS_PROFILE"))
    profiles: dict[str, _Profile] = config["profiles"]
    if name is None:
        return profiles.get("default", {})
    if name not in profiles:
        raise ProfileNotFound(profile=name)
    return profiles[name]


def _endpoint(config: Mapping[str, Any], profile: _Profile, values: Mapping[str, str]) -> str:
    if given := values.get("AWS_ENDPOINT_URL_S3") or values.get("AWS_ENDPOINT_URL"):
        return given
    services: _Profile = {}
    if (name := profile.get("services")) is not None:
        services = config.get("services", {}).get(name) or {}
        if not services:
            raise InvalidPlan(
                f'AWS\'s config file has no section "services {name}", which the profile names.',
                remedy="Add the section, or remove services from the profile.",
            )
    return str(_section(services, "s3").get("endpoint_url") or profile.get("endpoint_url") or "")


def _section(values: _Profile, name: str) -> _Profile:
    """Returns the nested values of a setting; empty if it has none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _is_true(text: object) -> bool:
    return str(text or "").lower() == "true"
