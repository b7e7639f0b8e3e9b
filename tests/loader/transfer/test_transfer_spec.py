"""The journal's records. They are on disk, so renaming a class must not change them."""

from __future__ import annotations

import msgspec
import pytest

from tonnage.transfer.transfer_spec import DiscardedRange, DiscardedTensor, FetchedRange, JournalRecord


@pytest.mark.parametrize(
    ("record", "stored"),
    [
        (FetchedRange(1, 2, 9, [5, 0], [b"", b"h"]), ["Done", 1, 2, 9, [5, 0], [b"", b"h"], 0]),
        (DiscardedRange(3, 4, 9), ["Discarded", 3, 4, 9]),
        (DiscardedTensor(3, 4), ["Undone", 3, 4]),
    ],
)
def test_records_keep_their_form_on_disk(record: JournalRecord, stored: list[object]) -> None:
    encoded = msgspec.msgpack.encode(record)
    assert msgspec.msgpack.decode(encoded) == stored
    assert msgspec.msgpack.decode(encoded, type=JournalRecord) == record
