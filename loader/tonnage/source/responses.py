"""Whether an answer is to the question: exact range, same revision. Pure; every ranged GET passes here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tonnage.errors import Reason
from tonnage.source.error_classification import RequestFailure, Retry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.source.request_target import RequestTarget

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


def parse_headers(lines: list[bytes]) -> tuple[int, dict[str, str]]:
    """Returns status and headers (names in lower case) of the last block of raw header lines, as curl hands them out.

    There are several blocks after a redirect, an interim answer or a proxy's CONNECT.
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
            headers[name.strip().lower()] = value.strip()
    return status, headers


def check_partial(
    target: RequestTarget, *, status: int, headers: Mapping[str, str], start: int, end: int
) -> RequestFailure | None:
    """Checks the head of an answer to ``Range: bytes=start-(end-1)``; None when its body is exactly what was asked.

    Only for successful answers (status below 300); ``classify`` is for the others.

    Args:
        target: The object; its size, ETag and version must be the answer's.
        status: The HTTP status.
        headers: The answer's, names in lower case.
        start: First byte asked for.
        end: The byte after the last one asked for. A server that ignores ranges will do where this is the whole object.
    """
    asked = f"bytes {start}-{end - 1}"
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    change = _describe_change(target, headers, "*" if match is None else match[3])
    if change:
        message = f"{target.label}: the object was replaced: {change}."
        return RequestFailure(reason=Reason.SOURCE_CHANGED, message=message, retry=Retry.NEVER)
    problem = ""
    if status == 200 and (start, end) == (0, target.size):
        pass  # the whole object is what was asked for
    elif status != 206:
        problem = f"answered {status} without a range where {asked} were asked for"
    elif match is None:
        problem = f"answered 206 without saying which bytes, where {asked} were asked for"
    elif (int(match[1]), int(match[2])) != (start, end - 1):
        problem = f"answered with bytes {match[1]}-{match[2]} where {asked} were asked for"
    if not problem and headers.get("content-length", str(end - start)) != str(end - start):
        problem = f"announced {headers['content-length']} bytes of body for {asked}"
    if not problem:
        return None
    message = f"{target.label}: the server {problem}; it does not serve ranges as HTTP says."
    return RequestFailure(reason=Reason.ENDPOINT_UNREACHABLE, message=message, retry=Retry.BACKOFF)


def _describe_change(target: RequestTarget, headers: Mapping[str, str], total: str) -> str:
    """How the answer's object differs from the pinned one; empty where it doesn't, or says nothing."""
    etag = headers.get("etag", "")
    if target.etag and etag and strong_etag(etag) != target.etag:
        return f'its ETag is {etag[:100]} now and was "{target.etag}"'
    version = headers.get("x-amz-version-id", "")
    if target.version_id and version and version != target.version_id:
        return "the server answers with another version than the pinned one"
    if total not in {"*", str(target.size)}:
        return f"it has {total} bytes now and had {target.size}"
    return ""


def strong_etag(header: str) -> str:
    """Returns a strong ETag without its quotes; empty for a weak one or none."""
    header = header.strip()
    return "" if header.startswith("W/") else header.removeprefix('"').removesuffix('"')
