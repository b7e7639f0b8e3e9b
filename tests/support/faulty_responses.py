"""Builds the faulty server's responses, and the blocks in which their bodies are sent. Pure."""

from __future__ import annotations

import dataclasses
import email.utils
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from support.faults import Fault, Request, StoredObject

BLOCK = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Response:
    """Status line, headers and body."""

    status: int
    reason: str
    headers: dict[str, str]
    body: Any = b""


class StoreSnapshot(NamedTuple):
    """The stored objects: versions of each, the newest first."""

    objects: Mapping[str, Sequence[StoredObject]]
    buckets: frozenset[str]
    page_size: int
    listing: ListingDialect


@dataclasses.dataclass(frozen=True)
class ListingDialect:
    """In which ways a store's listings differ from those of S3.

    Attributes:
        version: The highest version of ListObjects that the store has; 1 ignores ``list-type`` and tokens.
        next_marker: Whether pages of version 1 have NextMarker.
        truncated: The text of IsTruncated on pages before the last; None: there is no such element on any page.
        ignore_prefix: Lists the whole bucket whatever prefix is asked for.
        repeat: Lists each key this many times in a row.
        key_count: Added to KeyCount.
        group: Lists the keys below a slash as one CommonPrefixes element, as if a delimiter had been asked for.
        stuck: Lists the first page again and again.
    """

    version: int = 2
    next_marker: bool = False
    truncated: str | None = "true"
    ignore_prefix: bool = False
    repeat: int = 1
    key_count: int = 0
    group: bool = False
    stuck: bool = False


S3_LISTING = ListingDialect()


def build_response(request: Request, fault: Fault, snapshot: StoreSnapshot) -> Response:
    """Returns the response to a request, with the fault applied."""
    if fault.status is not None:
        response = Response(fault.status, fault.reason, {"Content-Length": str(len(fault.body))}, fault.body)
    else:
        response = _normal_response(request, fault, snapshot)
    headers = dict(response.headers)
    for name, value in fault.headers.items():
        for present in [each for each in headers if each.lower() == name.lower()]:
            del headers[present]
        if value is not None:
            headers[name] = value
    if fault.close:
        headers["Connection"] = "close"
    if fault.announce_extra and "Content-Length" in headers:
        headers["Content-Length"] = str(int(headers["Content-Length"]) + len(fault.extra))
    if fault.chunked:
        headers.pop("Content-Length", None)
        headers["Transfer-Encoding"] = "chunked"
    headers.setdefault("Date", email.utils.formatdate(usegmt=True))
    return dataclasses.replace(response, headers=headers)


def _normal_response(request: Request, fault: Fault, snapshot: StoreSnapshot) -> Response:
    if request.method == "GET" and "/" not in request.key.rstrip("/") and "prefix" in request.query:
        return _list_objects_response(request, snapshot)
    versions = snapshot.objects.get(request.key, [])
    if "versionId" in request.query:
        versions = [each for each in versions if each.version_id == request.query["versionId"]]
    if not versions:
        bucket, _, key = request.key.partition("/")
        if bucket not in snapshot.buckets:
            return _error_response(404, "Not Found", "NoSuchBucket")
        if not key:
            return Response(200, "OK", {"Content-Length": "0"})
        return _error_response(404, "Not Found", "NoSuchVersion" if "versionId" in request.query else "NoSuchKey")
    return _object_response(request, _apply_fault(versions[0], fault), fault)


def _list_objects_response(request: Request, snapshot: StoreSnapshot) -> Response:
    bucket = request.key.rstrip("/")
    if bucket not in snapshot.buckets:
        return _error_response(404, "Not Found", "NoSuchBucket")
    query, dialect = request.query, snapshot.listing
    prefix = "" if dialect.ignore_prefix else query.get("prefix", "")
    by_token = dialect.version == 2 and query.get("list-type") == "2"
    after = query.get("continuation-token" if by_token else "marker", "")
    found = {
        key.removeprefix(f"{bucket}/"): versions[0]
        for key, versions in snapshot.objects.items()
        if key.startswith(f"{bucket}/{prefix}")
    }
    names = sorted(name for name in found if name > after or dialect.stuck)
    groups = sorted({name[: name.index("/", len(prefix)) + 1] for name in names if "/" in name[len(prefix) :]})
    names = [name for name in names if not (dialect.group and "/" in name[len(prefix) :])]
    limit = min(int(query.get("max-keys", "1000")), snapshot.page_size)
    page = names[:limit]
    truncated = len(names) > len(page) and bool(page)
    encoded = query.get("encoding-type") == "url"
    quote = urllib.parse.quote_plus if encoded else str
    rows = "".join(
        f"<Contents><Key>{escape(quote(name))}</Key><Size>{found[name].size}</Size>"
        f"<ETag>{escape(found[name].etag)}</ETag></Contents>"
        for name in page
        for _ in range(dialect.repeat)
    )
    fields = {"Name": bucket}
    if dialect.truncated is not None:
        fields["IsTruncated"] = dialect.truncated if truncated else "false"
    if by_token:
        fields["KeyCount"] = str(len(page) * dialect.repeat + dialect.key_count)
    if encoded:
        fields["EncodingType"] = "url"
    if truncated and by_token:
        fields["NextContinuationToken"] = page[-1]
    if truncated and not by_token and dialect.next_marker:
        fields["NextMarker"] = quote(page[-1])
    grouped = [f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in groups if dialect.group]
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{''.join(f'<{name}>{escape(value)}</{name}>' for name, value in fields.items())}"
        f"{rows}{''.join(grouped)}</ListBucketResult>"
    )
    data = text.encode()
    return Response(200, "OK", {"Content-Type": "application/xml", "Content-Length": str(len(data))}, data)


def _apply_fault(stored: StoredObject, fault: Fault) -> StoredObject:
    data = stored.data if fault.data is None else fault.data
    if fault.flip is not None:
        changed = bytearray(data)
        changed[fault.flip] ^= 1
        data = changed
    return dataclasses.replace(stored, data=data, etag=stored.etag if fault.etag is None else fault.etag)


def _object_response(request: Request, stored: StoredObject, fault: Fault) -> Response:
    if_match = request.headers.get("if-match")
    if if_match is not None and if_match not in {"*", stored.etag}:
        return _error_response(412, "Precondition Failed", "PreconditionFailed")
    unmodified = request.headers.get("if-unmodified-since")
    if unmodified is not None and stored.last_modified and _is_later(stored.last_modified, unmodified):
        return _error_response(412, "Precondition Failed", "PreconditionFailed")
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **stored.headers}
    if stored.etag:
        headers["ETag"] = stored.etag
    if stored.last_modified:
        headers["Last-Modified"] = stored.last_modified
    if stored.version_id:
        headers["x-amz-version-id"] = stored.version_id
    content = memoryview(stored.data)
    if request.range is None or fault.ignore_range:
        return Response(200, "OK", {**headers, "Content-Length": str(len(content))}, content)
    first, last = request.range
    last = len(content) - 1 if last is None else last
    if first >= len(content):
        return _error_response(
            416, "Range Not Satisfiable", "InvalidRange", {"Content-Range": f"bytes */{len(content)}"}
        )
    first = min(first + fault.shift, len(content) - 1)
    last = min(last + fault.shift - fault.shorten, len(content) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content) + fault.total_offset}"
    headers["Content-Length"] = str(last + 1 - first)
    return Response(206, "Partial Content", headers, content[first : last + 1])


def blocks(body: memoryview, fault: Fault) -> Iterator[memoryview | None]:
    """Yields the body in the blocks that are sent; None where the server stalls."""
    stops = [stop for stop in (fault.reset_after, fault.close_after) if stop is not None]
    end = min([len(body), *stops])
    step = BLOCK if fault.rate is None else max(1, min(BLOCK, int(fault.rate / 50)))
    at = 0
    if fault.stall_after is not None:
        stall = min(end, fault.stall_after)
        while at < stall:
            yield body[at : min(at + step, stall)]
            at = min(at + step, stall)
        yield None
    while at < end:
        yield body[at : min(at + step, end)]
        at += step


def _error_response(status: int, reason: str, code: str, headers: dict[str, str] | None = None) -> Response:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{reason}</Message></Error>".encode()
    base = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    return Response(status, reason, base | (headers or {}), body)


def _is_later(first: str, second: str) -> bool:
    return email.utils.parsedate_to_datetime(first) > email.utils.parsedate_to_datetime(second)
