"""The credentials of peers: their serving certificate, and the key with which tickets are signed.

They are in one Secret of the operator's namespace, which the chart creates empty and the controller fills. All peers
have the same certificate, for one name, and loaders trust exactly this certificate: no CA can issue another one.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Mapping

VALIDITY: Final = timedelta(days=90)
RENEW_BEFORE: Final = timedelta(days=30)
"""Time before the end of the certificate at which certificate and key are renewed."""
_BACKDATED: Final = timedelta(hours=1)
"""By how much a certificate is valid before it is made, for nodes whose clocks are behind."""
OVERLAP: Final = timedelta(minutes=10)
"""Time after a renewal in which tickets are still signed with the previous key: kubelets take up to two minutes to
update a mounted Secret."""
_KEY_BYTES: Final = 32

CERTIFICATE: Final = "tls.crt"
PRIVATE_KEY: Final = "tls.key"
TRUSTED: Final = "ca.crt"
TICKET_KEY: Final = "ticket-key"
PREVIOUS_TICKET_KEY: Final = "ticket-key-previous"


@dataclass(frozen=True)
class PeerCredentials:
    """What is in the Secret."""

    certificate: bytes
    """PEM of the serving certificate, which is self-signed."""
    private_key: bytes = field(repr=False)
    trusted: bytes
    """PEM of the certificates that loaders trust: this one and, while it is valid, the one before it."""
    ticket_key: bytes = field(repr=False)
    previous_ticket_key: bytes = field(repr=False)
    """Empty if there was none."""
    made: datetime
    expires: datetime

    def signing_key(self, now: datetime) -> bytes:
        """Returns the key for tickets: shortly after a renewal the previous one, because peers may not have the new."""
        recent = now - self.made < OVERLAP
        return self.previous_ticket_key if recent and self.previous_ticket_key else self.ticket_key

    def needs_renewal(self, server_name: str, now: datetime) -> bool:
        """Returns whether the certificate ends soon, or has another name."""
        leaf = x509.load_pem_x509_certificate(self.certificate)
        return now >= self.expires - RENEW_BEFORE or _names(leaf) != [server_name]


def parse_credentials(data: Mapping[str, str]) -> PeerCredentials | None:
    """Returns the credentials in a Secret's data; None if they are not complete and valid."""
    try:
        parts = {name: base64.b64decode(text or "", validate=True) for name, text in data.items()}
        certificate, private_key = parts[CERTIFICATE], parts[PRIVATE_KEY]
        leaf = x509.load_pem_x509_certificate(certificate)
        key = serialization.load_pem_private_key(private_key, password=None)
        if key.public_key() != leaf.public_key() or len(parts[TICKET_KEY]) < _KEY_BYTES:
            return None
        x509.load_pem_x509_certificates(parts[TRUSTED])
    except (KeyError, TypeError, ValueError):
        return None
    previous = parts.get(PREVIOUS_TICKET_KEY, b"")
    return PeerCredentials(
        certificate=certificate,
        private_key=private_key,
        trusted=parts[TRUSTED],
        ticket_key=parts[TICKET_KEY],
        previous_ticket_key=previous if len(previous) >= _KEY_BYTES else b"",
        made=leaf.not_valid_before_utc + _BACKDATED,
        expires=leaf.not_valid_after_utc,
    )


def format_credentials(credentials: PeerCredentials) -> dict[str, str]:
    """Returns the Secret's data."""
    parts = {
        CERTIFICATE: credentials.certificate,
        PRIVATE_KEY: credentials.private_key,
        TRUSTED: credentials.trusted,
        TICKET_KEY: credentials.ticket_key,
        PREVIOUS_TICKET_KEY: credentials.previous_ticket_key,
    }
    return {name: base64.b64encode(part).decode() for name, part in parts.items()}


def renew_credentials(before: PeerCredentials | None, server_name: str, now: datetime) -> PeerCredentials:
    """Returns a new certificate and key. The ones before stay trusted, until the certificate's end.

    Args:
        before: The current credentials, if there are any.
        server_name: The name in the certificate.
        now: In UTC.
    """
    now = now.astimezone(UTC).replace(microsecond=0)
    private_key = ec.generate_private_key(ec.SECP256R1())
    # OpenSSL looks for the signer by its name: each certificate has another one, so that it finds the right one of two.
    parts = ((NameOID.COMMON_NAME, server_name[:64]), (NameOID.SERIAL_NUMBER, secrets.token_hex(8)))
    name = x509.Name([x509.NameAttribute(*part) for part in parts])
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    certificate = leaf.public_bytes(serialization.Encoding.PEM)
    still_valid = before is not None and before.expires > now
    return PeerCredentials(
        certificate=certificate,
        private_key=private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        trusted=certificate + (before.certificate if before and still_valid else b""),
        ticket_key=secrets.token_hex(_KEY_BYTES).encode(),
        previous_ticket_key=before.ticket_key if before else b"",
        made=now,
        expires=now + VALIDITY,
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)
