"""Limits of a server's connections, and which connection is closed when one is reached. Pure: no sockets, no clock.

A connection *waits* while the server waits for its client: for the handshake, the head or body of a request, or the
next request. Only waiting connections are closed to make room, so a client that sends what it announced is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one server. Times are seconds."""

    connections: int = 512
    """Open connections of all peers."""
    per_peer: int = 256
    """Open connections of one address. An API server sends at most 200 mutating requests at a time by default."""
    handshake: float = 5.0
    """From the connection to the end of the TLS handshake."""
    head: float = 5.0
    """From there to the end of the first request's head."""
    body: float = 10.0
    """From the end of the head to the end of the body."""
    idle: float = 15.0
    """From the end of a request's handling to the end of the next request's head; sending the response counts."""
    body_bytes: int = 32 << 20
    """Bytes of all bodies that are being received."""


@dataclass(eq=False, slots=True)
class Connection:
    """What decides whether a connection is closed to make room."""

    peer: str
    """The client's address, without its port."""
    waiting_since: float | None
    """The clock's time in seconds at which the server began to wait for the client; None: it handles a request."""
    has_sent_request: bool = False
    """The client has sent a whole request before."""
    body_bytes: int = 0
    """Bytes of the body that is being received."""


class ConnectionRefused(Exception):
    """There are too many connections, and none of them waits for its client."""


def make_room(connections: Iterable[Connection], peer: str, limits: ConnectionLimits) -> Connection | None:
    """Returns the connection to close before ``peer`` gets another one; None: there is room.

    A peer at its limit loses one of its own connections. At the limit of all, the peer with the most connections loses
    one: so many addresses are needed to displace a peer with few. Connections without any request go first, then those
    that wait the longest.

    Raises:
        ConnectionRefused: There is no room.
    """
    by_peer: dict[str, list[Connection]] = {}
    total = 0
    for each in connections:
        by_peer.setdefault(each.peer, []).append(each)
        total += 1
    if len(by_peer.get(peer, ())) >= limits.per_peer:
        candidates = [by_peer[peer]]
    elif total >= limits.connections:
        candidates = sorted(by_peer.values(), key=len, reverse=True)
    else:
        return None
    for group in candidates:
        waiting = [
            (each.has_sent_request, each.waiting_since, each) for each in group if each.waiting_since is not None
        ]
        if waiting:
            return min(waiting, key=lambda item: item[:2])[2]
    raise ConnectionRefused


def largest_body(connections: Iterable[Connection], limits: ConnectionLimits) -> Connection | None:
    """Returns the connection to close when the bodies that are being received exceed their limit; None: they don't.

    It is the one that has sent the most, so small requests are not affected by large ones.
    """
    receiving = [each for each in connections if each.body_bytes]
    if sum(each.body_bytes for each in receiving) <= limits.body_bytes:
        return None
    return max(receiving, key=lambda each: each.body_bytes)
