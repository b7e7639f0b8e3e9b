"""Gives tensors that transformers 5 has fused in memory the names and shapes of the model's checkpoint.

The mapping is transformers' own: the one by which it reads checkpoints, reversed, as its ``save_pretrained`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PretrainedConfig


def split_experts(tensors: Mapping[str, torch.Tensor], config: PretrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a checkpoint. They are views of the given ones.

    Args:
        tensors: The tensors of the model, by the names that transformers has in memory.
        config: The model's configuration.

    Raises:
        ImportError: This transformers fuses nothing: it is older than version 5.
        ValueError: transformers has no such model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    yield from revert_weight_conversion(model, dict(tensors)).items()
