"""Gives tensors that have transformers' names in memory the names and shapes of the model's checkpoint.

transformers 5 fuses experts, divides or joins other tensors, and renames modules, when it reads a checkpoint. The
mapping is its own: the one by which it reads checkpoints, reversed, as its ``save_pretrained`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PretrainedConfig, PreTrainedModel


def restore_checkpoint(
    tensors: Mapping[str, torch.Tensor], config: PretrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a checkpoint. They are views of the given ones, or copies where tensors are joined.

    Args:
        tensors: The tensors of the model, by the names that transformers has in memory.
        config: The model's configuration.

    Raises:
        ImportError: This transformers maps nothing: it is older than version 5.
        ValueError: transformers has no such model, or the names of its checkpoints are the same.
    """
    from transformers.core_model_loading import revert_weight_conversion

    found = revert_weight_conversion(_build(config), dict(tensors))
    if found.keys() == tensors.keys():
        raise ValueError("the names of the model's checkpoints are the same")
    yield from found.items()


def _build(config: PretrainedConfig) -> PreTrainedModel:
    """Returns the model without data: of the class that the configuration names, or else a causal one."""
    import transformers

    classes = (getattr(transformers, name, None) for name in config.architectures or ())
    model_class = next((each for each in classes if each is not None), None)
    with torch.device("meta"):
        if model_class is not None:
            built: PreTrainedModel = model_class(config)
            return built
        causal: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        return causal
