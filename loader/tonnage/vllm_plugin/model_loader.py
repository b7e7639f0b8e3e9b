"""vLLM's model loader for what Tonnage loads. Imports vLLM, so only vLLM's processes import it."""

from __future__ import annotations

import contextlib
import copy
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.model_executor.utils import weights_already_processed
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from tonnage.attach.errors import ModuleMismatch
from tonnage.attach.files.cache_entry import find_entry, lock_entry
from tonnage.attach.module_loading import list_module_tensors
from tonnage.attach.weights import find_weight_ranks
from tonnage.errors import TonnageError, error_for
from tonnage.format.known_tensors import VLLM_MARKER
from tonnage.vllm_plugin.checkpoint import iterate_checkpoint, open_weights_of_engine
from tonnage.vllm_plugin.decisions import (
    IF_POST_PROCESSED,
    EngineMismatch,
    NotPostProcessed,
    ParallelSetup,
    check_embeddings,
    check_state,
    choose_rank,
    explain_refusal,
    find_fused_names,
    find_transposed,
    is_state_of_vllm,
    moves_whole_tensors,
    parse_options,
)
from tonnage.vllm_plugin.names_in_memory import restore_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PretrainedConfig
    from vllm.config import ModelConfig, VllmConfig
    from vllm.config.load import LoadConfig

    from tonnage.attach import Weights

logger = init_logger(f"vllm.{__name__}")  # vLLM configures loggers below its own name only


class TonnageModelLoader(DefaultModelLoader):
    """Loads an entry of a cache, or the directory that a pod sees, in both layouts.

    Weights with the names of a checkpoint pass the model's own ``load_weights``, as with vLLM's default; on a CUDA
    device with few ranks they arrive there at ring speed. A state of vLLM's own modules, which
    ``tensorize_vllm_model`` wrote for one or several ranks, is loaded by name. On an accelerator it was post-processed
    before it was written, so it is not post-processed again.

    Weights that are still being loaded are taken as their files are complete, in this order. If their load fails, the
    error is the loader's own.

    The entry is locked as in use as long as the model exists.

    ``--model-loader-extra-config`` takes ``post_processed`` (whether a state of vLLM's modules was post-processed; by
    default true on accelerators and false on the CPU), ``wait_seconds`` (how long to wait for weights that are being
    loaded; by default without a limit) and the options of vLLM's default loader.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        extra = load_config.model_loader_extra_config
        options = parse_options(extra if isinstance(extra, dict) else {})
        own_config = copy.copy(load_config)
        own_config.model_loader_extra_config = options.others
        super().__init__(own_config)
        self._post_processed = (
            not current_platform.is_cpu() if options.post_processed is None else options.post_processed
        )
        self._wait_seconds = options.wait_seconds
        self._restored_config: PretrainedConfig | None = None

    def download_model(self, model_config: ModelConfig) -> None:
        """Checks that the weights are there; the loader downloaded them."""
        with self._open(model_config):
            pass

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> torch.nn.Module:
        """Returns the model with its weights, as vLLM's loaders do."""
        entry = find_entry(Path(model_config.model))
        lock = lock_entry(entry[0]) if entry is not None else None
        with contextlib.ExitStack() as undo:
            if lock is not None:
                undo.callback(lock.release)
            with self._open(model_config) as (weights, is_state):
                restored = is_state and self._post_processed
                logger.info("Loading %s from %s", _revision(weights), model_config.model)
                model: torch.nn.Module = (
                    self._restore_model(weights, vllm_config, model_config, prefix)
                    if restored
                    else super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
                )
            undo.pop_all()
        if lock is not None:
            weakref.finalize(model, lock.release)
        return model

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Loads the weights into a model that vLLM built."""
        with self._open(model_config) as (weights, is_state):
            if not is_state:
                self._load_checkpoint(model, model_config, find_fused_names(weights))
                return
            _check_embeddings(model, weights, label=model_config.model)
            try:
                result = weights.load_into(model, strict=False, progress="off")
            except ModuleMismatch as error:
                remedy = EngineMismatch.remedy if self._post_processed else IF_POST_PROCESSED
                raise EngineMismatch(_with_remedy(str(error), remedy)) from error
            check_state(result.missing, result.unexpected, _setup(), label=model_config.model)

    def _load_checkpoint(self, model: torch.nn.Module, model_config: ModelConfig, fused: Sequence[str]) -> None:
        """Hands a checkpoint's tensors to the model: as they are, or with the names and shapes of its checkpoints."""
        try:
            super().load_weights(model, model_config)
        except (ValueError, KeyError) as error:  # a name that the model doesn't have, or one that it misses
            logger.info("Restoring the names of a checkpoint: %s", str(error).partition(". ")[0])
            self._restored_config = model_config.hf_config
            try:
                super().load_weights(model, model_config)
            except (ValueError, KeyError, ImportError) as second:
                if fused:
                    raise explain_refusal(fused, str(second), label=model_config.model) from second
                raise error from None
            finally:
                self._restored_config = None

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Iterator[tuple[str, torch.Tensor]]:
        path = Path(source.model_or_path, source.subfolder or "")
        if source.allow_patterns_overrides is not None or not path.exists():  # a part of a model on a hub
            other_config = copy.copy(self.load_config)
            other_config.load_format = "auto"
            yield from DefaultModelLoader(other_config)._get_weights_iterator(source)  # noqa: SLF001  # vLLM's own extension point
            return
        unused = source.is_unused_weight or (lambda _: False)

        def skips(name: str) -> bool:
            return should_skip_weight(name, self.local_expert_ids) or unused(name)

        with _explained_errors():
            if self._restored_config is not None:
                in_memory = dict(iterate_checkpoint(path, torch.device("cpu"), wait_seconds=self._wait_seconds))
                tensors = restore_checkpoint(in_memory, self._restored_config)
            else:
                device = self._stream_device()
                tensors = iterate_checkpoint(path, device, skips=skips, wait_seconds=self._wait_seconds)
            for name, tensor in tensors:
                if not skips(name):
                    yield source.prefix + name, tensor

    @contextlib.contextmanager
    def _open(self, model_config: ModelConfig) -> Iterator[tuple[Weights, bool]]:
        """Opens this worker's weights, and finds whether they are the state of vLLM's own modules."""
        path = Path(model_config.model)
        if not path.exists():
            raise EngineMismatch(
                f"--load-format tonnage reads a directory that Tonnage loaded, and {path} does not exist. In a pod, "
                "pass --model=$(TONNAGE_MODEL_PATH)."
            )
        with _explained_errors():
            rank = choose_rank(find_weight_ranks(path), _setup(), label=str(path))
            with open_weights_of_engine(
                path, rank=rank, meta_tensors="meta", wait_seconds=self._wait_seconds
            ) as weights:
                yield weights, is_state_of_vllm(weights.keys(), rank)

    def _restore_model(
        self,
        weights: Weights,
        vllm_config: VllmConfig,
        model_config: ModelConfig,
        prefix: str,
    ) -> torch.nn.Module:
        """Builds a model from a state that was post-processed, without processing it again."""
        device = self._device(vllm_config)
        with set_default_torch_dtype(model_config.dtype):
            with torch.device("meta"):
                model: torch.nn.Module = initialize_model(
                    vllm_config=vllm_config, model_config=model_config, prefix=prefix
                )
            _check_embeddings(model, weights, label=model_config.model)
            state = weights.state_dict(device, filter=lambda name: name != VLLM_MARKER)
            _restore_order(model, state)
            replace_tensors(model, state)
            try:
                with weights_already_processed():
                    process_weights_after_loading(model, model_config, device)
            except RuntimeError as error:
                raise NotPostProcessed(_with_remedy(str(error), NotPostProcessed.remedy)) from error
        left = [tensor.bindings[0].name for tensor in list_module_tensors(model) if tensor.tensor.is_meta]
        check_state(left, (), _setup(), label=model_config.model)
        return model.eval()

    def _device(self, vllm_config: VllmConfig) -> torch.device:
        device = torch.device(self.load_config.device or vllm_config.device_config.device)
        index: int | None = device.index  # PyTorch's own annotation omits None
        if device.type == "cpu" or index is not None:
            return device
        return torch.device(device.type, torch.accelerator.current_device_index())

    def _stream_device(self) -> torch.device:
        """Returns where tensors are handed to the model: on the GPU, or as views of the cache."""
        on_gpu = current_platform.is_cuda() and self.load_config.device in {None, "cuda"}
        if on_gpu and moves_whole_tensors(get_tensor_model_parallel_world_size()):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


@contextlib.contextmanager
def _explained_errors() -> Iterator[None]:
    """Adds the remedy to the message of an error, and its reason: vLLM shows only the message."""
    try:
        yield
    except (EngineMismatch, NotPostProcessed):
        raise
    except TonnageError as error:
        if error.remedy in error.message:
            raise
        message = _with_remedy(f"{error.reason}: {error.message}", error.remedy)
        raise error_for(error.reason, message, remedy=error.remedy) from error


def _check_embeddings(model: torch.nn.Module, weights: Weights, *, label: str) -> None:
    """Checks by their embeddings that weights are for this number of ranks."""
    built = {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        if hasattr(module, "weight")  # a method of quantization has other names
    }
    check_embeddings(
        built, {name: weights.records[name].shape for name in built if name in weights}, _setup(), label=label
    )


def _restore_order(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Lays matrices out in memory by columns that vLLM had transposed without a copy when it post-processed them."""
    methods = {name: type(getattr(module, "quant_method", None)) for name, module in model.named_modules()}
    built = {
        name: (methods.get(name.rpartition(".")[0], type(None)), tuple(tensor.shape))
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }
    for name in find_transposed(built, {name: tuple(tensor.shape) for name, tensor in state.items()}):
        state[name] = state[name].t().contiguous().t()


def replace_tensors(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Replaces parameters and buffers by tensors of other shapes or dtypes, and adds those that the model doesn't have.

    A parameter with several names stays one. Tensors whose module doesn't exist are an error.

    Raises:
        EngineMismatch: A module that a tensor belongs to doesn't exist.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    aliases = {binding.name: target for target in list_module_tensors(model) for binding in target.bindings}
    replaced: set[str] = set()
    for name, tensor in state.items():
        if name in replaced:
            continue
        target = aliases.get(name)
        places = [binding.name for binding in target.bindings] if target is not None else [name]
        is_parameter = target is None or target.is_parameter
        value = torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        for place in places:
            owner_name, _, attribute = place.rpartition(".")
            owner = modules.get(owner_name)
            if owner is None:
                raise EngineMismatch(f"The weights have a tensor {place}, and vLLM's model has no module {owner_name}.")
            persistent = attribute not in owner._non_persistent_buffers_set  # noqa: SLF001  # no public way to ask
            owner._parameters.pop(attribute, None)  # noqa: SLF001  # register_* refuses a name that exists
            owner._buffers.pop(attribute, None)  # noqa: SLF001
            if is_parameter:
                owner.register_parameter(attribute, value)
            else:
                owner.register_buffer(attribute, value, persistent=persistent)
            replaced.add(place)


def _setup() -> ParallelSetup:
    return ParallelSetup(
        get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size(), get_pp_group().world_size
    )


def _revision(weights: Weights) -> str:
    return f"revision {weights.metadata.get('tonnage.revision', 'unknown')}"


def _with_remedy(message: str, remedy: str) -> str:
    """Returns an error's message with its remedy: vLLM shows only the message."""
    return f"{message} {remedy}"
