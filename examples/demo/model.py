"""The demo's model: a small Llama with random weights and its own tokenizer, serialized by tensorizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensorizer import TensorSerializer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

VOCABULARY = 32000
SEED = 20


def make_model(*, small: bool) -> LlamaForCausalLM:
    """Returns a Llama in bf16 with random weights: about 460 MB, or 40 MB if `small`."""
    torch.manual_seed(SEED)
    width, layers = (256, 4) if small else (1024, 12)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        initializer_range=0.1,  # so that the most likely tokens differ from step to step
        dtype="bfloat16",
    )
    model: LlamaForCausalLM = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    return model


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the files to upload: `model.tensors` by tensorizer, the config and the tokenizer."""
    directory.mkdir(parents=True)
    serializer = TensorSerializer(str(directory / "model.tensors"))
    serializer.write_module(model)
    serializer.close()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
