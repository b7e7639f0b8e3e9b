"""When a serving certificate expires."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme

from tonnage_operator.telemetry import Metrics
from tonnage_operator.tls import CertificateWatcher, not_after

if TYPE_CHECKING:
    from pathlib import Path

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


def test_a_new_ca_of_clients_replaces_the_old_one(tmp_path: Path) -> None:
    cert, key, client_ca = (tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt"))
    issued = trustme.CA().issue_cert("localhost")
    cert.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    client_ca.write_bytes(PEM)
    watcher = CertificateWatcher(cert, key, Metrics(), client_ca=client_ca)
    assert watcher.context.verify_mode is ssl.CERT_OPTIONAL
    new = trustme.CA().cert_pem.bytes()
    client_ca.write_bytes(b"half a")
    watcher.reload_if_changed()
    assert watcher.context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(PEM.decode())]
    client_ca.write_bytes(new)
    watcher.reload_if_changed()
    assert watcher.context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(new.decode())]
