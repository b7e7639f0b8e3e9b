"""Says that an entry is no longer held: what a holder becomes for its last moment.

A holder is as small as it can be for as long as it lives, so it can't send anything itself. Told to end, it lets its
locks go and replaces itself by this program, which takes about a tenth of a second.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pycurl

from tonnage.reporting.post import Endpoint, Post

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 0.6
"""How long it may take: with Python's start, the whole end stays below a second."""
_BOOT = (
    "import sys,json;sys.path[:]=json.loads(sys.argv[1]);"
    "from tonnage.reporting.release import main;sys.exit(main(sys.argv[2:]))"
)


def command(endpoint: Endpoint, report: bytes) -> list[str]:
    """Returns the command line that sends ``report`` once. It holds no secret, only the token's file."""
    return [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps(sys.path), *endpoint, report.decode()]


def main(arguments: Sequence[str]) -> int:
    """Sends the report; returns 0 whatever comes of it, for the entry is released in any case."""
    url, ca_bundle, token_file, report = arguments
    post = Post(Endpoint(url, ca_bundle, token_file))
    if post.prepare(report.encode(), seconds=SECONDS) is None:
        try:
            post.curl.perform()
        except pycurl.error:
            return 0
    return 0
