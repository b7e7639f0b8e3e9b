"""Reloads certificates and CAs when their mounted files change; they are renewed without notice."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509

from tonnage_operator.config import ConfigError, read_ca

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.tls")

CHECK_INTERVAL: Final = 5.0
"""Seconds between two checks of the files."""


def not_after(pem: bytes) -> datetime:
    """Returns the end of validity of the first certificate in a PEM text, in UTC.

    Raises:
        ValueError: It holds no certificate.
    """
    return x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc


class CertificateWatcher:
    """A serving certificate on disk, and a TLS context that always has the last good one.

    New connections get the new certificate; open connections continue. Files that are no valid pair, as happens while
    they are being replaced, change nothing: the old certificate stays in use, and an error is logged.

    With ``client_ca``, a client may present a certificate, which this CA must have signed. Whether a request needs one
    is the application's decision.
    """

    def __init__(self, cert: Path, key: Path, metrics: Metrics, *, client_ca: Path | None = None) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._metrics = metrics
        self.context = self._create_context()
        self._digest = self._read_digest()
        self._export_expiry()

    def _create_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._cert, self._key)
        if self._client_ca:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _read_digest(self) -> str:
        digest = hashlib.sha256()
        for path in filter(None, (self._cert, self._key, self._client_ca)):
            with contextlib.suppress(OSError):
                digest.update(path.read_bytes() + b"\0")
        return digest.hexdigest()

    def _export_expiry(self) -> None:
        try:
            self._metrics.certificate_expiry.set(not_after(self._cert.read_bytes()).timestamp())
        except (OSError, ValueError) as error:
            # OpenSSL could load the certificate, so only the metric is affected.
            _LOG.warning("The expiry of the certificate in %s can't be read: %s", self._cert, error)

    def reload_if_changed(self) -> None:
        """Loads the files if they changed and are a valid pair."""
        digest = self._read_digest()
        if digest == self._digest:
            return
        self._digest = digest
        try:
            self.context = self._create_context()
        except (ssl.SSLError, OSError) as error:
            self._metrics.certificate_reloads.labels("failure").inc()
            _LOG.error("The certificate in %s can't be used, the old one stays in use: %s", self._cert, error)
        else:
            self._export_expiry()
            self._metrics.certificate_reloads.labels("success").inc()
            _LOG.info("Reloaded the certificate in %s", self._cert)


class CaWatcher:
    """Passes on the installation with the current CA of the report endpoint whenever the CA's file changes.

    A file that can't be used changes nothing, and an error is logged once.
    """

    def __init__(self, installation: Installation, on_change: Callable[[Installation], None]) -> None:
        self._installation = installation
        self._on_change = on_change
        self._last_error = ""

    def reload_if_changed(self) -> None:
        """Loads the file if it changed and holds a CA."""
        reports = self._installation.reports
        try:
            pem = read_ca(Path(reports.ca_file))
        except ConfigError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                _LOG.error("The old CA stays in use: %s", error)
            return
        self._last_error = ""
        if pem != reports.ca_pem:
            self._installation = self._installation.with_report_ca(pem)
            self._on_change(self._installation)
            _LOG.info("Reloaded the CA in %s", reports.ca_file)


async def watch_files(watcher: CertificateWatcher | CaWatcher) -> None:
    """Reloads a watcher's files whenever they change, until cancelled."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        watcher.reload_if_changed()
