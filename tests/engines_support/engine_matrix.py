"""The cases that are run with real engines, and the page of the documentation that their results become. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODELS = {"llama": "Llama", "qwen2": "Qwen2, tied", "mixtral": "Mixtral"}
WAYS = {
    "hf": "`save_pretrained`: safetensors, loaded as they are",
    "module": "`write_module(model)`",
    "no-buffers": "`write_module(…, include_non_persistent_buffers=False)`",
    "state": "`write_state_dict` of the checkpoint",
    "serialize": "`tonnage serialize` of the checkpoint",
    "vllm": "vLLM's serializer",
    "ranks": "vLLM's serializer, 2 ranks",
}
COLUMNS = {
    ("safetensors", "auto"): "none",
    ("safetensors", "runai_streamer"): "`runai_streamer`",
    ("safetensors", "sharded_state"): "`sharded_state`",
    ("safetensors", "tonnage"): "`tonnage`",
    ("tensorizer", "tensorizer"): "`tensorizer`",
    ("tensorizer", "tonnage"): "`tonnage`",
}
"""Layout and load format, in the order of the table."""
RIGHT_WAYS = (
    "--load-format",
    "load_format_sharded_state",
    "--tensor-parallel-size",
    "layout: Tensorizer",
    "write_state_dict",
)
"""What an error has that names the way to serve the weights."""
SAME = "same"


@dataclass(frozen=True, slots=True)
class Case:
    """One start of vLLM: a model, how its files were written, the entry's layout and vLLM's load format."""

    model: str
    way: str
    layout: str
    load_format: str

    @property
    def ranks(self) -> int:
        """``--tensor-parallel-size``."""
        return 2 if self.way == "ranks" else 1


def all_cases() -> list[Case]:
    """Returns the cases: all load formats with Llama, and with the other models what could differ from Llama."""
    return [
        Case(model, way, layout, load_format)
        for model in MODELS
        for way in WAYS
        for layout, load_format in COLUMNS
        if _matters(model, way, layout, load_format)
    ]


def _matters(model: str, way: str, layout: str, load_format: str) -> bool:
    serialized = way in {"vllm", "ranks"}
    if way == "hf" or (model == "llama" and way in {"no-buffers", "state"}):
        lists_files = (model, way, load_format) == ("llama", "hf", "runai_streamer")
        return layout == "safetensors" and (load_format in {"auto", "tonnage"} or lists_files)
    if serialized and load_format == "tensorizer":  # needs a GPU
        return False
    if model == "llama":
        return way != "ranks" or load_format != "runai_streamer"
    if (model, way) == ("mixtral", "ranks") or way == "no-buffers" or load_format == "runai_streamer":
        return False
    if not serialized:
        return layout == "safetensors" and load_format in {"auto", "tonnage"} and (model, way) != ("qwen2", "state")
    return way == "vllm" or (layout == "safetensors" and load_format != "auto")


def compare(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Returns ``same``, or what happened instead.

    Args:
        answer: vLLM's answer for the entry, or an error.
        expected: vLLM's answer for the model's own folder, with as many ranks.
    """
    if "error" in answer:
        first = " ".join(str(answer["message"]).split())
        kind = "refused" if any(way in first for way in RIGHT_WAYS) else "ends"
        return f"{kind}: {answer['error']}"
    if answer["tokens"] != expected["tokens"]:
        return "other tokens"
    pairs = [
        (one, other)
        for ours, theirs in zip(answer["logprobs"], expected["logprobs"], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return SAME if all(abs(one - other) < 1e-3 for one, other in pairs) else "other probabilities"


def render(results: Mapping[Case, str], others: Sequence[tuple[str, str, str]], versions: Mapping[str, str]) -> str:
    """Returns the page.

    Args:
        results: What ``compare`` returned for each case.
        others: Engine, what it read, and the result, for other engines than vLLM.
        versions: Versions of the engines, by name.
    """
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [
        "# Engines that were run",
        "",
        "Written by `tests/engines`; don't edit. Each cell is a start of the real engine on what `tonnage load` made",
        "of the files. *same* means the same greedy tokens, 24 for each of 3 prompts, with the same probabilities, as",
        "the model served from its Hugging Face folder. *refused* is an error that names the way that works, *ends*",
        "another error. No engine gave other tokens. What to do is in [engines](../guides/engines.md).",
        "",
        f"Versions: {used}, on a CPU.",
        "",
        "## vLLM",
        "",
        "The columns are vLLM's `--load-format`, for an entry in the Safetensors layout and in the Tensorizer layout.",
        "",
        "| model | written by | " + " | ".join(f"{name}" for name in COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    layouts = ["Safetensors" if layout == "safetensors" else "Tensorizer" for layout, _ in COLUMNS]
    lines.append("| | | " + " | ".join(f"*{layout}*" for layout in layouts) + " |")
    for model, title in MODELS.items():
        for way, written in WAYS.items():
            cells = [results.get(Case(model, way, *column), "") for column in COLUMNS]
            if any(cells):
                lines.append(f"| {title} | {written} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Files of 2 ranks were written and served with `--tensor-parallel-size 2`. An empty cell was not run: vLLM's",
        "own `tensorizer` format needs a GPU for what vLLM serialized.",
        "",
        "## Other engines",
        "",
        "| engine | read | result |",
        "|---|---|---|",
        *(f"| {engine} | {what} | {result} |" for engine, what, result in others),
    ]
    return "\n".join(lines) + "\n"
