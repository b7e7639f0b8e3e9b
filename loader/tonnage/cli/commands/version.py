"""``tonnage version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage._version import __version__
from tonnage.cli import output

if TYPE_CHECKING:
    import argparse

    from tonnage.cli.invocation import Invocation


def run(arguments: argparse.Namespace, _: Invocation) -> int:
    """Prints the version; with ``--json`` also the versions that a bug report should have."""
    if not arguments.json:
        print(f"tonnage {__version__}")
        return 0
    import platform

    import msgspec
    import pycurl

    output.write_json(
        {
            "tonnage": __version__,
            "python": platform.python_version(),
            "libcurl": pycurl.version,
            "msgspec": msgspec.__version__,
            "system": platform.platform(),
        }
    )
    return 0
