"""Gets size and validators of objects by HEAD, or by a GET of one byte if HEAD gives no clear result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from tonnage.errors import FormatUnsupported, StoreUnsupported
from tonnage.source.client import Request
from tonnage.source.request_failure import RequestFailure
from tonnage.source.responses import RANGES_REMEDY, strong_etag
from tonnage.source.stated_checksums import etag_checksum, stated_checksums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.contract import ObjectChecksum
    from tonnage.source.client import Client, Response
    from tonnage.source.credentials import CredentialProvider
    from tonnage.source.request_target import RequestTarget

_LENGTH = re.compile(r"[0-9]{1,18}")
_INCONCLUSIVE_STATUSES = {*range(300, 500), 501} - {408, 412, 416, 425, 429}
"""Statuses that S3 explains in the body, which a response to HEAD lacks. Some servers reject HEAD with them, too."""


class ObjectHead(NamedTuple):
    """Size and validators of an object. ``etag`` is the header's value; all but ``size`` may be empty.

    ``checksums`` are those that the server states. ``etag_checksum`` is what the ETag is, if the server is one of S3's.
    """

    size: int
    etag: str
    last_modified: str
    version_id: str
    content_encoding: str = ""
    content_type: str = ""
    checksums: tuple[ObjectChecksum, ...] = ()
    etag_checksum: ObjectChecksum | None = None

    @property
    def pin_etag(self) -> str:
        """The value for ``ObjectPin.etag``: a strong ETag without quotes, otherwise the weak one or the date."""
        if strong_etag(self.etag):
            return strong_etag(self.etag)
        if self.etag:
            return self.etag
        return f"last-modified={self.last_modified}" if self.last_modified else ""

    @property
    def precondition_header(self) -> str:
        """The header line with which a server rejects a request for any other version; empty without a validator."""
        if strong_etag(self.etag):
            return f'If-Match: "{strong_etag(self.etag)}"'
        return f"If-Unmodified-Since: {self.last_modified}" if self.last_modified else ""


HeadResult = ObjectHead | RequestFailure
"""One object's head, or why the request for it failed."""


def head_or_raise(result: HeadResult) -> ObjectHead:
    """Returns the head.

    Raises:
        TonnageError: The result is a failure.
    """
    if isinstance(result, ObjectHead):
        return result
    raise result.to_exception()


def check_encoding(label: str, head: ObjectHead) -> None:
    """Rejects an object that is stored compressed, because readers of the cache would get compressed bytes.

    Raises:
        FormatUnsupported: It has a Content-Encoding.
    """
    encodings = {each.strip().lower() for each in head.content_encoding.split(",")} - {"", "identity", "aws-chunked"}
    if encodings:
        raise FormatUnsupported(
            f"{label} is stored with Content-Encoding {', '.join(sorted(encodings))}: a load copies bytes as they are.",
            remedy="Upload it again without Content-Encoding, or leave it out with --exclude (spec.files.exclude).",
        )


def head_objects(
    client: Client,
    targets: Sequence[RequestTarget],
    provider: CredentialProvider,
    *,
    pinned: bool = False,
    skip_head: Sequence[bool] = (),
    checksum_mode: bool = False,
) -> list[HeadResult]:
    """Requests the heads of all objects concurrently. A failed request is a result too, with the server's explanation.

    Args:
        client: Runs the requests.
        targets: The objects; their pins are sent as preconditions.
        provider: The credentials to sign with.
        pinned: Whether a missing object is a changed source.
        skip_head: For each object, whether to send GET only (a presigned GET URL does not allow HEAD).
        checksum_mode: Whether to ask S3 for the checksums of the objects.
    """
    skip = list(skip_head) or [False] * len(targets)
    by_head = [at for at in range(len(targets)) if not skip[at]]
    mode = (("x-amz-checksum-mode", "ENABLED"),) if checksum_mode else ()
    requests = [
        Request(target=targets[at], provider=provider, head=True, pinned=pinned, amz_headers=mode) for at in by_head
    ]
    responses = dict(zip(by_head, client.run(requests), strict=True))
    inconclusive = [at for at in range(len(targets)) if skip[at] or _is_inconclusive(responses[at])]
    results = {at: _parse_head(each, targets[at]) for at, each in responses.items() if at not in set(inconclusive)}
    results.update(_head_by_range(client, {at: targets[at] for at in inconclusive}, provider, pinned=pinned))
    return [results[at] for at in range(len(targets))]


def _head_by_range(
    client: Client, targets: Mapping[int, RequestTarget], provider: CredentialProvider, *, pinned: bool
) -> dict[int, HeadResult]:
    """Requests the first byte of each object. If the first request fails, its failure is used for all others."""
    results: dict[int, HeadResult] = {}
    numbers = list(targets)
    for group in (numbers[:1], numbers[1:]):
        gets = [Request(target=targets[at], provider=provider, start=0, end=1, pinned=pinned, limit=1) for at in group]
        for at, response in zip(group, client.run(gets), strict=True):
            results[at] = _parse_head(_as_head_response(response, targets[at]), targets[at])
        first = results[numbers[0]] if numbers else None
        if isinstance(first, RequestFailure):
            return {at: _relabel(first, targets[numbers[0]], targets[at]) for at in numbers}
    return results


def _is_inconclusive(response: Response) -> bool:
    if response.failure is not None:
        region_named = response.failure.region and response.status in {301, 307}
        return response.status in _INCONCLUSIVE_STATUSES and not region_named
    return _LENGTH.fullmatch(response.headers.get("content-length", "")) is None


def _as_head_response(response: Response, target: RequestTarget) -> Response:
    """Converts the response to a GET of the first byte to one to HEAD, with the object's length."""
    total = re.fullmatch(r"bytes (?:[0-9]+-[0-9]+|\*)/([0-9]{1,18})", response.headers.get("content-range", "").strip())
    if response.status == 206 and total:
        return structs.replace(response, headers={**response.headers, "content-length": total[1]})
    if response.status == 416 and total and total[1] == "0":
        return structs.replace(response, headers={**response.headers, "content-length": "0"}, failure=None)
    if response.failure is None and response.headers.get("content-length") != "0":
        raise StoreUnsupported(
            f"{target.label}: the server responded with {response.status} to a request for one byte: it ignores "
            "ranges.",
            remedy=RANGES_REMEDY,
        )
    return response


def _parse_head(response: Response, target: RequestTarget) -> HeadResult:
    if response.failure is not None:
        return response.failure
    headers = response.headers
    if headers.get("accept-ranges", "").strip().lower() == "none":
        raise StoreUnsupported(
            f"{target.label}: the server does not support ranges (Accept-Ranges: none).", remedy=RANGES_REMEDY
        )
    length = headers.get("content-length", "")
    if _LENGTH.fullmatch(length) is None:
        raise StoreUnsupported(f"{target.label}: the response has no valid Content-Length.")
    version = headers.get("x-amz-version-id", "")
    etag, modified = headers.get("etag", "").strip(), headers.get("last-modified", "").strip()
    return ObjectHead(
        size=int(length),
        etag=etag,
        last_modified=modified,
        version_id="" if version == "null" else version,
        content_encoding=headers.get("content-encoding", ""),
        content_type=headers.get("content-type", ""),
        checksums=stated_checksums(headers, partial=response.status == 206),
        etag_checksum=etag_checksum(strong_etag(etag), headers),
    )


def _relabel(failure: RequestFailure, first: RequestTarget, other: RequestTarget) -> RequestFailure:
    """Returns the failure of one object with the label of another."""
    return structs.replace(failure, message=failure.message.replace(first.label, other.label, 1))
