"""Says that an entry is no longer held: what a holder becomes for its last moment.

A holder is as small as it can be for as long as it lives, so it can't send anything itself. Told to end, it lets its
locks go and replaces itself by this program, which takes about a tenth of a second.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tonnage.reporting.client import Endpoint, ReportClient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

TIMEOUT = 0.6
"""How long it may take: with Python's start, the whole end stays below a second."""
_BOOTSTRAP = "import sys;sys.path[:]=sys.argv[5:];from tonnage.reporting.release import main;main(sys.argv[1:5])"


def build_command(endpoint: Endpoint, report: bytes) -> list[str]:
    """Returns the command line that sends ``report`` once. It holds no secret, only the token's file."""
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, *endpoint, report.decode(), *sys.path]


def main(arguments: Sequence[str]) -> NoReturn:
    """Sends the report, and leaves with 0 whatever comes of it, for the entry is released in any case."""
    url, ca_bundle, token_file, report = arguments
    ReportClient(Endpoint(url, ca_bundle, token_file)).send(report.encode(), timeout=TIMEOUT)
    os._exit(0)  # an orderly end would wait for a name that can't be looked up
