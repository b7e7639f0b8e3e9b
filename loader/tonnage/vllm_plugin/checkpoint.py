"""The iterator from which vLLM's models take a checkpoint's tensors. Imports no vLLM: it is measured without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tonnage.attach.copy_options import CopyOptions
from tonnage.attach.files.awaited import find_stream
from tonnage.attach.weights import open_path
from tonnage.planning.file_names import OWN_DIRECTORY, TIED_WEIGHTS
from tonnage.vllm_plugin.decisions import checkpoint_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from tonnage.attach import Weights


def open_weights_of_engine(
    path: Path,
    *,
    rank: int | None = None,
    meta_tensors: Literal["zeros", "meta"] = "zeros",
    wait_seconds: float | None = None,
    device: torch.device | None = None,
) -> Weights:
    """Opens an entry, or the directory that a pod sees.

    Args:
        path: The directory.
        rank: The rank whose files are opened.
        meta_tensors: What tensors without data become.
        wait_seconds: How long to wait for weights that are being loaded or not there; None: without a limit if they are
            being loaded, and not at all otherwise.
        device: Where the tensors will be copied to, so that the copy is prepared while files are opened.
    """
    return open_path(
        path,
        rank=rank,
        device=device,
        meta_tensors=meta_tensors,
        options=CopyOptions(),
        wait=wait_seconds is not None or find_stream(path) is not None,
        timeout=wait_seconds,
    )


def iterate_checkpoint(
    path: Path,
    device: torch.device,
    *,
    skips: Callable[[str], bool] = lambda _: False,
    wait_seconds: float | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a checkpoint's tensors by name: views of the cache on the CPU, copies on a GPU. Both may be kept.

    On a GPU later tensors are copied while the caller uses one.

    Args:
        path: The directory.
        device: The tensors' device.
        skips: Returns whether the model does not take a tensor.
        wait_seconds: As in ``open_weights_of_engine``.
    """
    with open_weights_of_engine(path, wait_seconds=wait_seconds, device=device) as weights:
        names = [name for name in checkpoint_names(weights) if not skips(name) and not _is_tied(weights.file_of(name))]
        yield from weights.stream(device, keys=names, progress="off")


def _is_tied(file: Path | None) -> bool:
    """Returns whether a tensor is a second name of another, which the loader laid beside the checkpoint."""
    return file is not None and file.name.startswith(TIED_WEIGHTS) and file.parent.name == OWN_DIRECTORY
