"""What nodes show to each other is foreign text, also of other releases."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.cache.peer_ranges import (
    MAX_RANGES,
    VERSION,
    EntrySource,
    FileRanges,
    PeerRanges,
    decode_ranges,
    ranges_of_manifest,
)
from tonnage.errors import CacheDamaged

SHOWN = PeerRanges(
    digest="d",
    partial="0123456789abcdef",
    sources=[EntrySource(place="s3+https://s3.example/bucket", key="model.tensors", size=9, etag="e")],
    files=[FileRanges(path="model.safetensors", size=9, ranges=[(0, 3), (5, 9)])],
    pending=[FileRanges(path="model.safetensors", size=9, ranges=[(3, 5)])],
)


def test_what_is_shown_is_read_as_it_was_and_fields_of_later_releases_are_ignored() -> None:
    data = msgspec.json.encode(SHOWN)
    assert decode_ranges(data) == SHOWN
    later = {**json.loads(data), "zones": ["a"], "sources": [{**json.loads(data)["sources"][0], "speed": 1}]}
    assert decode_ranges(json.dumps(later).encode()) == SHOWN


def test_a_release_without_what_is_pending_is_understood() -> None:
    earlier = json.loads(msgspec.json.encode(SHOWN))
    del earlier["pending"]
    assert decode_ranges(json.dumps(earlier).encode()).pending == []


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": VERSION + 1},
        {"partial": "../../etc"},
        {"digest": None},
        {"files": [{"path": "a", "size": -1, "ranges": []}]},
        {"files": [{"path": "a", "size": 1, "ranges": [[0, 1]] * (MAX_RANGES + 1)}]},
        {"files": [{"path": "a", "size": 1, "ranges": [[0]]}]},
        {"pending": [{"path": "x" * 5000, "size": 1, "ranges": []}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_valid_is_an_error_of_the_cache(change: dict[str, object]) -> None:
    with pytest.raises(CacheDamaged):
        decode_ranges(json.dumps({**json.loads(msgspec.json.encode(SHOWN)), **change}).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | st.just(b"[" * 100_000))
def test_foreign_text_raises_nothing_else(data: bytes) -> None:
    for parse in (decode_ranges, ranges_of_manifest):
        with pytest.raises(CacheDamaged):
            parse(data)
