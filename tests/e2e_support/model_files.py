"""Models for the tests' bucket, written by the real tensorizer.

A separate process (this file, run with a folder) writes them while the cluster starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PROMPT = "Model weights from object storage into a verified cache"
SEED = 20


@dataclass(frozen=True)
class ModelFiles:
    """The files of each model by name.

    Attributes:
        small: A few tensors, 4 MB.
        large: 128 MB of tensors, for loads whose progress is observed.
        llama: A model that transformers loads, 60 MB.
        completion: What ``llama`` generates for ``PROMPT``.
        logits: Digest of the original model's logits for ``PROMPT``.
    """

    small: Mapping[str, Path]
    large: Mapping[str, Path]
    llama: Mapping[str, Path]
    completion: str
    logits: str


def start_writing(folder: Path) -> subprocess.Popen[str]:
    """Starts the process that writes all models below ``folder``. It takes several seconds."""
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_writing(process: subprocess.Popen[str], folder: Path) -> ModelFiles:
    """Waits for the process of ``start_writing`` and returns the models."""
    assert process.stdout
    with process.stdout as stdout:
        output = stdout.read()
    assert process.wait() == 0, "the process that writes the models failed"
    result = json.loads(output.splitlines()[-1])
    return ModelFiles(
        small=_files(folder / "small"),
        large=_files(folder / "large"),
        llama=_files(folder / "llama"),
        completion=result["completion"],
        logits=result["logits"],
    )


def _files(folder: Path) -> Mapping[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


def _write_tensors(folder: Path, *, count: int, rows: int) -> None:
    """Writes ``count`` tensors of ``rows`` × 1024 bfloat16 values, 2 KiB a row."""
    import torch
    from tensorizer import TensorSerializer

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(SEED)
    serializer = TensorSerializer(str(folder / "model.tensors"))
    serializer.write_state_dict(
        {
            f"layers.{number}.weight": torch.randn((rows, 1024), generator=generator).to(torch.bfloat16)
            for number in range(count)
        }
    )
    serializer.close()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "hidden_size": 1024}))


def _write_llama(folder: Path) -> tuple[str, str]:
    import torch
    from tensorizer import TensorSerializer
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir(parents=True)
    torch.manual_seed(SEED)
    tokenizer = _make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # so that each generated token is in the vocabulary
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    make_model: Any = AutoModelForCausalLM.from_config
    model = make_model(config, dtype=torch.bfloat16).eval()
    serializer = TensorSerializer(str(folder / "model.tensors"))
    serializer.write_module(model)
    serializer.close()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
        generated = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(generated[0][inputs["input_ids"].shape[1] :])), digest_of(logits)


def _make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROMPT], trainer)
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def digest_of(logits: object) -> str:
    """Returns the SHA-256 of a tensor's bytes, in hex."""
    import hashlib

    import torch

    assert isinstance(logits, torch.Tensor)
    return hashlib.sha256(bytes(logits.contiguous().view(torch.uint8).numpy())).hexdigest()


def main(folder: Path) -> None:
    """Writes all models. The last line of output is JSON with the completion and the digest of the logits."""
    import torch

    torch.set_num_threads(1)  # so that sums have the same order on every machine
    _write_tensors(folder / "small", count=4, rows=512)
    _write_tensors(folder / "large", count=32, rows=2048)
    completion, logits = _write_llama(folder / "llama")
    print(json.dumps({"completion": completion, "logits": logits}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
