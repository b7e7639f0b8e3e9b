"""A fleet of nodes for each test, and models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.models import CONFIG, make_tensors, to_safetensors_file, to_tensors_file
from support.peer_fleet import Fleet
from support.s3_uploads import put
from support.tensors_writer import build_tensors_file, raw_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from support.s3_server import SeaweedS3
    from support.tls import CertificateAuthority


@pytest.fixture
def fleet(tmp_path: Path, authority: CertificateAuthority) -> Iterator[Fleet]:
    """A fleet without nodes."""
    with Fleet(tmp_path, authority) as started:
        yield started


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    """A model of 4.7 MB."""
    return make_tensors(count=8, rows=1024)


@pytest.fixture(scope="session")
def bucket(s3: SeaweedS3, tensors: dict[str, torch.Tensor]) -> str:
    """A bucket with the model as a ``.tensors`` file, and the same with hashes of the store only."""
    name = s3.make_bucket()
    s3.put(name, {"model/weights.tensors": to_tensors_file(tensors), "model/config.json": CONFIG})
    return name


@pytest.fixture(scope="session")
def safetensors_bucket(s3: SeaweedS3, tensors: dict[str, torch.Tensor]) -> str:
    """A bucket with the model as a safetensors file, of which the store has a checksum."""
    name = s3.make_bucket()
    s3.put(name, {"model/model.safetensors": to_safetensors_file(tensors), "model/config.json": CONFIG})
    return name


@pytest.fixture(scope="session")
def unhashed_bucket(s3: SeaweedS3, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with the model as a ``.tensors`` file without hashes, of which the store has a CRC64NVME."""
    name, file = s3.make_bucket(), tmp_path_factory.mktemp("unhashed") / "weights.tensors"
    file.write_bytes(build_tensors_file(raw_tensors(tensors), hashes=()).data)
    put(s3, name, "model/weights.tensors", file, algorithm="CRC64NVME")
    return name
