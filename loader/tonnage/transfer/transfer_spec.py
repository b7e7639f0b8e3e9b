"""The input and the result of a transfer, and the records of its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tonnage.record import MutableRecord, Record
from tonnage.source.request_target import STALL_SECONDS
from tonnage.transfer.non_tensor_bytes import NonTensorBytes
from tonnage.transfer.source_headers import HeaderCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.contract import DroppedPeer, Progress, Verify
    from tonnage.format.tensor_header import TensorHeader
    from tonnage.planning.blueprint import Blueprint
    from tonnage.planning.object_checks import ObjectCheck
    from tonnage.source.credentials import CredentialProvider
    from tonnage.source.request_target import RequestTarget
    from tonnage.transfer.concurrency import Concurrency
    from tonnage.transfer.peer_view import PeerSource
    from tonnage.transfer.worker_process import WorkerHost


class FetchedRange(msgspec.Struct, frozen=True, array_like=True, tag="Done"):
    """Journal record: the range ``[start, end)`` of a segment is on disk. The tag is part of the format.

    ``checksums`` and ``captured`` are those of the range's pieces, in order: CRC-32 of data and of opaque bytes
    (otherwise 0), bytes of headers and of what follows the last tensor (otherwise empty). ``crc`` is the CRC by which
    the object is verified, of the whole range; 0 if there is none other than CRC-32.
    """

    segment: int
    start: int
    end: int
    checksums: list[int]
    captured: list[bytes]
    crc: int = 0


class DiscardedTensor(msgspec.Struct, frozen=True, array_like=True, tag="Undone"):
    """Journal record: a tensor had the wrong hash, so its bytes on disk are invalid. The tag is part of the format."""

    object: int
    tensor: int


class DiscardedRange(msgspec.Struct, frozen=True, array_like=True, tag="Discarded"):
    """Journal record: a range of an object did not match a checksum of the object. The tag is part of the format."""

    object: int
    start: int
    end: int


JournalRecord = FetchedRange | DiscardedTensor | DiscardedRange
"""A record of a transfer's journal."""


class TransferSpec(Record, frozen=True):
    """The input of a transfer.

    Attributes:
        paths: Absolute paths of the blueprint's files, which exist with their final size.
        targets: How to request each of the blueprint's objects.
        credential_indexes: For each object, the index of its credentials.
        worker_host: Starts the worker processes.
        checks: How objects are verified that have a checksum at their source, by object.
        refresh_targets: Returns the current targets; called when the store denies a request.
        bandwidth: Limit for the whole load, in bytes per second; 0: no limit.
        deadline: Value of ``time.monotonic()`` by which the transfer must have ended; None: no limit.
        stall_seconds: How long a transfer may stay below ``STALL_BYTES`` a second before it is aborted and retried.
        pages: The kind of pages of the tmpfs that has the files; empty: another file system has them.
        peers: Where the transfer learns about peers; None: none are asked.
        known_bytes: Headers and ends of objects that are known already: their start and bytes, by object.
        collects_headers: Whether the result has what the files lack of the objects.
        journal_records: The records of an earlier load, in the journal's order.
        on_record: Called with each record, before the transfer relies on it.
        on_file: Called once with the number of each file that is complete and verified.
        on_mismatch: Called with the number of an object before bytes of it are fetched again that don't match.
        canceled: Polled several times a second; True interrupts the transfer.
        has_readers: Polled as well; True while readers wait for files, which are then completed one by one.
    """

    blueprint: Blueprint
    paths: Sequence[str]
    targets: Sequence[RequestTarget]
    credential_indexes: Sequence[int]
    credentials: Sequence[CredentialProvider]
    verify: Verify
    concurrency: Concurrency
    worker_host: WorkerHost
    checks: Mapping[int, ObjectCheck] = msgspec.field(default_factory=dict)
    refresh_targets: Callable[[], Sequence[RequestTarget]] | None = None
    bandwidth: int = 0
    deadline: float | None = None
    stall_seconds: int = STALL_SECONDS
    pages: str = ""
    peers: PeerSource | None = None
    known_bytes: Mapping[int, Sequence[tuple[int, bytes]]] = msgspec.field(default_factory=dict)
    collects_headers: bool = False
    journal_records: Sequence[JournalRecord] = ()
    on_record: Callable[[JournalRecord], None] = lambda _: None
    on_file: Callable[[int], None] = lambda _: None
    on_mismatch: Callable[[int], None] = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None
    canceled: Callable[[], bool] = lambda: False
    has_readers: Callable[[], bool] = lambda: False


class TransferResult(MutableRecord):
    """The result of a transfer.

    Attributes:
        downloaded: Body bytes received, including those that were fetched more than once.
        resumed: Bytes that an earlier load left on disk.
        retries: Repeated requests, refetched tensors and restarted workers.
        connections: Total connections of all workers at the end.
        headers: The header of each tensor by (object, tensor).
        verify_levels: For each object, the weakest level at which one of its tensors was verified.
        object_checks: For each object that matches a checksum of its source, how it was verified.
        unverified: For each object that could not be compared with its checksum, a sentence on it.
        peer_bytes: Those of ``downloaded`` that peers have sent.
        dropped_peers: The peers that are no longer asked: node, word and sentence.
        collected: What the entry's files lack of the objects.
        non_tensor_bytes: Checksums of the received bytes that belong to no tensor.
    """

    downloaded: int = 0
    resumed: int = 0
    retries: int = 0
    connections: int = 0
    headers: dict[tuple[int, int], TensorHeader] = msgspec.field(default_factory=dict)
    verify_levels: dict[int, Verify] = msgspec.field(default_factory=dict)
    object_checks: dict[int, ObjectCheck] = msgspec.field(default_factory=dict)
    unverified: dict[int, str] = msgspec.field(default_factory=dict)
    peer_bytes: int = 0
    dropped_peers: list[DroppedPeer] = msgspec.field(default_factory=list)
    collected: HeaderCollector = msgspec.field(default_factory=HeaderCollector)
    non_tensor_bytes: NonTensorBytes = msgspec.field(default_factory=NonTensorBytes)
