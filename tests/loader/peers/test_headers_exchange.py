"""The headers file comes to a load in two threads: the one that looks for peers, and the one that begins the load."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.entry import Entry
from tonnage.cache.peer_ranges import HEADERS_NAME
from tonnage.contract.plan import ObjectPin
from tonnage.loading.peers import headers_exchange
from tonnage.loading.peers.headers_exchange import HeadersOfPeers
from tonnage.loading.peers.headers_file import (
    VERSION,
    HeadersFile,
    ObjectHeaders,
    decode_headers,
    entry_source,
    headers_digest,
)
from tonnage.source.request_target import RequestTarget
from tonnage.source.resolve import ResolvedObject

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_headers_file_that_comes_in_two_threads_at_once_is_taken_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry(tmp_path)
    entry.private_dir.mkdir()
    pin = ObjectPin(key="model.tensors", size=1000, etag="etag")
    target = RequestTarget(url="http://store", label="store")
    item = ResolvedObject(
        source=0, place="place", pin=pin, kind="tensors", path="model.tensors", rank=None, target=target
    )
    source = entry_source(item)
    data = msgspec.msgpack.encode(HeadersFile(VERSION, [source], [ObjectHeaders(source, b"head", [(10, b"tensor")])]))

    other_decodes, first_has_ended = threading.Event(), threading.Event()

    def decode_late(content: bytes) -> HeadersFile:
        if threading.current_thread() is not threading.main_thread():
            other_decodes.set()
            assert first_has_ended.wait(10)
        return decode_headers(content)

    monkeypatch.setattr(headers_exchange, "decode_headers", decode_late)
    headers = HeadersOfPeers()
    headers.expect([item], entry)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(headers.take_over, data, headers_digest(data))
        assert other_decodes.wait(10)
        first = headers.take_over(data, headers_digest(data))
        first_has_ended.set()
        assert second.result(10) is None
    assert first is not None
    assert first.ranges == {0: [(10, b"tensor")]}
    assert headers.digest == headers_digest(data)
    assert (entry.private_dir / HEADERS_NAME).read_bytes() == data
