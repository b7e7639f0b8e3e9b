"""Answers a prompt with transformers, from a model's folder: `python examples/demo/generate.py FOLDER PROMPT`.

Prints the new tokens, which are the most likely at each step, and their text, as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 12


def main() -> None:
    warnings.filterwarnings("ignore")  # of torch and transformers
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder")
    parser.add_argument("prompt")
    arguments = parser.parse_args()
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.folder, local_files_only=True)
    tokens = generate(model, tokenizer, arguments.prompt)
    print(json.dumps({"tokens": tokens, "text": tokenizer.decode(tokens)}))


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Returns the tokens that follow a prompt, the most likely at each step."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generate_tokens: Any = model.generate
    found: list[int] = generate_tokens(**inputs, **options)[0].tolist()
    return found[inputs["input_ids"].shape[1] :]


if __name__ == "__main__":
    main()
