"""Encoding, splitting and redacting URLs, and S3 addressing, without urllib: its import would slow down a cache hit.

Percent-encoding follows the rule of AWS Signature Version 4, because signatures are computed over exactly this form:
UTF-8, and all bytes but ``A-Z a-z 0-9 - _ . ~`` as ``%XX`` in upper case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from tonnage.contract import AddressingStyle

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
_URL = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.DOTALL
)
_ENCODED = rb"%([0-9A-Fa-f]{2})"
_DNS_BUCKET = r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"
_LEGACY_BUCKET = r"[A-Za-z0-9._-]{3,255}"
_REGION = r"[a-z0-9-]{1,64}"
_REGION_OF_A_STORE = r"[A-Za-z0-9._-]{1,64}"
_REPO = r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_REVISION = r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}"
_AWS_HOST = (
    r"s3(?P<fips>-fips)?(?:[.-](?P<dualstack>dualstack))?(?:-external-1|[.-](?P<region>[a-z]+-[a-z0-9-]+-\d+))?"
    r"\.amazonaws\.(?:com(?:\.cn)?|eu)(?::\d+)?"
)
_PARTITIONS = (
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov"),
)
DEFAULT_REGION = "us-east-1"
"""The region to sign for if none is configured. AWS responds with the right one; most other stores ignore it."""


class SplitUrl(NamedTuple):
    """The parts of a URL. ``host`` includes the port; ``query`` has no question mark; the fragment is dropped."""

    scheme: str
    userinfo: str
    host: str
    path: str
    query: str


def quote(text: str, *, safe: str = "") -> str:
    """Percent-encodes all characters but the unreserved ones and those in ``safe``."""
    kept = _UNRESERVED | frozenset(safe.encode())
    return "".join(chr(byte) if byte in kept else f"%{byte:02X}" for byte in text.encode())


def quote_key(key: str) -> str:
    """Percent-encodes an object's key for a URL path; slashes are kept."""
    return quote(key, safe="/")


def unquote(text: str, *, plus: bool = False) -> str:
    """Decodes ``%XX``; with ``plus``, also a plus sign to a space. Bytes that aren't UTF-8 become U+FFFD."""
    if plus:
        text = text.replace("+", " ")
    decoded = re.sub(_ENCODED, lambda match: bytes.fromhex(match[1].decode()), text.encode())
    return decoded.decode("utf-8", "replace")


def split_url(url: str) -> SplitUrl | None:
    """Returns the parts of an absolute URL, or None if it is not one. The scheme is in lower case."""
    match = _URL.fullmatch(url)
    if match is None or not match["authority"]:
        return None
    userinfo, _, host = match["authority"].rpartition("@")
    query = match["rest"].partition("#")[0].removeprefix("?")
    return SplitUrl(match["scheme"].lower(), userinfo, host, match["path"], query)


_DEFAULT_PORTS = {"http": "80", "https": "443"}


def host_header(parts: SplitUrl) -> str:
    """Returns the value of the Host header: the host, with the port unless it is the scheme's."""
    host, colon, port = parts.host.rpartition(":")
    is_default = colon and port == _DEFAULT_PORTS.get(parts.scheme) and not host.endswith(":")
    return (host if is_default else parts.host).lower()


def host_and_port(parts: SplitUrl) -> str:
    """Returns the host with its port, also if it is the scheme's, as ``localhost:443``."""
    return parts.host if re.search(r":\d+$", parts.host) else f"{parts.host}:{_DEFAULT_PORTS.get(parts.scheme, '')}"


def redact_url(url: str) -> str:
    """Returns the URL without user information, query and fragment. It identifies the object and is safe to log."""
    parts = split_url(url)
    if parts is None:
        return url.partition("?")[0].rpartition("@")[2]
    return f"{parts.scheme}://{parts.host}{parts.path}"


def is_presigned(url: str) -> bool:
    """Whether the URL has a signature in its query, and so is a secret."""
    parts = split_url(url)
    if parts is None:
        return False
    names = {item.partition("=")[0].lower() for item in parts.query.split("&")}
    return not names.isdisjoint({"x-amz-signature", "x-goog-signature", "signature", "sig"})


def aws_endpoint(region: str, *, dualstack: bool = False, fips: bool = False) -> str:
    """Returns the URL of AWS's S3 endpoint in a region.

    Raises:
        InvalidPlan: The region's name is not valid.
    """
    check_region(region, aws=True)
    domain = next((suffix for prefix, suffix in _PARTITIONS if region.startswith(prefix)), "amazonaws.com")
    service = ("s3-fips" if fips else "s3") + (".dualstack" if dualstack else "")
    return f"https://{service}.{region}.{domain}"


def is_repo(text: str) -> bool:
    """Whether a text is the name of a repository on a hub: ``organization/model``, or a name alone."""
    return re.fullmatch(_REPO, text) is not None and ".." not in text and not text.endswith(".git")


def is_hub_revision(text: str) -> bool:
    """Whether a text can be a branch, a tag, a reference such as ``refs/pr/3``, or a commit."""
    return re.fullmatch(_HUB_REVISION, text) is not None and ".." not in text


def check_region(region: str, *, aws: bool) -> None:
    """Checks a region's name, which becomes part of host names and signatures.

    Raises:
        InvalidPlan: The name is not valid.
    """
    if not re.fullmatch(_REGION if aws else _REGION_OF_A_STORE, region):
        raise InvalidPlan(
            f"{region[:64]!r} is not a valid region.",
            remedy="Correct --region, AWS_REGION or the region in AWS's files: a name like us-east-1, without quotes.",
        )


class AwsHost(NamedTuple):
    """The properties of a host of AWS's S3. ``region`` is empty for the global host, s3.amazonaws.com."""

    region: str
    dualstack: bool
    fips: bool


def match_aws_host(endpoint: str) -> AwsHost | None:
    """Returns the properties of the endpoint's host, or None if it isn't one of AWS's S3 in public networks."""
    parts = split_url(endpoint)
    match = re.fullmatch(_AWS_HOST, parts.host.lower()) if parts else None
    return AwsHost(match["region"] or "", bool(match["dualstack"]), bool(match["fips"])) if match else None


def normalize_endpoint(endpoint: str) -> str:
    """Returns ``check_endpoint`` of a custom endpoint; an empty one stays empty."""
    return check_endpoint(endpoint) if endpoint else ""


def check_endpoint(endpoint: str) -> str:
    """Returns a custom endpoint without trailing slashes, its host in ASCII.

    Raises:
        InvalidPlan: It is not an http or https URL, or has a user, query or fragment. The message has no secrets.
    """
    endpoint = endpoint.strip()
    parts = split_url(endpoint)
    if parts is None or parts.scheme not in {"http", "https"}:
        raise InvalidPlan(f"The endpoint {redact_url(endpoint)!r} must be an http:// or https:// URL.")
    if parts.userinfo or parts.query or "#" in endpoint:
        raise InvalidPlan(f"The endpoint {redact_url(endpoint)!r} must not have a user, query or fragment.")
    host = ascii_host(parts.host)
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]%-]+", host) or re.search(r"[\x00-\x20\x7f]", parts.path):
        raise InvalidPlan(f"The endpoint {redact_url(endpoint)!r} has characters that a URL can't have.")
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def ascii_host(host: str) -> str:
    """Returns a host name as it is sent and signed: names of other characters than ASCII in Punycode.

    Raises:
        InvalidPlan: The name can't be converted.
    """
    if host.isascii():
        return host
    name, colon, port = host.partition(":")
    try:
        return name.encode("idna").decode() + colon + port
    except UnicodeError as error:
        raise InvalidPlan(f"{host!r} is not a valid host name.") from error


def check_bucket(bucket: str, *, aws: bool) -> None:
    """Checks a bucket's name. The rules for stores other than AWS are less strict.

    Raises:
        InvalidPlan: The name is not valid.
    """
    if aws and bucket.endswith("--x-s3"):
        raise InvalidPlan(f"{bucket} is a directory bucket (S3 Express One Zone), which Tonnage does not support.")
    if bucket.startswith("arn:"):
        raise InvalidPlan(f"{bucket!r} is an ARN, which Tonnage does not support: use the access point's alias.")
    valid = re.fullmatch(_LEGACY_BUCKET, bucket) if aws else bucket and not re.search(r"[/\x00-\x20?#]", bucket)
    if not valid or bucket in {".", ".."}:
        raise InvalidPlan(f"{bucket!r} is not a valid bucket name.")


def bucket_url(endpoint: str, bucket: str, style: AddressingStyle, *, aws: bool) -> str:
    """Returns the base URL of a bucket's keys, without a trailing slash.

    ``auto`` is virtual-hosted style for AWS, unless the bucket's name has dots, which AWS's TLS certificate does not
    match, and path style elsewhere.
    """
    virtual = style == "virtual" or (style == "auto" and aws and re.fullmatch(_DNS_BUCKET, bucket) is not None)
    if not virtual:
        return f"{endpoint}/{quote(bucket)}"
    scheme, _, rest = endpoint.partition("://")
    return f"{scheme}://{bucket}.{rest}"
