"""Free TCP ports for servers that cannot choose their own."""

from __future__ import annotations

import contextlib
import random
import socket

_PORTS = range(10_000, 30_000)
"""Below those that Linux gives to connections and to servers that ask for any port (from 32768, by default)."""


def free_ports(count: int) -> list[int]:
    """Returns ``count`` loopback ports that were free when checked.

    Another process may take one before it is used, which takes a program that starts slowly seconds. It is unlikely:
    Linux gives these only to those who ask for them, and two test processes hardly choose the same.
    """
    chosen = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            each, port = stack.enter_context(socket.socket()), chosen.choice(_PORTS)
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                found.append(port)
        return found
