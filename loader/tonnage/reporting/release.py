"""Reports the release of an entry. A terminating holder replaces itself with this program (``exec``).

To use little memory, a holder has no code to send a report. On SIGTERM it releases its locks and executes this program,
which takes about a tenth of a second.
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
"""Seconds. With the start of Python, termination takes less than a second."""
_BOOTSTRAP = "import sys;sys.path[:]=sys.argv[5:];from tonnage.reporting.release import main;main(sys.argv[1:5])"


def build_command(endpoint: Endpoint, report: bytes) -> list[str]:
    """Returns the command line that sends ``report`` once. It contains the token's path, not the token."""
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, *endpoint, report.decode(), *sys.path]


def main(arguments: Sequence[str]) -> NoReturn:
    """Sends the report, and exits with 0 even if that fails: the entry is released in any case."""
    url, ca_bundle, token_file, report = arguments
    ReportClient(Endpoint(url, ca_bundle, token_file)).send(report.encode(), timeout=TIMEOUT)
    os._exit(0)  # a regular exit would wait for a pending DNS lookup
