"""A certificate authority for the tests' TLS servers on loopback."""

from __future__ import annotations

import datetime as dt
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "*.localhost")


@dataclass(frozen=True)
class CertificateAuthority:
    """A CA. ``bundle`` is the PEM file that clients must trust."""

    ca: trustme.CA
    bundle: Path

    def server_context(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """Returns a server's context with a new certificate for ``names``; default: the names of loopback."""
        not_after = dt.datetime.now(dt.UTC) - dt.timedelta(days=1) if expired else None
        not_before = dt.datetime(2000, 1, 1, tzinfo=dt.UTC) if expired else None
        certificate = self.ca.issue_cert(*(names or LOOPBACK_NAMES), not_after=not_after, not_before=not_before)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context


def make_certificate_authority(directory: Path, name: str = "ca") -> CertificateAuthority:
    """Creates a CA and writes its certificate to ``directory/<name>.pem``."""
    ca = trustme.CA(organization_name="Tonnage tests")
    bundle = directory / f"{name}.pem"
    ca.cert_pem.write_to_path(str(bundle))
    return CertificateAuthority(ca=ca, bundle=bundle)
