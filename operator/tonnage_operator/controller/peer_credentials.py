"""Keeps the Secret of the peers: certificate and key of tickets, made once and renewed in time."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tonnage_operator.domain.peers.credentials import format_credentials, parse_credentials, renew_credentials
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import SECRETS

if TYPE_CHECKING:
    from tonnage_operator.domain.peers.credentials import PeerCredentials
    from tonnage_operator.kube.client import KubeClient

_LOG = logging.getLogger("tonnage.peers")

_CHECK_INTERVAL: Final = 60.0
"""Seconds between two reads of the Secret."""


class PeerCredentialsKeeper:
    """Reads one Secret, by name, and writes it when it has no valid credentials or they end soon.

    Two controllers at once make one of their writes fail, and the one whose write failed reads the other's.
    """

    def __init__(self, client: KubeClient, name: str, namespace: str, server_name: str) -> None:
        self._client = client
        self._name = name
        self._namespace = namespace
        self._server_name = server_name
        self.current: PeerCredentials | None = None
        """None until they were read or made: no tickets are given."""
        self._last_error = ""

    async def run(self) -> None:
        """Checks the Secret until canceled."""
        while True:
            await self.check()
            await asyncio.sleep(_CHECK_INTERVAL)

    async def check(self) -> None:
        """Reads the Secret, and renews what is in it if that is due. Failures are logged once."""
        try:
            await self._check()
        except ApiError as error:
            if error.message != self._last_error:
                _LOG.error(
                    "The Secret %s/%s with the peers' credentials can't be read or written: %s. The chart creates it "
                    "with peers.enabled.",
                    self._namespace,
                    self._name,
                    error.message,
                )
            self._last_error = error.message
        else:
            self._last_error = ""

    async def _check(self) -> None:
        secret = await self._client.get(SECRETS, self._name, self._namespace)
        found = parse_credentials(secret.get("data") or {})
        now = datetime.now(UTC)
        if found is None or found.needs_renewal(self._server_name, now):
            renewed = renew_credentials(found, self._server_name, now)
            version = {"resourceVersion": secret["metadata"]["resourceVersion"]}
            patch = {"metadata": version, "data": format_credentials(renewed)}
            try:
                await self._client.merge_patch(SECRETS, self._name, self._namespace, patch)
            except ApiError as error:
                if not error.conflict:
                    raise
                return await self._check()  # another controller was first
            _LOG.info("Renewed the peers' certificate and key of tickets, until %s", renewed.expires.isoformat())
            found = renewed
        self.current = found
        return None
