"""Which URL is that of an object of an entry, so that a peer sends requests nowhere else. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.peers import MAX_URL_CHARACTERS
from tonnage.contract.revision import HUB_PLACE
from tonnage.source.endpoint_urls import match_aws_host, quote, quote_key, split_url

if TYPE_CHECKING:
    from tonnage.cache.peer_ranges import EntrySource

_SIGNATURE = frozenset(
    {
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-security-token",
        "x-amz-signature",
        "x-amz-signedheaders",
        "x-amz-request-payer",
        "versionid",
    }
)
"""Names in the query of a presigned request to S3."""


def public_url(source: EntrySource) -> str:
    """Returns the URL at which an object can be requested by those who need no credentials; empty for S3.

    Args:
        source: An object of HTTP or a hub.
    """
    if not source.place:
        return source.key
    if source.place.startswith(HUB_PLACE):
        return f"{source.place.removeprefix(HUB_PLACE)}/resolve/{source.version_id}/{quote_key(source.key)}"
    return ""


def is_url_of(url: str, source: EntrySource) -> bool:
    """Returns whether a URL is that of the object, with no more than a signature of S3 in its query.

    Args:
        url: From a caller.
        source: The object, as this node's entry records it.
    """
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or "#" in url or " " in url:
        return False
    parts = split_url(url)
    if parts is None or parts.userinfo or parts.scheme not in {"http", "https"}:
        return False
    public = public_url(source)
    if public:
        return url == public
    names = {item.partition("=")[0].lower() for item in parts.query.split("&") if item}
    if not names <= _SIGNATURE:
        return False
    return f"{parts.scheme}://{parts.host.lower()}{parts.path}" in _s3_urls(source, parts.host.lower())


def _s3_urls(source: EntrySource, host: str) -> set[str]:
    """Returns the URLs of an object of S3. At AWS, the host must be one of its own, in any region."""
    key = quote_key(source.key)
    endpoint, slash, bucket = source.place.rpartition("/")
    if slash:
        scheme, _, rest = endpoint.partition("://")
        return {f"{endpoint}/{quote(bucket)}/{key}", f"{scheme}://{bucket}.{rest}/{key}"}
    urls = set()
    if match_aws_host(f"https://{host}"):
        urls.add(f"https://{host}/{quote(bucket)}/{key}")
    if match_aws_host(f"https://{host.removeprefix(bucket + '.')}") and host.startswith(f"{bucket}."):
        urls.add(f"https://{host}/{key}")
    return urls
