"""The journal's records. They are on disk, so renaming a class must not change them."""

from __future__ import annotations

import msgspec
import pytest

from tonnage.transfer.transfer_spec import DiscardedTensor, FetchedRange


@pytest.mark.parametrize(
    ("record", "stored"),
    [
        (FetchedRange(1, 2, 9, [5, 0], [b"", b"h"]), ["Done", 1, 2, 9, [5, 0], [b"", b"h"]]),
        (DiscardedTensor(3, 4), ["Undone", 3, 4]),
    ],
)
def test_records_keep_their_form_on_disk(record: FetchedRange | DiscardedTensor, stored: list[object]) -> None:
    encoded = msgspec.msgpack.encode(record)
    assert msgspec.msgpack.decode(encoded) == stored
    assert msgspec.msgpack.decode(encoded, type=FetchedRange | DiscardedTensor) == record
