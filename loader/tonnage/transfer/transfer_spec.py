"""What a transfer is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tonnage.source.request_target import STALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.contract import Progress, Verify
    from tonnage.format.tensor_header import TensorHeader
    from tonnage.planning.blueprint import Blueprint
    from tonnage.source.credentials import CredentialProvider
    from tonnage.source.request_target import RequestTarget
    from tonnage.transfer.policy import Concurrency


class FetchedRange(msgspec.Struct, frozen=True, array_like=True, tag="Done"):
    """A range ``[start, end)`` of a segment that is on disk: what the journal keeps.

    ``checksums`` and ``captured`` belong to the pieces of that range, in order: CRC-32 of tensor data (else 0), the
    bytes of headers (else empty).
    """

    segment: int
    start: int
    end: int
    checksums: list[int]
    captured: list[bytes]


class DiscardedTensor(msgspec.Struct, frozen=True, array_like=True, tag="Undone"):
    """A tensor that had the wrong hash: what is on disk of it does not count."""

    object: int
    tensor: int


@dataclass(frozen=True, slots=True)
class TransferSpec:
    """A transfer.

    Attributes:
        paths: Absolute paths of the blueprint's files; they exist, with their final size.
        targets: How to request each of the blueprint's objects.
        refresh_targets: Asked for the same anew when the store refuses a request.
        credential_indexes: For each object the index of its credentials.
        journal_records: What an earlier load left on disk, in the journal's order.
        on_record: Called with each range that has come to disk, before it counts.
        pass_fds: Descriptors that workers hold open, so that the entry stays locked while any of them writes.
        bandwidth: Bytes a second of the whole load; 0: no limit.
        deadline: On the monotonic clock; None: no limit.
        stall_seconds: After how long almost without a byte a request is given up and tried again.
    """

    blueprint: Blueprint
    paths: Sequence[str]
    targets: Sequence[RequestTarget]
    credential_indexes: Sequence[int]
    credentials: Sequence[CredentialProvider]
    verify: Verify
    concurrency: Concurrency
    environment: Mapping[str, str]
    refresh_targets: Callable[[], Sequence[RequestTarget]] | None = None
    bandwidth: int = 0
    deadline: float | None = None
    stall_seconds: int = STALL_SECONDS
    journal_records: Sequence[FetchedRange | DiscardedTensor] = ()
    pass_fds: Sequence[int] = ()
    on_record: Callable[[FetchedRange | DiscardedTensor], None] = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None
    canceled: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class TransferResult:
    """How a transfer ended.

    Attributes:
        downloaded: Body bytes that arrived, repeated ones included.
        resumed: Bytes that were on disk before.
        headers: The header of each tensor by (object, tensor).
        verify_levels: The weakest check that a tensor of each object had, by object.
        connections: The width at the end, of all workers together.
    """

    downloaded: int = 0
    resumed: int = 0
    retries: int = 0
    connections: int = 0
    headers: dict[tuple[int, int], TensorHeader] = field(default_factory=dict)
    verify_levels: dict[int, Verify] = field(default_factory=dict)
