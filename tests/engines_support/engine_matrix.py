"""The cases that are run with real engines, and the page of the documentation that their results become. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODELS = {
    "llama": "Llama",
    "qwen2": "Qwen2, tied",
    "mixtral": "Mixtral",
    "qwen3-moe": "Qwen3-MoE",
    "gemma3": "Gemma 3, tied",
    "gemma2": "Gemma 2, tied",
    "llama-fp8": "Llama, FP8",
}
ADAPTER = "lora"
"""A LoRA adapter that PEFT wrote, on Llama: the adapter's files were written in each way."""
TITLES = {**MODELS, ADAPTER: "Llama with a LoRA adapter"}
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
    "start_vllm_with_load_format_",
    "--tensor-parallel-size",
    "layout: Tensorizer",
    "write_state_dict",
    "post_processed",
)
"""What an error has that names the way to serve the weights."""
RANK_COLUMNS = {key: name for key, name in COLUMNS.items() if key[1] not in {"runai_streamer", "tensorizer"}}
GUIDE = "../guides/engines.md#when-an-engine-ends-at-its-start"
SAME = "same"


@dataclass(frozen=True, slots=True)
class Case:
    """One start of vLLM: a model, how its files were written, the entry's layout and vLLM's load format.

    ``other_ranks`` is ``--tensor-parallel-size``, if it is not what the files were written for.
    """

    model: str
    way: str
    layout: str
    load_format: str
    other_ranks: int = 0

    @property
    def ranks(self) -> int:
        """``--tensor-parallel-size``."""
        return self.other_ranks or (2 if self.way == "ranks" else 1)

    @property
    def base(self) -> Case:
        """The model itself: of an adapter, the Llama that it is for, written so that the load format takes it."""
        if self.model != ADAPTER:
            return self
        return Case("llama", "vllm" if self.load_format == "sharded_state" else "module", self.layout, self.load_format)

    @property
    def extra(self) -> dict[str, object]:
        """``--model-loader-extra-config``: what vLLM serialized is as on a GPU only if it is quantized."""
        serialized = self.way == "vllm" and self.load_format == "tonnage"
        return {"post_processed": True} if self.model == "llama-fp8" and serialized else {}


OTHER_FLAGS = (
    Case("llama", "module", "safetensors", "tensorizer"),
    Case("llama", "module", "safetensors", "runai_streamer_sharded"),
    Case("llama", "module", "tensorizer", "auto"),
    Case("llama", "module", "tensorizer", "runai_streamer"),
    Case("llama", "module", "tensorizer", "sharded_state"),
    Case("llama", "vllm", "tensorizer", "auto"),
)
"""Flags that can't serve an entry, as a user may set them by mistake."""
OTHER_RANKS = tuple(
    Case("llama", way, *column, ranks)
    for way, ranks in (("module", 2), ("vllm", 2), ("ranks", 1), ("ranks", 4))
    for column in RANK_COLUMNS
    if column[1] != "sharded_state" or (way, ranks) == ("ranks", 1)
)
"""Other numbers of ranks than the files are for. With more, workers of ``sharded_state`` end in several ways."""


def all_cases() -> list[Case]:
    """Returns the cases: what an engine could take, and for Llama also what it must refuse."""
    return [
        Case(model, way, layout, load_format)
        for model in (*MODELS, ADAPTER)
        for way in WAYS
        for layout, load_format in COLUMNS
        if _exists(model, way) and _matters(model, way, layout, load_format)
    ]


def _exists(model: str, way: str) -> bool:
    match model:
        case "llama":
            return True
        case "qwen2":
            return way not in {"no-buffers", "state"}
        case "mixtral" | "qwen3-moe":
            return way not in {"no-buffers", "ranks"}
        case "gemma2" | "gemma3":  # one refuses an output head, one has more computed buffers than rotary ones
            return way in {"hf", "module"} or (model, way) == ("gemma3", "vllm")
        case "llama-fp8":  # transformers has no such module
            return way in {"hf", "state", "vllm"}
        case _:
            return way in {"hf", "state"}


def _matters(model: str, way: str, layout: str, load_format: str) -> bool:
    if way in {"vllm", "ranks"}:
        lists_files = load_format == "runai_streamer" and (model, way) != ("llama", "vllm")
        needs_gpu = load_format == "tensorizer"
        return not needs_gpu and not lists_files
    if layout == "tensorizer":  # the file as it is; vLLM's own format takes only what vLLM serialized
        refused = model == "llama" and way in {"module", "serialize"}
        taken = load_format == "tonnage" and way in {"module", "serialize"}
        return taken or refused or (model, way, load_format) == (ADAPTER, "state", "tonnage")
    if load_format == "sharded_state":
        return model == ADAPTER or (model == "llama" and way == "module")
    return load_format != "runai_streamer" or (model in {"llama", "qwen2", ADAPTER} and way in {"module", "hf"})


def names_the_way(message: str) -> bool:
    """Returns whether an error names the way to serve the weights."""
    return any(way in message for way in RIGHT_WAYS)


def compare(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Returns ``same``, or what happened instead.

    Args:
        answer: vLLM's answer for the entry, or an error.
        expected: vLLM's answer for the model's own folder, with as many ranks.
    """
    if "error" in answer:
        first = " ".join(str(answer["message"]).split())
        kind = "refused" if names_the_way(first) else "ends"
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
        f"one whose words and remedy are in [the guide]({GUIDE}). No engine gave other tokens.",
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
    for model, title in TITLES.items():
        for way, written in WAYS.items():
            cells = [results.get(Case(model, way, *column), "") for column in COLUMNS]
            if any(cells):
                lines.append(f"| {title} | {written} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Files of 2 ranks were written and served with `--tensor-parallel-size 2`. vLLM serialized the FP8 weights",
        "after its post-processing, as on a GPU; they are served with `post_processed`. Of an adapter, the row has",
        "how its own files were written; Llama is by `write_module(model)`, for `sharded_state` by vLLM. An empty cell",
        "was not run: vLLM's own `tensorizer` format needs a GPU for what vLLM serialized, and takes nothing else.",
        "",
        "## Another number of ranks",
        "",
        "Llama with another `--tensor-parallel-size` than its files were written for.",
        "",
        "| written by | ranks | " + " | ".join(RANK_COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(RANK_COLUMNS),
        "| | | " + " | ".join(f"*{layout.title()}*" for layout, _ in RANK_COLUMNS) + " |",
        *(
            f"| {WAYS[way]} | {ranks} | "
            + " | ".join(results.get(Case("llama", way, *column, ranks), "") for column in RANK_COLUMNS)
            + " |"
            for way, ranks in dict.fromkeys((each.way, each.other_ranks) for each in OTHER_RANKS)
        ),
        "",
        "## Flags that can't serve an entry",
        "",
        "| Llama written by | layout | `--load-format` | result |",
        "|---|---|---|---|",
        *(
            f"| {WAYS[case.way]} | {case.layout.title()} | "
            f"{'none' if case.load_format == 'auto' else f'`{case.load_format}`'} | {results.get(case, '')} |"
            for case in OTHER_FLAGS
        ),
        "",
        "## Other engines",
        "",
        "| engine | read | result |",
        "|---|---|---|",
        *(f"| {engine} | {what} | {result} |" for engine, what, result in others),
    ]
    return "\n".join(lines) + "\n"
