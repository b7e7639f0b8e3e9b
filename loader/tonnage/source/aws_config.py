"""Endpoint, region and CA bundle, from the source, the environment, mounted files and AWS's config file.

botocore is imported only if the config file has a setting that is needed: the import takes longer than a cache hit.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import InvalidPlan, TLSVerificationFailed
from tonnage.source.endpoint_urls import DEFAULT_REGION, aws_endpoint, check_endpoint, split_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tonnage.contract import S3Source

CREDENTIALS_DIR = "TONNAGE_CREDENTIALS_DIR"
"""Variable for the path of a directory, usually a mounted Secret, with a file for each of AWS's variables."""

_MOUNTED_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
)
_MAX_VALUE_BYTES = 64 * 1024
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_AWS_HOST = re.compile(
    r"(?:.*\.)?s3[.-](?:fips\.|dualstack\.)*(?P<region>[a-z]+-[a-z0-9-]+-\d+)\.amazonaws\.com(?:\.cn)?(?::\d+)?"
)


class S3Settings(NamedTuple):
    """How to reach a bucket. ``aws`` is True for AWS itself, whose host names contain bucket and region."""

    endpoint: str
    region: str
    aws: bool
    ca_bundle: str
    default_endpoint: bool
    """Whether the endpoint was derived from the region, so that another region has another endpoint."""
    dualstack: bool = False
    fips: bool = False

    def with_region(self, region: str) -> S3Settings:
        endpoint = self.endpoint
        if self.default_endpoint:
            endpoint = aws_endpoint(region, dualstack=self.dualstack, fips=self.fips)
        return self._replace(region=region, endpoint=endpoint)


def s3_settings(source: S3Source, environment: Mapping[str, str]) -> S3Settings:
    """Returns how to reach a source. Its own fields take precedence over mounted files, variables and the config file.

    Raises:
        InvalidPlan: The endpoint or the region is not valid.
        TLSVerificationFailed: The requested CA bundle does not exist.
    """
    values = {**environment, **mounted_values(environment)}
    config = _ConfigFile(values)
    endpoint = source.endpoint
    if not endpoint and values.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        endpoint = values.get("AWS_ENDPOINT_URL_S3") or values.get("AWS_ENDPOINT_URL") or config.endpoint()
    endpoint = check_endpoint(endpoint) if endpoint else ""
    parts = split_url(endpoint)
    aws_host = _AWS_HOST.fullmatch(parts.host.lower()) if parts else None
    region = source.region or (aws_host["region"] if aws_host else "")
    region = region or values.get("AWS_REGION") or values.get("AWS_DEFAULT_REGION") or config.region()
    region = region or DEFAULT_REGION
    dualstack = values.get("AWS_USE_DUALSTACK_ENDPOINT", "").lower() == "true"
    fips = values.get("AWS_USE_FIPS_ENDPOINT", "").lower() == "true"
    return S3Settings(
        endpoint=endpoint or aws_endpoint(region, dualstack=dualstack, fips=fips),
        region=region,
        aws=not endpoint or aws_host is not None,
        ca_bundle=find_ca_bundle(source.ca_bundle, values),
        default_endpoint=not endpoint,
        dualstack=dualstack,
        fips=fips,
    )


def mounted_values(environment: Mapping[str, str]) -> dict[str, str]:
    """Reads the values of the mounted directory, on each call; returns an empty dict if none is configured.

    All files are read from one generation of a mounted Secret, so that keys of two rotations never mix.

    Raises:
        InvalidPlan: The directory is missing, or one of its files can't be read.
    """
    name = environment.get(CREDENTIALS_DIR, "")
    if not name:
        return {}
    directory = Path(name)
    if not directory.is_dir():
        raise InvalidPlan(f"{CREDENTIALS_DIR} is set to {name}, which is not a directory.")
    generation = directory / "..data"
    if generation.is_dir():
        directory = generation.resolve()
    values = {}
    for variable in _MOUNTED_VARIABLES:
        try:
            with (directory / variable).open("rb") as file:
                value = file.read(_MAX_VALUE_BYTES).decode().strip()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InvalidPlan(f"{name}/{variable} can't be read: {type(error).__name__}.") from error
        if value:
            values[variable] = value
    return values


def find_ca_bundle(requested: str, environment: Mapping[str, str]) -> str:
    """Returns the PEM file with the CA certificates to trust; empty if this machine has none.

    ``requested`` takes precedence over ``AWS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE`` and the system's
    bundle. The path is always passed to libcurl, because the default of its wheel exists on some distributions only.

    Raises:
        TLSVerificationFailed: The file from ``requested`` or from a variable does not exist.
    """
    for place, name in (
        ("the source", requested),
        *(
            (variable, environment.get(variable, ""))
            for variable in ("AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
        ),
    ):
        if name:
            if not Path(name).is_file():
                raise TLSVerificationFailed(f"The CA bundle {name}, set by {place}, is not a file.")
            return name
    return next((name for name in _SYSTEM_BUNDLES if Path(name).is_file()), "") or _botocore_bundle()


def _botocore_bundle() -> str:
    """Returns the CA bundle of botocore, for images without a system bundle; empty if there is none."""
    import importlib.util  # needed only if the system has no bundle

    spec = importlib.util.find_spec("botocore")
    bundle = Path(spec.origin).with_name("cacert.pem") if spec is not None and spec.origin else None
    return str(bundle) if bundle is not None and bundle.is_file() else ""


class _ConfigFile:
    """AWS's config file. Parsed by botocore, which is imported only if the text of the file mentions the setting."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._text: str | None = None

    def endpoint(self) -> str:
        if "endpoint_url" not in self._read_text():
            return ""
        from botocore.configprovider import ConfiguredEndpointProvider
        from botocore.session import Session

        with _translate_errors():
            session = Session()
            scoped = session.get_scoped_config()
            found = ConfiguredEndpointProvider(
                full_config=session.full_config, scoped_config=scoped, client_name="s3", environ=dict(self._environment)
            ).provide()
        return found or ""

    def region(self) -> str:
        if "region" not in self._read_text():
            return ""
        from botocore.session import Session

        with _translate_errors():
            found = Session().get_config_variable("region")
        return found or ""

    def _read_text(self) -> str:
        if self._text is None:
            path = Path(self._environment.get("AWS_CONFIG_FILE") or "~/.aws/config")
            try:
                self._text = path.expanduser().read_text(errors="replace")
            except (OSError, RuntimeError):  # RuntimeError: the user has no home directory, as in some containers
                self._text = ""
        return self._text


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raises botocore's errors about the config file as ``InvalidPlan``."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise InvalidPlan(f"AWS's config file can't be used: {type(error).__name__}: {error}.") from error
