"""What the faulty server says: answers to requests, right or wrong, and the pieces in which they are sent. Pure."""

from __future__ import annotations

import dataclasses
import email.utils
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from support.faulty_rules import Fault, Request, StoredObject

BLOCK = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status line, headers and body."""

    status: int
    reason: str
    headers: dict[str, str]
    body: Any = b""


class Store(NamedTuple):
    """What there is at the moment: versions of each object, the newest first."""

    objects: Mapping[str, Sequence[StoredObject]]
    buckets: frozenset[str]
    page_size: int


def answer_to(request: Request, fault: Fault, store: Store) -> Answer:
    """Returns what is said to a request, wrong in the way that the fault wants."""
    if fault.status is not None:
        answer = Answer(fault.status, fault.reason, {"Content-Length": str(len(fault.body))}, fault.body)
    else:
        answer = _good_answer(request, fault, store)
    headers = dict(answer.headers)
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
    return dataclasses.replace(answer, headers=headers)


def _good_answer(request: Request, fault: Fault, store: Store) -> Answer:
    if request.query.get("list-type") == "2":
        return _listing(request, store)
    versions = store.objects.get(request.key, [])
    if "versionId" in request.query:
        versions = [each for each in versions if each.version_id == request.query["versionId"]]
    if not versions:
        bucket, _, key = request.key.partition("/")
        if bucket not in store.buckets:
            return _error(404, "Not Found", "NoSuchBucket")
        if not key:
            return Answer(200, "OK", {"Content-Length": "0"})
        return _error(404, "Not Found", "NoSuchVersion" if "versionId" in request.query else "NoSuchKey")
    return _object_answer(request, _altered(versions[0], fault), fault)


def _listing(request: Request, store: Store) -> Answer:
    bucket = request.key.rstrip("/")
    if bucket not in store.buckets:
        return _error(404, "Not Found", "NoSuchBucket")
    query = request.query
    prefix = query.get("prefix", "")
    after = query.get("continuation-token", "")
    found = {
        key.removeprefix(f"{bucket}/"): versions[0]
        for key, versions in store.objects.items()
        if key.startswith(f"{bucket}/{prefix}")
    }
    names = sorted(name for name in found if name > after)
    limit = min(int(query.get("max-keys", "1000")), store.page_size)
    page = names[:limit]
    truncated = len(names) > len(page) and bool(page)
    quote = urllib.parse.quote_plus if query.get("encoding-type") == "url" else str
    rows = "".join(
        f"<Contents><Key>{escape(quote(name))}</Key><Size>{found[name].size}</Size>"
        f"<ETag>{escape(found[name].etag)}</ETag></Contents>"
        for name in page
    )
    encoding = "<EncodingType>url</EncodingType>" if query.get("encoding-type") == "url" else ""
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if truncated else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><IsTruncated>{str(truncated).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>"
        f"{encoding}{token}{rows}</ListBucketResult>"
    )
    data = text.encode()
    return Answer(200, "OK", {"Content-Type": "application/xml", "Content-Length": str(len(data))}, data)


def _altered(stored: StoredObject, fault: Fault) -> StoredObject:
    data = stored.data if fault.data is None else fault.data
    if fault.flip is not None:
        changed = bytearray(data)
        changed[fault.flip] ^= 1
        data = changed
    return dataclasses.replace(stored, data=data, etag=stored.etag if fault.etag is None else fault.etag)


def _object_answer(request: Request, stored: StoredObject, fault: Fault) -> Answer:
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted not in {"*", stored.etag}:
        return _error(412, "Precondition Failed", "PreconditionFailed")
    unmodified = request.headers.get("if-unmodified-since")
    if unmodified is not None and stored.last_modified and _after(stored.last_modified, unmodified):
        return _error(412, "Precondition Failed", "PreconditionFailed")
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **stored.headers}
    if stored.etag:
        headers["ETag"] = stored.etag
    if stored.last_modified:
        headers["Last-Modified"] = stored.last_modified
    if stored.version_id:
        headers["x-amz-version-id"] = stored.version_id
    whole = memoryview(stored.data)
    if request.range is None or fault.ignore_range:
        return Answer(200, "OK", {**headers, "Content-Length": str(len(whole))}, whole)
    first, last = request.range
    last = len(whole) - 1 if last is None else last
    if first >= len(whole):
        return _error(416, "Range Not Satisfiable", "InvalidRange", {"Content-Range": f"bytes */{len(whole)}"})
    first = min(first + fault.shift, len(whole) - 1)
    last = min(last + fault.shift - fault.shorten, len(whole) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(whole) + fault.lie_total}"
    headers["Content-Length"] = str(last + 1 - first)
    return Answer(206, "Partial Content", headers, whole[first : last + 1])


def blocks(body: memoryview, fault: Fault) -> Iterator[memoryview | None]:
    """The body's pieces as they are sent; None where the server stalls."""
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


def _error(status: int, reason: str, code: str, headers: dict[str, str] | None = None) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{reason}</Message></Error>".encode()
    base = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    return Answer(status, reason, base | (headers or {}), body)


def _after(one: str, other: str) -> bool:
    return email.utils.parsedate_to_datetime(one) > email.utils.parsedate_to_datetime(other)
