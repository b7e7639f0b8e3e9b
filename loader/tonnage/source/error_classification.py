"""What a failed request means: a reason, a sentence, and whether to try again. Pure, for workers and small requests.

Messages name the object by its label and are safe to show: they repeat no query string, key or signature, and of the
server's own words only those of an access denial, scrubbed.
"""

from __future__ import annotations

import enum
import re
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.errors import Reason, TonnageError, error_for

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_LIMIT = 64 * 1024
"""How much of an error's body is worth keeping, in bytes."""


class Retry(enum.Enum):
    """What to do about a failure."""

    NEVER = "never"
    BACKOFF = "backoff"
    """Try again later; ``retry_after`` says how much later at least."""
    REFRESH_CREDENTIALS = "refresh-credentials"
    """Try again at once with new credentials, if there are any."""


class RequestFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed request. ``reason`` is what to report when no further try is made.

    ``retry_after`` is in seconds from now, None where the server did not say. ``region`` is the one that the server
    named because it was asked in another; ``code`` is S3's name for the error, empty where there is none.
    """

    reason: Reason
    message: str
    retry: Retry
    retry_after: float | None = None
    region: str = ""

    def to_exception(self) -> TonnageError:
        """Returns the failure as the exception of its reason."""
        return error_for(self.reason, self.message)


def classify(
    *,
    curl_code: int | None,
    status: int | None,
    headers: Mapping[str, str],
    body: bytes,
    label: str,
    connected: bool = True,
    pinned: bool = False,
    now: float | None = None,
) -> RequestFailure:
    """Says what a failed request means.

    Args:
        curl_code: libcurl's error, None or 0 where the transfer itself went well.
        status: The HTTP status, None or 0 where there was none.
        headers: The answer's, names in lower case.
        body: The answer's, or the beginning of it; S3's XML errors are read from it.
        label: What the object is called in the message.
        connected: Whether a connection had been made: a timeout before that means another thing.
        pinned: Whether a certain revision was asked for, so that its absence is a change.
        now: Seconds since the epoch, for clock differences; None: this machine's clock.
    """
    if curl_code:
        return _classify_curl(curl_code, label, connected=connected)
    return _classify_status(status or 0, headers, body, label, pinned=pinned, now=time.time() if now is None else now)


def redact(text: str) -> str:
    """Returns a server's or library's words without what could be a secret, on one line, at most 300 characters."""
    text = re.sub(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*", r"\1", text)
    text = re.sub(
        r"(?i)([a-z-]*(?:signature|credential|token|secret|password|accesskeyid))([=:]\s*)[^\s&,;]+", r"\1\2…", text
    )
    text = re.sub(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}", "…", text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


_DNS = "its host name can't be resolved"
_CURL: dict[int, tuple[Reason, Retry, str]] = {
    1: (Reason.INVALID_PLAN, Retry.NEVER, "its URL is of a protocol that is not supported here"),
    3: (Reason.INVALID_PLAN, Retry.NEVER, "its URL is malformed"),
    5: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, "the proxy's host name can't be resolved"),
    6: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, _DNS),
    7: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, "no connection to its server can be made"),
    8: (Reason.ENDPOINT_UNREACHABLE, Retry.NEVER, "its server does not speak HTTP"),
    18: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the answer ended before its announced length"),
    27: (Reason.INTERNAL_ERROR, Retry.NEVER, "libcurl ran out of memory"),
    28: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the transfer stalled"),
    42: (Reason.INTERRUPTED, Retry.NEVER, "the transfer was ended by this process"),
    47: (Reason.ENDPOINT_UNREACHABLE, Retry.NEVER, "its server redirects too often"),
    52: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the server closed the connection without an answer"),
    55: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the connection broke while the request was sent"),
    56: (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the connection broke while the answer was received"),
    63: (Reason.ENDPOINT_UNREACHABLE, Retry.NEVER, "the answer is longer than it may be"),
    67: (Reason.ACCESS_DENIED, Retry.NEVER, "the login was denied"),
    94: (Reason.ACCESS_DENIED, Retry.NEVER, "the authentication failed"),
    97: (Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF, "the proxy refuses the connection"),
}
_UNTRUSTED = "its server's certificate is not trusted here, or is for another name"
_TLS: dict[int, tuple[Retry, str]] = {
    35: (Retry.BACKOFF, "the TLS handshake with its server failed"),
    53: (Retry.NEVER, "the TLS engine was not found"),
    54: (Retry.NEVER, "the TLS engine can't be used"),
    58: (Retry.NEVER, "the client certificate can't be used"),
    59: (Retry.NEVER, "no TLS cipher can be agreed on"),
    60: (Retry.NEVER, _UNTRUSTED),
    66: (Retry.NEVER, "the TLS engine could not be started"),
    77: (Retry.NEVER, "the file of trusted certificates can't be read"),
    80: (Retry.BACKOFF, "the TLS connection was not ended properly"),
    82: (Retry.NEVER, "the certificate revocation list can't be read"),
    83: (Retry.NEVER, _UNTRUSTED),
    90: (Retry.NEVER, _UNTRUSTED),
    91: (Retry.NEVER, _UNTRUSTED),
    98: (Retry.NEVER, "its server asks for a client certificate"),
}


def _classify_curl(code: int, label: str, *, connected: bool) -> RequestFailure:
    if code in _TLS:
        retry, text = _TLS[code]
        return RequestFailure(
            reason=Reason.TLS_VERIFICATION_FAILED, message=f"{label}: {text} (curl {code}).", retry=retry
        )
    default = (Reason.RETRIES_EXHAUSTED, Retry.BACKOFF, "the transfer failed")
    reason, retry, text = _CURL.get(code, default)
    if code == 28 and not connected:
        reason, text = Reason.ENDPOINT_UNREACHABLE, "its server did not accept a connection in time"
    return RequestFailure(reason=reason, message=f"{label}: {text} (curl {code}).", retry=retry)


class _Case(NamedTuple):
    reason: Reason
    text: str
    retry: Retry = Retry.NEVER


_BUSY = _Case(Reason.RETRIES_EXHAUSTED, "the server can't answer now", Retry.BACKOFF)
_EXPIRED = _Case(Reason.CREDENTIALS_EXPIRED, "the credentials have expired", Retry.REFRESH_CREDENTIALS)
_URL_EXPIRED = _Case(Reason.CREDENTIALS_EXPIRED, "the presigned URL has expired", Retry.REFRESH_CREDENTIALS)
_BY_CODE = {
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted"), _BUSY),
    **dict.fromkeys(("Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"), _BUSY),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"), _EXPIRED),
    "InvalidAccessKeyId": _Case(Reason.ACCESS_DENIED, "the store does not know the access key"),
    "SignatureDoesNotMatch": _Case(
        Reason.ACCESS_DENIED, "the signature does not match: the secret key is wrong, or a proxy changes requests"
    ),
    "AccountProblem": _Case(Reason.ACCESS_DENIED, "the account has a problem"),
    "AllAccessDisabled": _Case(Reason.ACCESS_DENIED, "all access to it is disabled"),
    "InvalidObjectState": _Case(Reason.ACCESS_DENIED, "it is archived and must be restored first"),
    "NoSuchBucket": _Case(Reason.BUCKET_NOT_FOUND, "there is no such bucket at this endpoint"),
}
_BY_STATUS = {
    **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 509), _BUSY),
    **dict.fromkeys((404, 410), _Case(Reason.OBJECT_NOT_FOUND, "there is no such object")),
    **dict.fromkeys(
        (301, 302, 303, 307, 308),
        _Case(Reason.ENDPOINT_UNREACHABLE, "its server redirects elsewhere, which signed requests do not follow"),
    ),
    0: _Case(Reason.RETRIES_EXHAUSTED, "there was no answer", Retry.BACKOFF),
    407: _Case(Reason.ACCESS_DENIED, "the proxy wants authentication"),
    412: _Case(Reason.SOURCE_CHANGED, "it is no longer the object that was pinned"),
    416: _Case(Reason.SOURCE_CHANGED, "it is shorter than it was when it was pinned"),
}
_PINNED_REVISION_MISSING = _Case(Reason.SOURCE_CHANGED, "the pinned revision is no longer there")
_UNEXPECTED_STATUS = _Case(
    Reason.ENDPOINT_UNREACHABLE, "the server does not understand the request; is this an S3 endpoint?"
)
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"}


def _classify_status(
    status: int, headers: Mapping[str, str], body: bytes, label: str, *, pinned: bool, now: float
) -> RequestFailure:
    code = _xml_text(body, "Code")
    code = code if re.fullmatch(r"\w{0,64}", code) else ""
    region = _wrong_region(status, code, headers, body)
    if region:
        case = _Case(Reason.ACCESS_DENIED, f"its bucket is in the region {region}; pass that one")
    elif code == "RequestTimeTooSkewed":
        case = _Case(Reason.REQUEST_TIME_TOO_SKEWED, _clock_skew_message(headers, body, now))
    else:
        case = _case(status, code, body)
    if pinned and case.reason is Reason.OBJECT_NOT_FOUND:
        case = _PINNED_REVISION_MISSING
    return RequestFailure(
        reason=case.reason,
        message=f"{label}: {case.text} ({f'{status} {code}'.strip()}).",
        retry=case.retry,
        retry_after=parse_retry_after(headers.get("retry-after", ""), now) if case.retry is Retry.BACKOFF else None,
        region=region,
    )


def _case(status: int, code: str, body: bytes) -> _Case:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status in {401, 403} or code == "AccessDenied":
        expired = "has expired" in _xml_text(body, "Message")
        return _URL_EXPIRED if expired else _Case(Reason.ACCESS_DENIED, _access_denied_message(body))
    return _BY_STATUS.get(status, _UNEXPECTED_STATUS)


def _wrong_region(status: int, code: str, headers: Mapping[str, str], body: bytes) -> str:
    """The region that the server names because the request was made for another; empty where that is not the matter."""
    if status not in {301, 307} and code not in _WRONG_REGION and (status != 400 or code):
        return ""
    region = headers.get("x-amz-bucket-region", "") or _xml_text(body, "Region")
    return region if re.fullmatch(r"[a-z0-9-]{1,64}", region) else ""


def parse_retry_after(value: str, now: float) -> float | None:
    """Reads a Retry-After header, seconds or an HTTP date; None where it is neither. Never negative."""
    value = value.strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    moment = parse_http_date(value)
    return None if moment is None else max(0.0, moment - now)


def parse_http_date(value: str) -> float | None:
    """Reads an HTTP date into seconds since the epoch; None where it isn't one."""
    if not value:
        return None
    import email.utils  # only failures read dates, and a cache hit has no time for this import

    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


def _access_denied_message(body: bytes) -> str:
    server_message = redact(_xml_text(body, "Message")) if _xml_text(body, "Code") == "AccessDenied" else ""
    if server_message and server_message.rstrip(".").lower() != "access denied":
        return f"access is denied; the store says: {server_message.rstrip('.')}"
    return "access is denied, or it does not exist and this identity may not list the bucket"


def _clock_skew_message(headers: Mapping[str, str], body: bytes, now: float) -> str:
    server_time = parse_http_date(headers.get("date", "")) or _iso_date(_xml_text(body, "ServerTime"))
    if server_time is None:
        return "this machine's clock and the store's are too far apart"
    seconds = round(now - server_time)
    return f"this machine's clock is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} the store's"


def _iso_date(value: str) -> float | None:
    import datetime as dt  # see http_date

    try:
        return dt.datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


def _xml_text(body: bytes, name: str) -> str:
    """The text of the first XML element of this name; empty where there is none."""
    match = re.search(rb"<" + name.encode() + rb">([^<]*)</", body[:BODY_LIMIT])
    return match[1].decode("utf-8", "replace").strip() if match else ""
