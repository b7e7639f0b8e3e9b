"""Keeps the CA of the report endpoint up to date: whoever renews it tells nobody, the mounted file just changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tonnage_operator.config import BadConfig, read_ca

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage_operator.domain.installation import Installation

_LOG = logging.getLogger("tonnage.trust")

CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at the file."""


class ReportCa:
    """Hands the installation out anew when the file of its CA changed. A file that can't be used changes nothing."""

    def __init__(self, installation: Installation, use: Callable[[Installation], None]) -> None:
        self._installation = installation
        self._use = use
        self._refused = ""

    def check(self) -> None:
        """Takes up what is in the file, if it changed and is good."""
        reports = self._installation.reports
        try:
            pem = read_ca(Path(reports.ca_file))
        except BadConfig as error:
            if str(error) != self._refused:
                self._refused = str(error)
                _LOG.error("The old CA stays in use: %s", error)
            return
        self._refused = ""
        if pem != reports.ca_pem:
            self._installation = self._installation.trusting(pem)
            self._use(self._installation)
            _LOG.info("Took up the new CA in %s", reports.ca_file)

    async def watch(self) -> None:
        """Checks now and then, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            self.check()
