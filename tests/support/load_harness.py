"""Loads a model from a faulty server into a cache, and asserts what was loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import tonnage
from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir
from tonnage.contract import Limits, Report

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from support.faulty_server import FaultyServer

KEY = "bucket/model/weights.tensors"
KEYS = {"tensors": KEY, "safetensors": "bucket/model/model.safetensors"}
"""The key of the model's weights, by the kind of their file."""
BOTH_KINDS = pytest.mark.parametrize("weights_kind", list(KEYS), indirect=True)
"""Runs a test with a ``.tensors`` file at the source and with a safetensors file."""
KIB = 1 << 10
SMALL_LIMITS = Limits(workers=2, connections=4, part_size=256 * KIB)
"""Parts so small that a small file has many."""
SLOW_LIMITS = Limits(workers=2, connections=4, part_size=256 * KIB, bandwidth=2_000_000)
"""So slow that a load does not end before it is interrupted."""

IsPartRequest = Callable[[Any], bool]


@dataclass
class LoadHarness:
    """A faulty server with a model on it, and a cache to load it into."""

    server: FaultyServer
    cache: Path
    tensors: dict[str, torch.Tensor]
    tensors_file: bytes
    """The file with the weights, of either kind."""
    key: str = KEY

    @property
    def body(self) -> int:
        """Offset of the first byte that is fetched in parts: the end of the index or header."""
        return 262_217 if self.key == KEY else 8 + int.from_bytes(self.tensors_file[:8], "little")

    def load(self, *, environment: Mapping[str, str] | None = None, **options: Any) -> Report:
        """Loads the model, anonymously unless ``environment`` is given."""
        arguments: dict[str, Any] = {
            "limits": SMALL_LIMITS,
            "endpoint_url": self.server.endpoint,
            "region": "us-east-1",
        }
        if environment is None:
            arguments["anonymous"] = True
        arguments |= options
        return tonnage.load(
            "s3://bucket/model/",
            cache=self.cache,
            environment={"TONNAGE_STALL_SECONDS": "1", **(environment or {})},
            **arguments,
        )

    def assert_loaded(self, report: Report) -> None:
        """Fails unless all tensors and the companion are loaded bit for bit."""
        folder = self.cache / report.entry / "model"
        assert str(folder) == report.path
        assert_tensors_equal(load_safetensors_dir(folder), self.tensors)
        assert (folder / "config.json").read_bytes() == CONFIG

    def assert_nothing_visible(self) -> None:
        """Fails if a serving container would see a file."""
        assert [path for path in self.cache.glob("*/model/**/*") if path.is_file()] == []
