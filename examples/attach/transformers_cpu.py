"""Runs a transformers model on the CPU from the cache's own memory: no copies, and all processes share the pages.

    python examples/attach/transformers_cpu.py /models/llama-70b --tokens 8

The path is a cache entry (or any directory of safetensors files) with a config.json beside the weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import transformers

import tonnage


def load(path: Path) -> transformers.PreTrainedModel:
    """Returns the model. Its parameters are views of the cache; writing to one copies the written pages."""
    folder = path if (path / "config.json").exists() else path / "model"
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    with tonnage.open(path) as weights:
        # Each tensor keeps the mapping alive, so leaving the context is safe.
        return model_class.from_pretrained(None, config=config, state_dict=weights.state_dict()).eval()


def main() -> None:
    """Loads the model and generates tokens from a prompt of token IDs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--prompt", type=int, nargs="+", default=[1, 2, 3], help="token IDs")
    parser.add_argument("--tokens", type=int, default=8, help="number of tokens to generate")
    arguments = parser.parse_args()
    began = time.perf_counter()
    model = load(arguments.path)
    print(f"Loaded {type(model).__name__} in {time.perf_counter() - began:.2f} s")
    with torch.inference_mode():
        ids = model.generate(
            torch.tensor([arguments.prompt]), max_new_tokens=arguments.tokens, do_sample=False, pad_token_id=0
        )
    print(" ".join(map(str, ids[0].tolist())))


if __name__ == "__main__":
    main()
