"""Reads when a certificate ends. It is all that is needed of X.509, so the image has no library for it."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PEM_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_PEM_END: Final = "-----END CERTIFICATE-----"
_DER_VERSION_TAG: Final = 0xA0
_DER_UTC_TIME_TAG: Final = 0x17


def not_after(pem: str) -> datetime:
    """Returns until when the first certificate of a PEM is valid (RFC 5280, 4.1 and 4.1.2.5).

    Raises:
        ValueError: There is none.
    """
    _, begin, remainder = pem.partition(_PEM_BEGIN)
    body, end, _ = remainder.partition(_PEM_END)
    if not end:
        raise ValueError("no certificate in PEM")
    try:
        certificate = _first_der_element(ssl.PEM_cert_to_DER_cert(f"{begin}{body}{end}\n"))
        fields = [content for tag, content in _der_elements(_first_der_element(certificate)) if tag != _DER_VERSION_TAG]
        _, _, _, validity, *_ = fields  # serial number, signature algorithm, issuer, validity
        _, (tag, text) = _der_elements(validity)
        return _parse_der_time(tag, text.decode("ascii"))
    except (IndexError, ValueError) as error:
        raise ValueError("no certificate in PEM") from error


def _parse_der_time(tag: int, text: str) -> datetime:
    if tag == _DER_UTC_TIME_TAG:
        # Two digits of a year: 50 to 99 are of the last century.
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _first_der_element(data: bytes) -> bytes:
    for _, content in _der_elements(data):
        return content
    raise ValueError("an empty element")


def _der_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields tag and content of each element of DER."""
    offset = 0
    while offset < len(data):
        tag, length = data[offset], data[offset + 1]
        offset += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[offset : offset + size], "big")
            offset += size
        yield tag, data[offset : offset + length]
        offset += length
