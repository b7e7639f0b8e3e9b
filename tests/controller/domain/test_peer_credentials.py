"""The peers' certificate and ticket key: made once, renewed in time, and never without an overlap."""

from __future__ import annotations

import base64
import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from tonnage_operator.domain.peers import credentials
from tonnage_operator.domain.peers.credentials import (
    OVERLAP,
    RENEW_BEFORE,
    VALIDITY,
    PeerCredentials,
    format_credentials,
    parse_credentials,
    renew_credentials,
)

if TYPE_CHECKING:
    from pathlib import Path

NAME = "tonnage-peers.tonnage-system.svc"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def first() -> PeerCredentials:
    return renew_credentials(None, NAME, NOW)


def test_what_is_written_is_read_again(first: PeerCredentials) -> None:
    assert parse_credentials(format_credentials(first)) == first
    renewed = renew_credentials(first, NAME, NOW + timedelta(days=70))
    assert parse_credentials(format_credentials(renewed)) == renewed


def test_credentials_are_renewed_in_their_last_month_and_for_another_name(first: PeerCredentials) -> None:
    due = NOW + VALIDITY - RENEW_BEFORE
    assert not first.needs_renewal(NAME, due - timedelta(seconds=1))
    assert first.needs_renewal(NAME, due)
    assert first.needs_renewal("tonnage-peers.other.svc", NOW)


def test_after_a_renewal_both_certificates_are_trusted_and_the_old_key_signs_for_a_while(
    first: PeerCredentials,
) -> None:
    then = NOW + timedelta(days=60)
    second = renew_credentials(first, NAME, then)
    assert len(x509.load_pem_x509_certificates(second.trusted)) == 2
    assert first.certificate in second.trusted
    assert second.signing_key(then + OVERLAP - timedelta(seconds=1)) == first.ticket_key
    assert second.signing_key(then + OVERLAP) == second.ticket_key != first.ticket_key
    third = renew_credentials(second, NAME, then + timedelta(days=60))
    assert len(x509.load_pem_x509_certificates(third.trusted)) == 2, "the first one has ended"


def test_the_first_key_signs_at_once(first: PeerCredentials) -> None:
    assert first.signing_key(NOW) == first.ticket_key


def _handshake(served: PeerCredentials, trusted: bytes, folder: Path) -> None:
    """Connects a client that trusts these certificates alone. Raises ``ssl.SSLError`` if it doesn't believe."""
    for name, content in (("crt", served.certificate), ("key", served.private_key)):
        (folder / name).write_bytes(content)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder / "crt", folder / "key")
    client_context = ssl.create_default_context(cadata=trusted.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=NAME)
    for _ in range(3):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert client.getpeercert()


def test_clients_of_before_and_after_a_renewal_believe_the_servers_of_before_and_after(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    old = renew_credentials(None, NAME, now - timedelta(days=60))
    new = renew_credentials(old, NAME, now)
    _handshake(old, old.trusted, tmp_path)
    _handshake(old, new.trusted, tmp_path)
    _handshake(new, new.trusted, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(renew_credentials(None, NAME, now), new.trusted, tmp_path)


def test_nodes_whose_clocks_are_behind_accept_a_new_certificate(first: PeerCredentials) -> None:
    (leaf,) = x509.load_pem_x509_certificates(first.certificate)
    assert leaf.not_valid_before_utc <= NOW - timedelta(minutes=30)


@pytest.mark.parametrize("missing", [credentials.CERTIFICATE, credentials.PRIVATE_KEY, credentials.TICKET_KEY])
def test_incomplete_credentials_count_as_none(first: PeerCredentials, missing: str) -> None:
    data = format_credentials(first)
    assert parse_credentials({**data, missing: ""}) is None
    assert parse_credentials({name: text for name, text in data.items() if name != missing}) is None


def test_a_key_of_another_certificate_counts_as_none(first: PeerCredentials) -> None:
    other = format_credentials(renew_credentials(None, NAME, NOW))
    assert (
        parse_credentials({**format_credentials(first), credentials.PRIVATE_KEY: other[credentials.PRIVATE_KEY]})
        is None
    )


@given(
    st.dictionaries(
        st.sampled_from(["tls.crt", "tls.key", "ca.crt", "ticket-key"]),
        st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()),
    )
)
def test_foreign_data_never_raises(data: dict[str, str]) -> None:
    assert parse_credentials(data) is None


def test_no_secret_is_in_the_text_of_credentials(first: PeerCredentials) -> None:
    text = repr(first)
    assert first.ticket_key.decode() not in text
    assert "PRIVATE KEY" not in text
