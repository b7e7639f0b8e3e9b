"""Reads when a certificate ends. It is all that is needed of X.509, so the image has no library for it."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17


def not_after(pem: str) -> datetime:
    """Returns until when the first certificate of a PEM is valid (RFC 5280, 4.1 and 4.1.2.5).

    Raises:
        ValueError: There is none.
    """
    _, begin, rest = pem.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not end:
        raise ValueError("no certificate in PEM")
    try:
        certificate = _first(ssl.PEM_cert_to_DER_cert(f"{begin}{body}{end}\n"))
        fields = [content for tag, content in _elements(_first(certificate)) if tag != _VERSION]
        _, _, _, validity, *_ = fields  # serial number, signature algorithm, issuer, validity
        _, (tag, text) = _elements(validity)
        return _time(tag, text.decode("ascii"))
    except (IndexError, ValueError) as error:
        raise ValueError("no certificate in PEM") from error


def _time(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:
        # Two digits of a year: 50 to 99 are of the last century.
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _first(data: bytes) -> bytes:
    for _, content in _elements(data):
        return content
    raise ValueError("an empty element")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields tag and content of each element of DER."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        yield tag, data[at : at + length]
        at += length
