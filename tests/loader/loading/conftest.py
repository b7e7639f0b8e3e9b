from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.load_site import KEY, PartOf, Site
from support.models import CONFIG, file_of, tensors_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from support.faulty_server import FaultyServer


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    """About 2 MiB in twelve tensors."""
    return tensors_of()


@pytest.fixture(scope="session")
def weights(tensors: dict[str, torch.Tensor]) -> bytes:
    """The tensors as a file."""
    return file_of(tensors)


@pytest.fixture
def site(faulty: FaultyServer, tmp_path: Path, tensors: dict[str, torch.Tensor], weights: bytes) -> Site:
    """The model on a server that does as told."""
    faulty.put(KEY, weights)
    faulty.put("bucket/model/config.json", CONFIG)
    return Site(faulty, tmp_path / "cache", tensors, weights)


@pytest.fixture
def parts() -> PartOf:
    """Whether a request is for a part of the body (not the index)."""

    def is_part(request: Any) -> bool:
        return request.method == "GET" and request.key == KEY and request.range is not None and request.range[0] > 0

    return is_part
