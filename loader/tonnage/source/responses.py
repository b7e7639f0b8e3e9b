"""Validates responses to range requests: exact range, same revision. Pure; used for every ranged GET."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tonnage.errors import Reason
from tonnage.source.request_failure import RequestFailure, Retry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.source.request_target import RequestTarget

_LISTS = frozenset({"x-goog-hash", "repr-digest", "digest"})
"""Fields that may be divided into several lines, which are joined. Of others, the last line counts."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


RANGES_REMEDY = "Load from a server that answers range requests with 206, and let no proxy on the way remove ranges."


def parse_headers(lines: list[bytes]) -> tuple[int, dict[str, str]]:
    """Returns status and headers (names in lower case) of the last block of raw header lines from curl.

    There are several blocks after a redirect, an interim response or a proxy's CONNECT.
    """
    status = 0
    headers: dict[str, str] = {}
    for raw in lines:
        line = raw.decode("latin-1").strip()
        if line.startswith("HTTP/"):
            status_line = line.split(" ", 2)
            status = int(status_line[1]) if len(status_line) > 1 and re.fullmatch(r"[0-9]{3}", status_line[1]) else 0
            headers = {}
        elif line:
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in _LISTS and name in headers else value
    return status, headers


def check_partial(
    target: RequestTarget, *, status: int, headers: Mapping[str, str], start: int, end: int
) -> RequestFailure | None:
    """Checks status and headers of a response to ``Range: bytes=start-(end-1)``; returns None if they match.

    Only for successful responses (status below 300); use ``classify`` for others. A response with status 200 is
    accepted if the range is the whole object.

    Args:
        target: The object; size, ETag, version and date in the response must be equal to its.
        status: The HTTP status.
        headers: The response headers, names in lower case.
        start: First byte of the requested range.
        end: End of the requested range, exclusive.
    """
    requested = f"bytes {start}-{end - 1}"
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    total = "*" if match is None else match[3]
    if status == 200 and (start, end) == (0, target.size):
        total = headers.get("content-length", "*")  # the range is the whole object
    change = _describe_change(target, headers, total)
    if change:
        message = f"{target.label}: the object was replaced: {change}."
        return RequestFailure(reason=Reason.SOURCE_CHANGED, message=message, retry=Retry.NEVER)
    problem = ""
    if status == 200 and (start, end) == (0, target.size):
        pass
    elif status != 206:
        problem = f"responded with status {status} instead of 206 to a request for {requested}"
    elif match is None:
        problem = f"responded with status 206 and no valid Content-Range to a request for {requested}"
    elif (int(match[1]), int(match[2])) != (start, end - 1):
        problem = f"responded with bytes {match[1]}-{match[2]} to a request for {requested}"
    if not problem and headers.get("content-length", str(end - start)) != str(end - start):
        problem = f"sent a Content-Length of {headers['content-length']} to a request for {requested}"
    if not problem:
        return None
    ignored = status == 200
    missing = "it ignores ranges" if ignored else "it does not implement range requests correctly"
    return RequestFailure(
        reason=Reason.STORE_UNSUPPORTED,
        message=f"{target.label}: the server {problem}; {missing}.",
        retry=Retry.BACKOFF,
        remedy=RANGES_REMEDY,
    )


def _describe_change(target: RequestTarget, headers: Mapping[str, str], total: str) -> str:
    """Returns how the response's object differs from the pinned one; empty if no difference is visible."""
    etag = headers.get("etag", "").strip()
    if target.etag and etag and not _is_same_etag(target.etag, etag):
        return f"its ETag was {quoted_etag(target.etag)} and is now {etag[:100]}"
    modified = headers.get("last-modified", "").strip()
    if target.last_modified and modified and modified != target.last_modified:
        return f"it was last modified on {target.last_modified} and now on {modified[:100]}"
    version = headers.get("x-amz-version-id", "")
    if target.version_id and version and version != target.version_id:
        return "the server responded with a version other than the pinned one"
    if total not in {"*", str(target.size)}:
        return f"it had {target.size} bytes and now has {total}"
    return ""


def _is_same_etag(pinned: str, header: str) -> bool:
    """Compares ETags: strongly, unless the pinned one is weak (RFC 9110, 8.8.3.2)."""
    if pinned.startswith("W/"):
        return header.removeprefix("W/") == pinned.removeprefix("W/")
    return strong_etag(header) == pinned


def quoted_etag(pinned: str) -> str:
    """Returns an ETag as it is in a header."""
    return pinned if pinned.startswith("W/") else f'"{pinned}"'


def strong_etag(header: str) -> str:
    """Returns a strong ETag without its quotes; empty if it is weak or missing."""
    header = header.strip()
    return "" if header.startswith("W/") else header.removeprefix('"').removesuffix('"')
