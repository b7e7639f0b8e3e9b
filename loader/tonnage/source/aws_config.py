"""How to reach S3: from the source, variables, mounted files and AWS's config and credentials files.

botocore's loader of files reads these, and is imported only if they mention a setting of S3.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.contract import AddressingStyle
from tonnage.errors import InvalidPlan, TLSVerificationFailed
from tonnage.source.endpoint_urls import (
    DEFAULT_REGION,
    aws_endpoint,
    check_region,
    match_aws_host,
    normalize_endpoint,
)

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Callable, Iterator, Mapping

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
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SETTINGS = ("region", "endpoint_url", "ca_bundle", "addressing_style", "dualstack", "fips")
"""Words of which AWS's files have one if they configure how S3 is reached. The names of settings are in any case."""
_BLANK = " \t\r\n\ufeff"
"""White space around a value, and the mark that some editors put before a text."""


class AwsSettings(NamedTuple):
    """What variables and AWS's files configure for S3; empty or False where they configure nothing."""

    region: str = ""
    endpoint: str = ""
    ca_bundle: str = ""
    addressing_style: str = ""
    dualstack: bool = False
    fips: bool = False


class S3Settings(NamedTuple):
    """How to reach a bucket. ``aws`` is True for AWS itself, whose host names contain bucket and region.

    ``configured_endpoint`` is the endpoint that was configured, empty if it was derived from the region.
    """

    endpoint: str
    region: str
    aws: bool
    ca_bundle: str
    configured_endpoint: str
    addressing_style: AddressingStyle = AddressingStyle.AUTO
    dualstack: bool = False
    fips: bool = False

    def with_region(self, region: str) -> S3Settings:
        endpoint = self.endpoint
        if self.aws:
            endpoint = aws_endpoint(region, dualstack=self.dualstack, fips=self.fips)
        return self._replace(region=region, endpoint=endpoint)


def s3_settings(
    source: S3Source, environment: Mapping[str, str], ask: Callable[[], AwsSettings] | None = None
) -> S3Settings:
    """Returns how to reach a source. Its own fields take precedence over mounted files, variables and AWS's files.

    Args:
        source: The source.
        environment: The variables.
        ask: Returns what the variables and AWS's files configure; None: the files are not read.

    Raises:
        InvalidPlan: The endpoint or the region is not valid, or AWS's files can't be used.
        CredentialsMissing: AWS's files don't have the profile.
        TLSVerificationFailed: The requested CA bundle does not exist.
    """
    values = aws_values(environment)
    found = ask() if ask is not None and files_have_settings(values) else settings_from_variables(values)
    with _unquoted("The endpoint", given=bool(source.endpoint)):
        endpoint = normalize_endpoint(source.endpoint or found.endpoint.strip())
    host = match_aws_host(endpoint)
    region = (source.region or (host.region if host else "") or values.get("AWS_REGION", "") or found.region).strip()
    region = region or DEFAULT_REGION
    with _unquoted("The region", given=bool(source.region)):
        check_region(region, aws=not endpoint or host is not None)
    dualstack = host.dualstack if host else found.dualstack
    fips = host.fips if host else found.fips
    is_default = not endpoint or (host is not None and not host.region)
    style = source.addressing_style
    if style is AddressingStyle.AUTO and found.addressing_style in {"path", "virtual"}:
        style = AddressingStyle(found.addressing_style)
    return S3Settings(
        endpoint=aws_endpoint(region, dualstack=dualstack, fips=fips) if is_default else endpoint,
        region=region,
        aws=not endpoint or host is not None,
        ca_bundle=find_ca_bundle(source.ca_bundle, values, configured=found.ca_bundle),
        configured_endpoint=endpoint,
        addressing_style=style,
        dualstack=dualstack,
        fips=fips,
    )


@contextlib.contextmanager
def _unquoted(what: str, *, given: bool) -> Iterator[None]:
    """Takes the value out of an error about it, unless the plan has given it: it may be a misplaced secret."""
    try:
        yield
    except InvalidPlan as error:
        if given:
            raise
        message = f"{what} that a variable, a mounted file or AWS's configuration sets is not valid."
        raise InvalidPlan(message, remedy=error.remedy) from None


def settings_from_variables(values: Mapping[str, str]) -> AwsSettings:
    """Returns what variables alone configure, as botocore reads them."""
    ignored = values.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    endpoint = "" if ignored else values.get("AWS_ENDPOINT_URL_S3") or values.get("AWS_ENDPOINT_URL", "")
    return AwsSettings(
        region=values.get("AWS_DEFAULT_REGION", ""),
        endpoint=endpoint,
        ca_bundle=values.get("AWS_CA_BUNDLE", ""),
        dualstack=values.get("AWS_USE_DUALSTACK_ENDPOINT", "").lower() == "true",
        fips=values.get("AWS_USE_FIPS_ENDPOINT", "").lower() == "true",
    )


def files_have_settings(values: Mapping[str, str]) -> bool:
    """Whether AWS's files mention a setting of S3. If not, botocore need not read them."""
    return any(word in text for text in map(_read_text, aws_files(values)) for word in _SETTINGS)


def aws_files(values: Mapping[str, str]) -> list[str]:
    """Returns the paths of AWS's config and credentials files. They may not exist."""
    found = []
    for variable, default in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        path = values.get(variable) or f"~/.aws/{default}"
        home = values.get("HOME", "")
        if home and path.startswith("~/"):
            path = f"{home}/{path[2:]}"
        found.append(os.path.expanduser(path))  # noqa: PTH111  # the same path where the user has no home directory
    return found


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").lower()
    except (OSError, ValueError):
        return ""


def aws_values(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables, with the values of mounted files, and AWS's ones without white space around them.

    Raises:
        InvalidPlan: The mounted directory is missing, or one of its files can't be read.
    """
    values = {**environment, **mounted_values(environment)}
    return {name: value.strip(_BLANK) if name.startswith("AWS_") else value for name, value in values.items()}


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
                value = file.read(_MAX_VALUE_BYTES).decode().strip(_BLANK)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InvalidPlan(f"{name}/{variable} can't be read: {type(error).__name__}.") from error
        if value:
            values[variable] = value
    return values


def find_ca_bundle(requested: str, environment: Mapping[str, str], *, configured: str = "") -> str:
    """Returns the PEM file or directory with the CA certificates to trust; empty if this machine has none.

    ``requested`` takes precedence over ``AWS_CA_BUNDLE``, ``configured``, which is from AWS's files,
    ``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE``, ``SSL_CERT_DIR`` and the system's bundle. The path is
    always passed to libcurl, because the default of its wheel exists on some distributions only.

    The CAs in ``TONNAGE_CA_PEM`` are added to all of these but ``requested``: the operator sets it to those of the
    installation's administrator.

    Raises:
        TLSVerificationFailed: The file from ``requested``, from AWS's files or from a variable does not exist.
    """
    bundle = _find_ca_bundle(requested, environment, configured)
    added = environment.get("TONNAGE_CA_PEM", "").strip()
    return _with_added_cas(bundle, added).name if added and not requested.strip() else bundle


@functools.lru_cache(maxsize=8)
def _with_added_cas(bundle: str, added: str) -> tempfile._TemporaryFileWrapper[bytes]:
    """Returns a file with the CAs of a bundle and others. It is removed when the process ends."""
    import atexit
    import tempfile

    path = Path(bundle)
    try:
        files = sorted(path.glob("*.[0-9]")) if path.is_dir() else [path]
        parts = [each.read_bytes() for each in files] if bundle else []
        made = tempfile.NamedTemporaryFile(prefix="tonnage-ca-", suffix=".pem")  # noqa: SIM115
        atexit.register(made.close)
        made.write(b"\n".join([*parts, added.encode(), b""]))
        made.flush()
    except OSError as error:
        raise TLSVerificationFailed(
            f"The CAs in TONNAGE_CA_PEM can't be added to {bundle or 'a new bundle'}: {error.strerror or error}.",
            remedy="Set TMPDIR to a folder that this process may write to.",
        ) from error
    return made


def _find_ca_bundle(requested: str, environment: Mapping[str, str], configured: str) -> str:
    places = [("--ca-bundle (caBundle)", requested), ("AWS_CA_BUNDLE", environment.get("AWS_CA_BUNDLE", ""))]
    places.append(("ca_bundle in AWS's config file", configured))
    places += [(name, environment.get(name, "")) for name in _CA_VARIABLES]
    for place, name in places:
        if name.strip():
            path = Path(name.strip()).expanduser()
            if not path.is_file() and not path.is_dir():
                remedy = f"Correct or remove {place}: it must name a PEM file, or a directory of hashed certificates."
                raise TLSVerificationFailed(f"The CA bundle {path}, set by {place}, does not exist.", remedy=remedy)
            return str(path)
    return next((name for name in _SYSTEM_BUNDLES if Path(name).is_file()), "") or _botocore_bundle()


def _botocore_bundle() -> str:
    """Returns the CA bundle of botocore, for images without a system bundle; empty if there is none."""
    import importlib.util  # needed only if the system has no bundle

    spec = importlib.util.find_spec("botocore")
    bundle = Path(spec.origin).with_name("cacert.pem") if spec is not None and spec.origin else None
    return str(bundle) if bundle is not None and bundle.is_file() else ""
