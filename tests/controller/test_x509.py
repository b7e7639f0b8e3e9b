"""The expiry of a certificate, compared with what the library ``cryptography`` reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509

from tonnage_operator.x509 import not_after

PEM = trustme.CA().cert_pem.bytes().decode()


@pytest.mark.parametrize("year", [1999, 2000, 2049, 2050, 2105])
def test_the_expiry_is_read_in_any_century(year: int) -> None:
    end = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    names = ("name.example.com", "10.0.0.1")
    pem = trustme.CA().issue_cert(*names, not_before=end - timedelta(days=1), not_after=end).cert_chain_pems[0].bytes()
    assert not_after(pem.decode()) == end
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end


def test_the_first_certificate_of_a_chain_counts() -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    leaf = trustme.CA().issue_cert("a", not_after=end).cert_chain_pems[0].bytes().decode()
    assert not_after(f"Subject: a\n{leaf}{PEM}") == end


@pytest.mark.parametrize(
    "text",
    ["", "no PEM", PEM[:200], PEM.replace("M", "A"), "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"],
    ids=["empty", "text", "truncated", "damaged", "empty PEM"],
)
def test_other_text_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        not_after(text)
