"""Workers read when many bytes have arrived, and lose none of those that have when fewer do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tonnage
from support.faults import Fault
from support.faulty_server import FaultyServer
from support.models import load_safetensors_dir, to_safetensors_file
from tonnage.contract import Limits
from tonnage.transfer.connection import UNDELIVERED_BYTES, low_water_mark

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.contract import Progress

SIZE = 4 << 20


@given(st.integers(0, 1 << 40), st.integers(0, UNDELIVERED_BYTES))
def test_a_response_ends_with_as_many_bytes_as_make_it_readable(remaining: int, in_libcurl: int) -> None:
    mark = low_water_mark(remaining)
    assert mark == 1 or mark <= remaining - in_libcurl


@pytest.mark.usefixtures("receiver")
def test_bytes_below_the_mark_are_taken_while_the_server_stalls_and_the_connection_is_reused(tmp_path: Path) -> None:
    tensors = {name: torch.randint(0, 256, (SIZE,), dtype=torch.uint8) for name in "ab"}
    stalls_at = low_water_mark(SIZE) + 99_999
    with FaultyServer() as server:
        server.put("model.safetensors", to_safetensors_file(tensors))
        server.add_fault(
            Fault(stall_after=stalls_at), when=lambda request: bool(request.range and request.range[0]), times=1
        )

        def on_progress(progress: Progress) -> None:
            if progress.loaded_bytes >= stalls_at:
                server.release_stalled()

        report = tonnage.load(
            f"{server.endpoint}/model.safetensors",
            cache=tmp_path,
            limits=Limits(workers=1, connections=1, part_size=SIZE, timeout=30),
            environment={"TONNAGE_STALL_SECONDS": "60", "NO_PROXY": "*"},
            on_progress=on_progress,
            verify="none",
        )
        connections = {request.connection for request in server.find_requests(method="GET") if request.range}
    assert report.retries == 0
    assert len(connections) <= 2, "one of the coordinator, for the header, and one of the worker"
    loaded = load_safetensors_dir(tmp_path / report.entry / "model")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
