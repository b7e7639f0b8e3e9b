"""Classifies failed requests: a reason, a message, and whether to retry. Pure; used by workers and small requests.

Messages name the object by its label and are safe to log: they contain no query string, key or signature. The store's
own code and message are part of each, cleaned.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.errors import Reason
from tonnage.source.request_failure import BODY_LIMIT, RequestFailure, Retry

if TYPE_CHECKING:
    from collections.abc import Mapping


def classify(
    *,
    curl_code: int | None,
    status: int | None,
    headers: Mapping[str, str],
    body: bytes,
    label: str,
    server: str = "",
    connected: bool = True,
    pinned: bool = False,
    now: float | None = None,
) -> RequestFailure:
    """Classifies a failed request.

    Args:
        curl_code: libcurl's error code; None or 0 if the transfer succeeded.
        status: The HTTP status; None or 0 if there was no response.
        headers: The response headers, names in lower case.
        body: The response body or its beginning; S3's XML error is read from it.
        label: The object's name in the message.
        server: Host and port of the server, for the message.
        connected: Whether the connection was established; a timeout before that is an unreachable endpoint.
        pinned: Whether a certain revision was requested, so that a missing object is a changed source.
        now: Seconds since the epoch, for clock skew; None: this machine's clock.
    """
    if curl_code:
        return _classify_curl(curl_code, label, server, connected=connected)
    return _classify_status(status or 0, headers, body, label, pinned=pinned, now=time.time() if now is None else now)


def redact(text: str) -> str:
    """Removes possible secrets from a server's or library's message; one line, at most 300 characters."""
    text = re.sub(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*", r"\1", text)
    text = re.sub(
        r"(?i)([a-z_-]*(?:signature|credential|token|secret|password|passwd|accesskey)[a-z_-]*)(\s*[=:]\s*)[^\s&,;]+",
        r"\1\2…",
        text,
    )
    text = re.sub(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}", "…", text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


_DNS = "can't resolve its host name"
_CURL: dict[int, tuple[Reason, Retry, str]] = {
    1: (Reason.INVALID_PLAN, Retry.NEVER, "the protocol of its URL is not supported"),
    3: (Reason.INVALID_PLAN, Retry.NEVER, "its URL is malformed"),
    5: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, "can't resolve the proxy's host name"),
    6: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, _DNS),
    7: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, "can't connect to its server"),
    8: (Reason.ENDPOINT_UNREACHABLE, Retry.NEVER, "its server does not speak HTTP"),
    18: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the response ended before its Content-Length"),
    27: (Reason.INTERNAL_ERROR, Retry.NEVER, "libcurl ran out of memory"),
    28: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the transfer stalled"),
    42: (
        Reason.ENDPOINT_UNREACHABLE,
        Retry.NEVER,
        "its server redirects from a public to an inner address; TONNAGE_INNER_REDIRECTS=allow permits that",
    ),
    47: (Reason.ENDPOINT_UNREACHABLE, Retry.NEVER, "its server redirects too often"),
    52: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the server closed the connection without a response"),
    55: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the connection failed during the request"),
    56: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the connection failed during the response"),
    63: (Reason.ENDPOINT_UNREACHABLE, Retry.NEVER, "the response is too large"),
    67: (Reason.ACCESS_DENIED, Retry.NEVER, "the login was denied"),
    94: (Reason.ACCESS_DENIED, Retry.NEVER, "the authentication failed"),
    97: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, "the proxy refuses the connection"),
}
_UNTRUSTED = "its server's certificate is not trusted, or is for another host name"
_TLS: dict[int, tuple[Retry, str]] = {
    35: (Retry.BACKOFF, "the TLS handshake with its server failed"),
    53: (Retry.NEVER, "the TLS crypto engine was not found"),
    54: (Retry.NEVER, "the TLS crypto engine can't be used"),
    58: (Retry.NEVER, "the client certificate can't be used"),
    59: (Retry.NEVER, "the TLS cipher can't be used"),
    60: (Retry.NEVER, _UNTRUSTED),
    66: (Retry.NEVER, "the TLS crypto engine could not be initialized"),
    77: (Retry.NEVER, "the CA bundle can't be read"),
    80: (Retry.BACKOFF, "the TLS connection was not shut down properly"),
    82: (Retry.NEVER, "the certificate revocation list can't be read"),
    83: (Retry.NEVER, _UNTRUSTED),
    90: (Retry.NEVER, _UNTRUSTED),
    91: (Retry.NEVER, _UNTRUSTED),
    98: (Retry.NEVER, "its server requires a client certificate"),
}


def _classify_curl(code: int, label: str, server: str, *, connected: bool) -> RequestFailure:
    if code in _TLS:
        reason, (retry, text) = Reason.TLS_VERIFICATION_FAILED, _TLS[code]
    else:
        reason, retry, text = _CURL.get(code, (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the transfer failed"))
    if code == 28 and not connected:
        reason, text = Reason.ENDPOINT_UNREACHABLE, "connecting to its server timed out"
    place = f"{server}, " if server else ""
    return RequestFailure(reason=reason, message=f"{label}: {text} ({place}curl {code}).", retry=retry)


class _Case(NamedTuple):
    reason: Reason
    text: str
    retry: Retry = Retry.NEVER
    remedy: str = ""


_BUSY = _Case(Reason.RETRIES_EXHAUSTED, "the server is busy or unavailable", Retry.BACKOFF)
_EXPIRED = _Case(Reason.CREDENTIALS_EXPIRED, "the credentials have expired", Retry.REFRESH_CREDENTIALS)
_URL_EXPIRED = _Case(Reason.CREDENTIALS_EXPIRED, "the presigned URL has expired", Retry.REFRESH_CREDENTIALS)
_NOT_IMPLEMENTED = _Case(Reason.STORE_UNSUPPORTED, "the server does not implement this request")
_ENCRYPTION_KEY = _Case(
    Reason.ACCESS_DENIED,
    "the key that encrypts it can't be used",
    remedy="Allow kms:Decrypt on the object's KMS key for this identity, and check that the key is enabled.",
)
_CUSTOMER_KEY = _Case(
    Reason.REQUEST_REJECTED,
    "it is encrypted with a key that its owner keeps (SSE-C), and no load sends such keys",
    remedy="Store a copy of the object without SSE-C, for example with SSE-S3 or SSE-KMS.",
)
_PATH_STYLE_REFUSED = _Case(
    Reason.REQUEST_REJECTED,
    "the store takes the bucket in the host name only",
    remedy="Pass --addressing-style virtual (spec.source.s3.addressingStyle: Virtual).",
)
_THROTTLING_CODES = {
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
}
_THROTTLING_STATUS = {429, 503, 509}
_BY_CODE = {
    **dict.fromkeys(("InternalError", "RequestTimeout", "OperationAborted", *_THROTTLING_CODES), _BUSY),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"), _EXPIRED),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed"), _NOT_IMPLEMENTED),
    **dict.fromkeys(
        (
            "InvalidAccessKeyId",
            "InvalidAccessKey",
            "InvalidSecurity",
            "InvalidClientTokenId",
            "AuthFailure",
            "Unauthorized",
        ),
        _Case(
            Reason.ACCESS_DENIED,
            "the access key does not exist in the store",
            remedy="Check AWS_ACCESS_KEY_ID, and that it is a key of the store at this endpoint.",
        ),
    ),
    "SignatureDoesNotMatch": _Case(
        Reason.ACCESS_DENIED,
        "the signature does not match: the secret key is wrong, or a proxy modifies requests",
        remedy="Check AWS_SECRET_ACCESS_KEY: it must be the one that was issued with AWS_ACCESS_KEY_ID.",
    ),
    "AccountProblem": _Case(Reason.ACCESS_DENIED, "there is a problem with the account"),
    "AllAccessDisabled": _Case(Reason.ACCESS_DENIED, "all access to it is disabled"),
    "InvalidObjectState": _Case(
        Reason.ACCESS_DENIED,
        "it is archived and must be restored first",
        remedy="Restore the object from its archive storage class (s3:RestoreObject), then load again.",
    ),
    "NoSuchBucket": _Case(Reason.BUCKET_NOT_FOUND, "the bucket does not exist at this endpoint"),
}
_BY_STATUS = {
    **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 509), _BUSY),
    **dict.fromkeys((404, 410), _Case(Reason.OBJECT_NOT_FOUND, "the object does not exist")),
    **dict.fromkeys(
        (301, 302, 303, 307, 308),
        _Case(Reason.ENDPOINT_UNREACHABLE, "its server responds with a redirect, which signed requests do not follow"),
    ),
    **dict.fromkeys((405, 501), _NOT_IMPLEMENTED),
    0: _Case(Reason.RETRIES_EXHAUSTED, "there was no response", Retry.BACKOFF),
    407: _Case(
        Reason.ACCESS_DENIED,
        "the proxy requires authentication",
        remedy="Put the proxy's user and password into HTTPS_PROXY, or list the store's host in NO_PROXY.",
    ),
    412: _Case(Reason.SOURCE_CHANGED, "the object changed after it was pinned"),
    416: _Case(Reason.SOURCE_CHANGED, "the object became shorter after it was pinned"),
}
_PINNED_REVISION_MISSING = _Case(Reason.SOURCE_CHANGED, "the pinned revision no longer exists")
_REJECTED = _Case(Reason.REQUEST_REJECTED, "the store rejected the request")
_NOT_UNDERSTOOD = _Case(
    Reason.REQUEST_REJECTED,
    "the server does not understand the request; is this an S3 endpoint?",
    remedy="Check the endpoint URL: it must be the store's S3 endpoint, not its console or another API.",
)
_UNKNOWN_KEY = _BY_CODE["InvalidAccessKeyId"]
_UNKNOWN_KEY_WORDS = re.compile(
    r"(?i)access.?key.{0,24}(?:length|malformed|invalid|disabled|not (?:exist|found|valid))"
)
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"}
_PATH_STYLE_CODES = {
    "PathStyleRequestNotAllowed",
    "PathStyleDomainForbidden",
    "SecondLevelDomainForbidden",
    "VirtualHostDomainRequired",
    "InvalidPathAccess",
}
_CUSTOMER_KEY_WORDS = re.compile(r"(?i)server.side.encryption|sse-c\b|customer.{0,20}\bkey\b")
_PATH_STYLE_WORDS = re.compile(
    r"(?i)path.style.{0,40}(?:not|forbidden|no longer)|virtual.?host(?:ed)?.?style|third level"
)


class ErrorAnswer(NamedTuple):
    """The code and the message of a server's error, both cleaned and possibly empty."""

    code: str
    message: str

    def __str__(self) -> str:
        return ": ".join(each for each in self if each)


def error_document(body: bytes) -> ErrorAnswer:
    """Returns the code and message of an error's body: S3's XML, JSON, the title of a web page, or plain text."""
    code, message = _xml_text(body, "Code"), _xml_text(body, "Message")
    stripped = body[:BODY_LIMIT].lstrip()
    if not code and not message and stripped[:1] == b"{":
        code, message = _json_error(stripped)
    elif not code and not message and stripped[:1] == b"<":
        title = re.search(rb"(?i)<title>([^<]{1,300})</title>", stripped)
        message = title[1].decode("utf-8", "replace") if title else ""
    elif not code and not message:
        message = stripped[:300].decode("utf-8", "replace")
    endpoint = _xml_text(body, "Endpoint")
    if re.fullmatch(r"[\w.:-]{1,255}", endpoint):
        message = f"{message.strip().rstrip('.')} (its endpoint: {endpoint})"
    return ErrorAnswer(code if re.fullmatch(r"[\w.]{1,64}", code) else "", clean(message))


def clean(text: str) -> str:
    """Returns a server's text as one line without possible secrets and control characters, at most 300 characters."""
    return redact("".join(each if each.isprintable() else " " for each in text)).rstrip(". ")


def _json_error(body: bytes) -> tuple[str, str]:
    from tonnage.contract.plan import DECODE_ERRORS  # workers import little

    try:
        document = msgspec.json.decode(body)
    except DECODE_ERRORS:
        return "", ""
    values = {str(name).lower(): value for name, value in document.items()} if isinstance(document, dict) else {}
    if isinstance(values.get("error"), dict):
        values |= {str(name).lower(): value for name, value in values["error"].items()}
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    code = texts.get("code") or texts.get("error") or ""
    return code, texts.get("message") or texts.get("error_description") or texts.get("detail") or ""


def _classify_status(
    status: int, headers: Mapping[str, str], body: bytes, label: str, *, pinned: bool, now: float
) -> RequestFailure:
    answer = error_document(body)
    region = _wrong_region(status, answer.code, headers, body)
    if region:
        case = _Case(Reason.ACCESS_DENIED, f"its bucket is in the region {region}; set that region")
    elif answer.code == "RequestTimeTooSkewed":
        case = _Case(Reason.REQUEST_TIME_TOO_SKEWED, _clock_skew_message(headers, body, now))
    else:
        case = _hub_case(status, headers) or _case(status, answer)
        if label.startswith("hf://") and case.reason is Reason.ACCESS_DENIED and not case.remedy:
            case = _HUB_DENIED
    if pinned and case.reason is Reason.OBJECT_NOT_FOUND:
        case = _PINNED_REVISION_MISSING
    numbered = f"{status} {answer.code}".strip()
    return RequestFailure(
        reason=case.reason,
        message=f"{label}: {case.text} ({': '.join(each for each in (numbered, answer.message) if each)}).",
        retry=case.retry,
        retry_after=_retry_after(headers, now) if case.retry is Retry.BACKOFF else None,
        region=region,
        remedy=case.remedy,
        path_style_refused=case is _PATH_STYLE_REFUSED,
        throttled=case is _BUSY and (answer.code in _THROTTLING_CODES or status in _THROTTLING_STATUS),
    )


def _case(status: int, answer: ErrorAnswer) -> _Case:
    code, message = answer
    if code in _PATH_STYLE_CODES or (400 <= status < 500 and _PATH_STYLE_WORDS.search(message)):
        return _PATH_STYLE_REFUSED
    if code in _BY_CODE or (status in {400, 401, 403} and _UNKNOWN_KEY_WORDS.search(message)):
        return _BY_CODE.get(code, _UNKNOWN_KEY)
    if code.startswith("KMS.") or "kms:Decrypt" in message:
        return _ENCRYPTION_KEY
    if status in {401, 403} or code == "AccessDenied":
        return _URL_EXPIRED if "has expired" in message else _denied(answer)
    if status in {400, 409} and _CUSTOMER_KEY_WORDS.search(message):
        return _CUSTOMER_KEY
    return _BY_STATUS.get(status, _REJECTED if code else _NOT_UNDERSTOOD)


def _denied(answer: ErrorAnswer) -> _Case:
    if answer.message and answer.message.lower() != "access denied":
        return _Case(Reason.ACCESS_DENIED, "access is denied")
    return _Case(
        Reason.ACCESS_DENIED, "access is denied, or it does not exist and this identity may not list the bucket"
    )


def _wrong_region(status: int, code: str, headers: Mapping[str, str], body: bytes) -> str:
    """Returns the bucket's region if the request was made in another one; otherwise empty."""
    if status not in {301, 307} and code not in _WRONG_REGION and (status != 400 or code):
        return ""
    region = headers.get("x-amz-bucket-region", "") or _xml_text(body, "Region")
    return region if re.fullmatch(r"[a-z0-9-]{1,64}", region) else ""


_HUB_CASES = {
    "GatedRepo": _Case(
        Reason.ACCESS_DENIED,
        "the repository is gated, and access was not granted",
        remedy="Accept the model's terms on the hub with the user of HF_TOKEN, or ask its authors; then try again.",
    ),
    "RepoNotFound": _Case(
        Reason.OBJECT_NOT_FOUND,
        "the repository does not exist, or this token may not read it",
        remedy="Check organization and model; for a private repository set HF_TOKEN to a token that may read it.",
    ),
    "RevisionNotFound": _Case(
        Reason.OBJECT_NOT_FOUND,
        "the repository does not have this revision",
        remedy="Check what follows @: a branch, a tag or a commit.",
    ),
    "EntryNotFound": _Case(Reason.OBJECT_NOT_FOUND, "the repository does not have this file at this commit"),
}
_HUB_TOKEN_REJECTED = _Case(
    Reason.ACCESS_DENIED,
    "the hub rejects the token",
    remedy="Create a new token with read access on the hub, and set HF_TOKEN to it.",
)

_HUB_DENIED = _Case(
    Reason.ACCESS_DENIED,
    "the hub denies access",
    remedy="Set HF_TOKEN to a token that may read the repository. If it is gated, ask for access first.",
)


def _hub_case(status: int, headers: Mapping[str, str]) -> _Case | None:
    """Returns what a hub's headers state; None if they are not those of a hub."""
    if status == 401 and "invalid" in headers.get("x-error-message", "").lower():
        return _HUB_TOKEN_REJECTED
    return _HUB_CASES.get(headers.get("x-error-code", ""))


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Returns the seconds until a request may be repeated, from Retry-After or a hub's RateLimit; None if unknown."""
    limit = re.search(r";\s*t=(\d{1,9})", headers.get("ratelimit", ""))
    found = parse_retry_after(headers.get("retry-after", ""), now)
    return float(limit[1]) if found is None and limit else found


def parse_retry_after(value: str, now: float) -> float | None:
    """Parses Retry-After, seconds or an HTTP date; None if it is neither. Never negative."""
    value = value.strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    moment = parse_http_date(value)
    return None if moment is None else max(0.0, moment - now)


def parse_http_date(value: str) -> float | None:
    """Returns seconds since the epoch, or None if the value is not an HTTP date."""
    if not value:
        return None
    import email.utils  # a cache hit must not pay for this import

    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


def _clock_skew_message(headers: Mapping[str, str], body: bytes, now: float) -> str:
    server_time = parse_http_date(headers.get("date", "")) or _iso_date(_xml_text(body, "ServerTime"))
    if server_time is None:
        return "the clocks of this machine and of the store differ too much"
    seconds = round(now - server_time)
    return f"this machine's clock is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} the store's"


def _iso_date(value: str) -> float | None:
    import datetime as dt  # see parse_http_date

    try:
        return dt.datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


def _xml_text(body: bytes, name: str) -> str:
    """Returns the text of the first XML element of this name; empty if there is none."""
    match = re.search(rb"<" + name.encode() + rb">([^<]*)</", body[:BODY_LIMIT])
    text = match[1].decode("utf-8", "replace").strip() if match else ""
    for entity, character in (("lt", "<"), ("gt", ">"), ("quot", '"'), ("apos", "'"), ("#39", "'"), ("amp", "&")):
        text = text.replace(f"&{entity};", character)
    return text
