"""Types of fixtures in ``tests/attach`` that return functions, and the size of one that is a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import torch

from tonnage.contract import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tonnage.attach import CopyOptions, Weights
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.progress import Progress
    from tonnage.cache import Entry

FILE_BYTES: Final = 3 << 20
"""Size of the fixture ``file``."""

TensorsEqual = Callable[[torch.Tensor, torch.Tensor], bool]


class MakeEntry(Protocol):
    """Publishes an entry from ``.tensors`` files, each in a new cache root."""

    def __call__(
        self,
        files: Sequence[Path],
        *,
        layout: Layout = Layout.SAFETENSORS,
        ranks: bool = False,
        names: Sequence[str] = (),
        segment_size: int = 0,
    ) -> Entry: ...


class Attach(Protocol):
    """Opens weights that are copied by copy workers; by default with small buffers and the CPU as the device."""

    def __call__(self, path: Path, *, options: CopyOptions = ..., engine: Engine | None = None) -> Weights: ...


class LoadWithWorkers(Protocol):
    """Loads all tensors through the copy workers."""

    def __call__(
        self, weights: Weights, *, dtype: torch.dtype | None = None, progress: Progress = "off"
    ) -> dict[str, torch.Tensor]: ...
