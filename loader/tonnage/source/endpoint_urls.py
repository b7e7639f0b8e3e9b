"""URLs without urllib, which costs milliseconds that a cache hit has not: quoting, splitting, S3 addressing, redaction.

Quoting follows S3's own rule (UTF-8, all but ``A-Z a-z 0-9 - _ . ~`` as ``%XX`` in capitals), for signatures are made
over exactly this form.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tonnage.contract import AddressingStyle
from tonnage.errors import InvalidPlan

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
_URL = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.DOTALL
)
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_DNS_BUCKET_WITH_DOTS = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_PARTITIONS = (
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov"),
)
DEFAULT_REGION = "us-east-1"
"""What a request is signed for where nothing names a region; AWS answers with the right one, others don't mind."""


class SplitUrl(NamedTuple):
    """The parts of a URL. ``host`` has its port; ``query`` is without the question mark, fragments are dropped."""

    scheme: str
    userinfo: str
    host: str
    path: str
    query: str


def quote(text: str, *, safe: str = "") -> str:
    """Returns ``text`` percent-encoded, but for unreserved characters and those of ``safe``."""
    kept = _UNRESERVED | frozenset(safe.encode())
    return "".join(chr(byte) if byte in kept else f"%{byte:02X}" for byte in text.encode())


def quote_key(key: str) -> str:
    """Returns an object's key as a URL path has it: slashes stay, everything else that is special is encoded."""
    return quote(key, safe="/")


def unquote(text: str, *, plus: bool = False) -> str:
    """Decodes ``%XX``; with ``plus``, also a plus sign to a space. Bytes that aren't UTF-8 become U+FFFD."""
    if plus:
        text = text.replace("+", " ")
    decoded = _ENCODED.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode())
    return decoded.decode("utf-8", "replace")


def split_url(url: str) -> SplitUrl | None:
    """Returns the parts of an absolute URL, None where it isn't one. The scheme is in lower case."""
    match = _URL.fullmatch(url)
    if match is None or not match["authority"]:
        return None
    userinfo, _, host = match["authority"].rpartition("@")
    query = match["rest"].partition("#")[0].removeprefix("?")
    return SplitUrl(match["scheme"].lower(), userinfo, host, match["path"], query)


def escape_unprintable(text: str) -> str:
    """Returns the text with whatever can't be printed as an escape, so that a key can't forge lines of a log."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def redact_url(url: str) -> str:
    """Returns the URL without user information, query and fragment: what may be shown, and what names an object."""
    parts = split_url(url)
    if parts is None:
        return url.partition("?")[0].rpartition("@")[2]
    return f"{parts.scheme}://{parts.host}{parts.path}"


def is_presigned(url: str) -> bool:
    """Whether the URL carries a signature in its query, and so is a secret."""
    parts = split_url(url)
    if parts is None:
        return False
    names = {item.partition("=")[0].lower() for item in parts.query.split("&")}
    return not names.isdisjoint({"x-amz-signature", "x-goog-signature", "signature", "sig"})


def aws_endpoint(region: str, *, dualstack: bool = False, fips: bool = False) -> str:
    """Returns AWS's own S3 endpoint of a region.

    Raises:
        InvalidPlan: This can't be a region's name.
    """
    if not _REGION.fullmatch(region):
        raise InvalidPlan(f"{region!r} is not the name of a region.")
    domain = next((suffix for prefix, suffix in _PARTITIONS if region.startswith(prefix)), "amazonaws.com")
    service = ("s3-fips" if fips else "s3") + (".dualstack" if dualstack else "")
    return f"https://{service}.{region}.{domain}"


def check_endpoint(endpoint: str) -> str:
    """Returns a custom endpoint without trailing slashes.

    Raises:
        InvalidPlan: It is not a plain http or https URL. The message repeats nothing that could be a secret.
    """
    parts = split_url(endpoint)
    if parts is None or parts.scheme not in {"http", "https"}:
        raise InvalidPlan(f"The endpoint {redact_url(endpoint)!r} must be a URL beginning with http:// or https://.")
    if parts.userinfo or parts.query or "#" in endpoint:
        raise InvalidPlan(f"The endpoint {redact_url(endpoint)!r} must have no user, query or fragment.")
    return f"{parts.scheme}://{parts.host}{parts.path.rstrip('/')}"


def check_bucket(bucket: str, *, aws: bool) -> None:
    """Refuses what can't be a bucket's name; other stores than AWS are freer.

    Raises:
        InvalidPlan: It is not one.
    """
    if aws and bucket.endswith("--x-s3"):
        raise InvalidPlan(f"{bucket} is a directory bucket (S3 Express), which Tonnage does not read.")
    good = _DNS_BUCKET_WITH_DOTS.fullmatch(bucket) if aws else bucket and not re.search(r"[/\x00-\x20?#]", bucket)
    if not good or bucket in {".", ".."}:
        raise InvalidPlan(f"{bucket!r} is not the name of a bucket.")


def bucket_url(endpoint: str, bucket: str, style: AddressingStyle, *, aws: bool) -> str:
    """Returns the URL below which a bucket's keys lie, without a trailing slash.

    ``auto`` puts the bucket into the host name for AWS, unless dots in it would break the certificate's match, and into
    the path elsewhere.
    """
    virtual = style is AddressingStyle.VIRTUAL
    if style is AddressingStyle.AUTO:
        virtual = aws and _DNS_BUCKET.fullmatch(bucket) is not None
    if not virtual:
        return f"{endpoint}/{quote(bucket)}"
    scheme, _, rest = endpoint.partition("://")
    return f"{scheme}://{bucket}.{rest}"
