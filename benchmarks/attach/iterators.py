"""The iterators from which vLLM's load formats take tensors, and what a model does with each. None needs vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    Iterate = Callable[[list[str], str], Iterator[tuple[str, torch.Tensor]]]


def tonnage(files: list[str], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """``--load-format tonnage``."""
    import torch

    from tonnage.vllm_plugin.checkpoint import iterate_checkpoint

    yield from iterate_checkpoint(Path(files[0]).parent, torch.device(device))


def instanttensor(files: list[str], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """``--load-format instanttensor``: tensors own their memory."""
    from instanttensor import safe_open

    with safe_open(files, framework="pt", device=device, copy=True) as opened:
        yield from opened.tensors()


def fastsafetensors(files: list[str], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """``--load-format fastsafetensors``, without GPUDirect."""
    from fastsafetensors import SingleGroup
    from fastsafetensors.parallel_loader import ParallelLoader

    loader = ParallelLoader(
        pg=SingleGroup(), hf_weights_files=files, queue_size=0, use_tqdm_on_load=False, device=device, nogds=True
    )
    try:
        yield from loader.iterate_weights()
    finally:
        loader.close()


def safetensors(files: list[str], _device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The default of vLLM: views of a mapping, which the model copies to the GPU."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                yield name, opened.get_tensor(name)


ITERATORS: dict[str, Iterate] = {
    "tonnage": tonnage,
    "instanttensor": instanttensor,
    "fastsafetensors": fastsafetensors,
    "safetensors": safetensors,
}


class Consumer:
    """Takes all tensors from an iterator, as an engine does while it builds its model.

    Args:
        iterate: The iterator.
        files: The safetensors files.
        device: The parameters' device.
        use: ``parameters``: copy each into memory that was allocated before; ``drop``: only take it.

    Attributes:
        nbytes: Bytes of the tensors that the last call took.
    """

    def __init__(self, iterate: Iterate, files: list[str], device: str, use: str) -> None:
        self.nbytes = 0
        self._iterate = iterate
        self._files = files
        self._device = device
        self._use = use
        self._parameters: dict[str, torch.Tensor] = {}

    def prepare(self) -> None:
        """Allocates the parameters, which an engine has before it loads weights."""
        import torch

        if self._use == "parameters":
            self._parameters = {
                name: torch.empty_like(tensor, device=self._device) for name, tensor in safetensors(self._files, "")
            }

    def __call__(self) -> dict[str, Any]:
        """Returns the parameters."""
        self.nbytes = 0
        for name, tensor in self._iterate(self._files, self._device):
            self.nbytes += tensor.nbytes
            if self._use == "parameters":
                self._parameters[name].copy_(tensor)
        return self._parameters

    def check(self) -> int:
        """Compares the parameters bit for bit with the files, and returns their number.

        Raises:
            ValueError: Some differ.
        """
        import torch

        def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.reshape(-1).view(torch.uint8)

        different = [
            name
            for name, tensor in safetensors(self._files, "")
            if name in self._parameters
            and not torch.equal(as_bytes(self._parameters[name]), as_bytes(tensor.to(self._device, copy=True)))
        ]
        if different:
            raise ValueError(f"{len(different)} parameters differ from the files: {different[:5]}")
        return len(self._parameters)
