"""When a serving certificate expires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme

from tonnage_operator.tls import not_after

PEM = trustme.CA().cert_pem.bytes()


@pytest.mark.parametrize("year", [1999, 2000, 2049, 2050, 2105])
def test_the_expiry_is_read_in_any_century(year: int) -> None:
    end = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    names = ("name.example.com", "10.0.0.1")
    pem = trustme.CA().issue_cert(*names, not_before=end - timedelta(days=1), not_after=end).cert_chain_pems[0].bytes()
    assert not_after(pem) == end


def test_the_first_certificate_of_a_chain_counts() -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    leaf = trustme.CA().issue_cert("a", not_after=end).cert_chain_pems[0].bytes()
    assert not_after(b"Subject: a\n" + leaf + PEM) == end


@pytest.mark.parametrize(
    "text",
    [b"", b"no PEM", PEM[:200], PEM.replace(b"M", b"A"), b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"],
    ids=["empty", "text", "cut off", "damaged", "hollow"],
)
def test_a_file_without_a_certificate_is_rejected(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        not_after(text)
