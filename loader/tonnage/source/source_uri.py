"""Parses ``s3://…`` and ``https://…`` URIs of the command line into sources."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from msgspec import structs

from tonnage.contract import AddressingStyle, HttpSource, HubSource, S3Source
from tonnage.contract.plan import DEFAULT_COMPANION_PATTERNS, DEFAULT_TENSOR_PATTERNS
from tonnage.contract.selection import SAFETENSORS_SUFFIX
from tonnage.errors import InvalidPlan
from tonnage.source.endpoint_urls import check_endpoint, is_hub_revision, is_repo, redact_url, split_url, unquote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.contract import Source
    from tonnage.source.endpoint_urls import SplitUrl

_FILE_PATTERNS = tuple(
    pattern
    for pattern in (*DEFAULT_TENSOR_PATTERNS, f"*{SAFETENSORS_SUFFIX}", *DEFAULT_COMPANION_PATTERNS)
    if pattern.startswith("*.")
)
"""Endings of names that are those of files."""
_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_HUB_PAGE = re.compile(
    r"/(?P<repo>(?!datasets/|spaces/)[\w.-]+/[\w.-]+)(?:/(?:tree|blob|commit)/(?P<revision>[^/]+)(?:/.*)?)?", re.ASCII
)


def parse_sources(
    uris: Sequence[str],
    *,
    endpoint: str = "",
    region: str = "",
    addressing_style: AddressingStyle = AddressingStyle.AUTO,
    ca_bundle: str = "",
    anonymous: bool = False,
    requester_pays: bool = False,
) -> tuple[Source, ...]:
    """Parses URIs into sources. Keys of one bucket are combined in one source, and so are all URLs.

    ``s3://bucket`` and ``s3://bucket/prefix/`` mean all objects below; ``s3://bucket/key.tensors`` is one object, and
    so are the usual companions, such as ``s3://bucket/config.json``. Any other URI without a trailing slash is a prefix
    if the store has objects below it, and an object otherwise; its name doesn't matter: ``llama-3.1-8b`` is a prefix.

    Args:
        uris: The URIs.
        endpoint: URL of an S3 server; empty: the environment's, or AWS.
        region: Region of the buckets; empty: the environment's.
        addressing_style: Whether the bucket is part of the host name or of the path.
        ca_bundle: A PEM file of trusted CA certificates; empty: the environment's, or the system's.
        anonymous: Don't sign requests.
        requester_pays: Agree to pay for requests and transfer.

    Raises:
        InvalidPlan: There are no URIs, one is not valid, or one is given twice. The message contains no query.
    """
    if not uris:
        raise InvalidPlan("No source given: pass at least one s3://bucket/prefix/ or https:// URL.")
    if endpoint:
        endpoint = check_endpoint(endpoint)
    sources: list[Source] = []
    keys: dict[str, int] = {}
    urls_at: int | None = None
    for uri in uris:
        if uri[:5].lower() == "hf://":
            sources.append(_hub_source(uri, ca_bundle=ca_bundle, anonymous=anonymous))
            continue
        if uri[:5].lower() != "s3://":
            url = _checked_url(uri)
            if urls_at is None:
                urls_at = len(sources)
                sources.append(HttpSource(urls=(url,), ca_bundle=ca_bundle))
            else:
                _extend(sources, urls_at, "urls", url)
            continue
        bucket, key, prefix = _split_s3(uri)
        if prefix is None and bucket in keys:
            _extend(sources, keys[bucket], "keys", key)
            continue
        if prefix is None:
            keys[bucket] = len(sources)
        sources.append(
            S3Source(
                bucket=bucket,
                prefix=prefix,
                keys=None if prefix is not None else (key,),
                endpoint=endpoint,
                region=region,
                addressing_style=addressing_style,
                ca_bundle=ca_bundle,
                anonymous=anonymous,
                requester_pays=requester_pays,
            )
        )
    return tuple(sources)


def _hub_source(uri: str, *, ca_bundle: str, anonymous: bool) -> HubSource:
    repo, _, revision = uri[5:].partition("@")
    repo = repo.rstrip("/")
    if not is_repo(repo) or (not revision and "@" in uri) or not is_hub_revision(revision or "main"):
        raise InvalidPlan(
            f"{redact_url(uri)[:300]!r} is not a repository: use hf://organization/model or "
            "hf://organization/model@revision.",
            remedy="To load only some files of a repository, use --include and --exclude.",
        )
    return HubSource(repo=repo, revision=revision or "main", ca_bundle=ca_bundle, anonymous=anonymous)


def _split_s3(text: str) -> tuple[str, str, str | None]:
    """Returns bucket, key and prefix; the prefix is None for a key. ``?``, ``#`` and ``%`` are part of the key."""
    bucket, _, key = text[5:].partition("/")
    if not bucket or "?" in bucket or "#" in bucket or "@" in bucket:
        raise InvalidPlan(f"{redact_url(text)!r} has no valid bucket: use s3://bucket/prefix/.")
    if not key or key.endswith("/"):
        return bucket, "", key
    name = key.rpartition("/")[2]
    if any(fnmatchcase(name, pattern) for pattern in _FILE_PATTERNS):
        return bucket, key, None
    return bucket, "", key


def _checked_url(text: str) -> str:
    parts = split_url(text)
    if parts is None or parts.scheme not in {"http", "https"}:
        raise InvalidPlan(
            f"{redact_url(text)!r} is not a valid source: use s3://bucket/prefix/, hf://organization/model or an "
            "http(s):// URL."
        )
    _check_names_a_file(text, parts)
    return text


def _check_names_a_file(text: str, parts: SplitUrl) -> None:
    """Checks that a URL is not one of the kinds that people pass for a whole model.

    Raises:
        InvalidPlan: It is that of a folder, or of a page of a hub.
    """
    page = _HUB_PAGE.fullmatch(parts.path.rstrip("/"))
    if parts.host.lower() in _HUB_HOSTS and page is not None:
        revision = f"@{unquote(page['revision'])}" if page["revision"] else ""
        raise InvalidPlan(
            f"{redact_url(text)!r} is a page of a hub, not a file.", remedy=f"Pass hf://{page['repo']}{revision}."
        )
    if parts.path.endswith("/") and "#" not in text:
        raise InvalidPlan(
            f"{redact_url(text)!r} names no file: an HTTP source is the URLs of a model's files.",
            remedy="For a folder of a bucket, pass s3://bucket/prefix/, with --endpoint-url for other stores than AWS.",
        )


def _extend(sources: list[Source], at: int, field: str, value: str) -> None:
    present = getattr(sources[at], field)
    if value in present:
        raise InvalidPlan(f"{redact_url(value)} is specified twice.")
    sources[at] = structs.replace(sources[at], **{field: (*present, value)})
