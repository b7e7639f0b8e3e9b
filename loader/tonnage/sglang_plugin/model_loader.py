"""SGLang's model loader for what Tonnage loads. Imports SGLang, so only SGLang's processes import it."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sglang.srt.configs.load_config import LoadFormat
from sglang.srt.model_loader.loader import DefaultModelLoader
from sglang.srt.runtime_context import get_parallel

from tonnage.attach.files.cache_entry import find_entry, lock_entry
from tonnage.vllm_plugin.checkpoint import iterate_checkpoint, open_weights_of_engine
from tonnage.vllm_plugin.decisions import EngineMismatch, is_state_of_vllm, moves_whole_tensors, parse_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig


class TonnageModelLoader(DefaultModelLoader):
    """Loads a checkpoint from an entry of a cache, or the directory that a pod sees, in both layouts.

    On one or two GPUs tensors arrive at ring speed. Weights that are still being loaded are taken as their files are
    complete. The entry is locked as in use as long as the model exists.

    ``--model-loader-extra-config`` takes ``wait_seconds`` (how long to wait for weights that are being loaded; by
    default without a limit) and the options of SGLang's default loader.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        options = parse_options(load_config.model_loader_extra_config or {})
        own_config = copy.copy(load_config)
        own_config.load_format = LoadFormat.AUTO
        own_config.model_loader_extra_config = options.others
        super().__init__(own_config)
        self._wait_seconds = options.wait_seconds

    def download_model(self, model_config: ModelConfig) -> None:
        """Checks that the weights are there; the loader downloaded them."""
        with open_weights_of_engine(Path(model_config.model_path), wait_seconds=self._wait_seconds) as weights:
            if is_state_of_vllm(weights, None):
                raise EngineMismatch(
                    f"{model_config.model_path} was serialized by vLLM and has the tensors of its own modules. "
                    "Serve it with vLLM and --load-format tonnage."
                )

    def load_model(self, *, model_config: ModelConfig, device_config: DeviceConfig) -> torch.nn.Module:
        """Returns the model with its weights, as SGLang's loaders do."""
        self.download_model(model_config)
        entry = find_entry(Path(model_config.model_path))
        lock = lock_entry(entry[0]) if entry is not None else None
        try:
            model: torch.nn.Module = super().load_model(model_config=model_config, device_config=device_config)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if lock is not None:
            weakref.finalize(model, lock.release)
        return model

    def _get_weights_iterator(
        self, source: DefaultModelLoader.Source, **resolved: object
    ) -> Iterator[tuple[str, torch.Tensor]]:
        path = Path(source.model_or_path)
        if source.allow_patterns_overrides is not None or not path.exists():  # a part of a model on a hub
            yield from super()._get_weights_iterator(source, **resolved)
            return
        tensors = iterate_checkpoint(path, _stream_device(), wait_seconds=self._wait_seconds)
        if self.load_config.draft_model_idx is not None:
            yield from self._filter_mtp_weights(tensors, source.prefix, self.load_config.draft_model_idx)
            return
        for name, tensor in tensors:
            yield source.prefix + name, tensor


def _stream_device() -> torch.device:
    """Returns where tensors are handed to the model: on the GPU, or as views of the cache."""
    if torch.cuda.is_available() and moves_whole_tensors(get_parallel().tp_size):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
