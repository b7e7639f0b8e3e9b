"""What a load knows of its peers: who they are, what they have, and how to request it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypedDict

import msgspec

from tonnage.source.endpoint_urls import quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import ByteRange
    from tonnage.source.request_target import RequestTarget
    from tonnage.transfer.source_headers import HeaderCollector
    from tonnage.transfer.source_share import SourceShare


@dataclass(frozen=True, slots=True)
class PeerView:
    """A peer that serves the entry, as it was last seen.

    Attributes:
        node: The node's name.
        address: IP address and port.
        request: How to request the entry's files: the URL of the entry, with the name in the certificate.
        partial: Name of the directory of unfinished files; empty if the entry is complete.
        files: By path below ``model/``: the file's size, and its finished ranges in order.
        pending: By path: the file's size, and the ranges that this node is fetching from the source.
        headers: SHA-256 of the headers file that it shows; empty: none, or not known.
    """

    node: str
    address: str
    request: RequestTarget
    partial: str = ""
    files: Mapping[str, tuple[int, Sequence[ByteRange]]] = field(default_factory=dict)
    pending: Mapping[str, tuple[int, Sequence[ByteRange]]] = field(default_factory=dict)
    headers: str = ""

    def target(self, path: str, *, size: int) -> RequestTarget:
        """Returns how to request a file of the entry from this peer.

        Args:
            path: The path below ``model/``.
            size: The file's size in bytes.
        """
        folder = f"partial/{self.partial}" if self.partial else "model"
        url = f"{self.request.url}/{folder}/{quote_key(path)}"
        return msgspec.structs.replace(self.request, url=url, size=size, label=f"{path} at peer {self.node}")


@dataclass(frozen=True, slots=True)
class PeersSnapshot:
    """All peers: the names of those that the controller names, and what they have as far as they were seen.

    ``generation`` changes when anything does. ``share`` is this node's part of the nodes that load, if it is known, and
    ``headers`` what it does about headers: see ``PeersAnswer.headers``. ``far`` are those of other zones.
    """

    generation: int = 0
    views: tuple[PeerView, ...] = ()
    nodes: frozenset[str] = frozenset()
    share: SourceShare | None = None
    headers: str = ""
    far: frozenset[str] = frozenset()


class PeerSource(Protocol):
    """Where a transfer learns about its peers, and what it shows to them. No method blocks for long."""

    node: str

    def snapshot(self) -> PeersSnapshot:
        """Returns the peers as they are known now."""

    def publish(self, files: Mapping[str, Sequence[ByteRange]], pending: Mapping[str, Sequence[ByteRange]]) -> None:
        """Shows the finished ranges of this load's files, and those that it is fetching from the source."""

    def show_headers(self, collected: HeaderCollector) -> bool:
        """Shows peers the headers, if all have been received; returns whether that is so, or never will be."""

    def take_headers(self) -> Mapping[int, Sequence[tuple[int, bytes]]] | None:
        """Returns once what a peer's headers file has of the load's objects, by index; None: nothing new."""

    def refuse(self, node: str) -> None:
        """A peer is no longer asked; its state need not be read."""

    def look_again(self, node: str) -> None:
        """A peer no longer has what it had."""

    def token_rejected(self) -> None:
        """A peer did not accept the pass."""


class PeerFields(TypedDict, total=False):
    """The fields of ``TransferSpec`` that are about peers."""

    peers: PeerSource
    known_bytes: Mapping[int, Sequence[tuple[int, bytes]]]
    collects_headers: bool
