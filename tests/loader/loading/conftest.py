from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.load_harness import KEY, IsPartRequest, LoadHarness
from support.models import CONFIG, make_tensors, to_tensors_file

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from support.faulty_server import FaultyServer


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    """About 2 MiB in twelve tensors."""
    return make_tensors()


@pytest.fixture(scope="session")
def weights(tensors: dict[str, torch.Tensor]) -> bytes:
    """The tensors as a ``.tensors`` file."""
    return to_tensors_file(tensors)


@pytest.fixture
def harness(
    faulty_server: FaultyServer, tmp_path: Path, tensors: dict[str, torch.Tensor], weights: bytes
) -> LoadHarness:
    """The model on a server with configurable faults."""
    faulty_server.put(KEY, weights)
    faulty_server.put("bucket/model/config.json", CONFIG)
    return LoadHarness(faulty_server, tmp_path / "cache", tensors, weights)


@pytest.fixture
def is_part_request() -> IsPartRequest:
    """Returns whether a request is for a part of the body, not for the index."""

    def is_part(request: Any) -> bool:
        return request.method == "GET" and request.key == KEY and request.range is not None and request.range[0] > 0

    return is_part
