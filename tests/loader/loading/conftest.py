from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.load_harness import KEYS, IsPartRequest, LoadHarness
from support.models import CONFIG, make_tensors, to_safetensors_file, to_tensors_file

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
def weights_kind(request: pytest.FixtureRequest) -> str:
    """Returns the kind of the file with the weights; ``BOTH_KINDS`` runs a test with each."""
    found: str = getattr(request, "param", "tensors")
    return found


@pytest.fixture
def harness(
    faulty_server: FaultyServer, tmp_path: Path, tensors: dict[str, torch.Tensor], weights: bytes, weights_kind: str
) -> LoadHarness:
    """The model on a server with configurable faults."""
    file = weights if weights_kind == "tensors" else to_safetensors_file(tensors)
    faulty_server.put(KEYS[weights_kind], file)
    faulty_server.put("bucket/model/config.json", CONFIG)
    return LoadHarness(faulty_server, tmp_path / "cache", tensors, file, KEYS[weights_kind])


@pytest.fixture
def is_part_request(weights_kind: str) -> IsPartRequest:
    """Returns whether a request is for a part of the body, not for the index."""

    def is_part(request: Any) -> bool:
        of_weights = request.method == "GET" and request.key == KEYS[weights_kind]
        return of_weights and request.range is not None and request.range[0] > 0

    return is_part
