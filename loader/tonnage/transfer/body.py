"""What is done with the body of a response: checksums are computed, and the bytes are written where they belong.

Two classes do the same: ``CompiledBody`` in C, and ``PythonBody`` where the compiled part is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tonnage.planning.segments import SpanRole

if TYPE_CHECKING:
    import pycurl

    from tonnage.transfer.protocol import Fetch

LIBRARY = f"{__file__.rpartition('/')[0]}/receive.so"
"""The compiled part, if it was built."""

CHECKSUMMED = frozenset({SpanRole.DATA, SpanRole.OPAQUE})
"""Contents whose CRC-32 is computed. The others are short and go to the coordinator as they are."""
CAPTURED = frozenset({SpanRole.HEADER, SpanRole.TAIL})
"""Contents that are kept as they are."""


class Body(Protocol):
    """The body of one response at a time.

    Attributes:
        at: First byte of the object that has not arrived.
        unreported_bytes: Bytes of bodies since the caller set it to 0.
        write_error: An ``errno``; 0: all bytes were written.
        too_long: Whether bytes follow the range.
        other_body: The beginning of a body that is not the range.
        crc: The CRC of all bytes of the range that have arrived, by the algorithm given at its start.
    """

    unreported_bytes: int

    @property
    def at(self) -> int: ...
    @property
    def write_error(self) -> int: ...
    @property
    def too_long(self) -> bool: ...
    @property
    def other_body(self) -> bytes: ...
    @property
    def crc(self) -> int: ...

    def start(self, curl: pycurl.Curl, fetch: Fetch, crc: str) -> None:
        """Prepares for a response.

        Args:
            curl: The handle of the request, which is configured but for its write function.
            fetch: The requested range, and where its bytes belong.
            crc: Name of a CRC to compute over all bytes, in addition to the CRC-32 of pieces; empty: none.

        Raises:
            OSError: An output file can't be opened.
        """

    def decide(self, *, accepted: bool) -> None:
        """Sets, before the first byte, whether the body is the requested range. If not, the transfer is aborted."""

    def finish(self) -> None:
        """Writes what has not been written, unless an error occurred."""

    def results(self) -> tuple[list[int], list[bytes]]:
        """Returns the CRC-32 and the captured bytes of each piece that has arrived; the last may be incomplete.

        A piece whose CRC-32 is not computed has 0, and one that is not captured no bytes.
        """
