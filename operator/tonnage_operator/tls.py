"""Keeps the CA of the report endpoint up to date: whoever renews it tells nobody, the mounted file just changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tonnage_operator.config import ConfigError, read_ca

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage_operator.domain.installation import Installation

_CA_LOG = logging.getLogger("tonnage.trust")

CA_CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at the file."""


class CaWatcher:
    """Hands the installation out anew when the file of its CA changed. A file that can't be used changes nothing."""

    def __init__(self, installation: Installation, on_change: Callable[[Installation], None]) -> None:
        self._installation = installation
        self._on_change = on_change
        self._last_error = ""

    def reload_if_changed(self) -> None:
        """Takes up what is in the file, if it changed and is good."""
        reports = self._installation.reports
        try:
            pem = read_ca(Path(reports.ca_file))
        except ConfigError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                _CA_LOG.error("The old CA stays in use: %s", error)
            return
        self._last_error = ""
        if pem != reports.ca_pem:
            self._installation = self._installation.with_report_ca(pem)
            self._on_change(self._installation)
            _CA_LOG.info("Took up the new CA in %s", reports.ca_file)

    async def watch(self) -> None:
        """Checks now and then, until cancelled."""
        while True:
            await asyncio.sleep(CA_CHECK_INTERVAL)
            self.reload_if_changed()
