"""Real engines start on what Tonnage loads, and give the same tokens as from the model's own folder, or an error."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines_support.engine_client import Request
from engines_support.engine_matrix import ADAPTER, SAME, Case, all_cases, compare, render
from support.repository import ROOT
from tonnage.contract import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines_support.engine_client import Engines

    Load = Callable[[str, str, Layout], str]

PAGE = ROOT / "docs/reference/engine-matrix.md"
GUIDE = ROOT / "docs/guides/engines.md"
FUSED = ("mixtral", "module")
"""transformers holds the experts of this model in tensors whose names no engine reads."""

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="session")
def answers(
    engines: Engines, expected: dict[tuple[str, int], dict[str, Any]], load: Load
) -> dict[Case, dict[str, Any]]:
    """vLLM's answer for each case."""
    cases = [case for case in all_cases() if (case.model, case.ranks) in expected]
    loads = dict.fromkeys((each.base.model, each.base.way, each.layout) for each in cases)
    loads |= dict.fromkeys((ADAPTER, each.way, "safetensors") for each in cases if each.model == ADAPTER)
    paths = {(model, way, layout): load(model, way, Layout(layout)) for model, way, layout in loads}
    requests = []
    for case in cases:
        path = paths[case.base.model, case.base.way, case.layout]
        extra = case.extra
        if case.load_format == "tensorizer":
            name = "model-rank-%03d.tensors" if case.ranks > 1 else "model.tensors"
            extra = {"tensorizer_uri": f"{path}/{name}"}
        arguments = {"model": path, "load_format": case.load_format, "extra": extra, "ranks": case.ranks}
        arguments |= {"revision": Path(path).parent.name}  # as in the examples; engines ignore it for a directory
        if case.model == ADAPTER:
            arguments |= {"adapter": paths[ADAPTER, case.way, "safetensors"]}
        requests.append(Request("generate", arguments))
    return dict(zip(cases, engines.ask_all(requests), strict=True))


@pytest.fixture(scope="session")
def results(answers: dict[Case, dict[str, Any]], expected: dict[tuple[str, int], dict[str, Any]]) -> dict[Case, str]:
    return {case: compare(answer, expected[case.model, case.ranks]) for case, answer in answers.items()}


@pytest.fixture(scope="session")
def others(engines: Engines, models: Path, load: Load) -> list[tuple[str, str, str]]:
    """The other engines: what each read, and how it compares with the original."""
    base, adapter = str(models / "llama/hf"), str(models / "lora/hf")
    tied = str(models / "qwen2/hf")
    llama, qwen2 = (load(model, "module", Layout.SAFETENSORS) for model in ("llama", "qwen2"))
    serialized = load("llama", "vllm", Layout.SAFETENSORS)
    checkpoint = load("llama", "hf", Layout.SAFETENSORS)
    lora, saved_lora = (load("lora", way, Layout.SAFETENSORS) for way in ("state", "hf"))
    diffusion = load("diffusion", "state", Layout.SAFETENSORS)
    module, state, saved = "by `write_module(model)`", "by `write_state_dict`", "by `save_pretrained`, as it is"
    adapted = {"model": base, "adapter": adapter}
    sglang = {"folder": base}
    pairs = [
        ("transformers", f"Llama {saved}", "transformers_tokens", {"model": base}, {"model": checkpoint}),
        ("transformers", f"Llama {module}", "transformers_tokens", {"model": base}, {"model": llama}),
        ("transformers", f"Qwen2, tied, {module}", "transformers_tokens", {"model": tied}, {"model": qwen2}),
        ("transformers", "Llama by vLLM's serializer", "transformers_tokens", {"model": base}, {"model": serialized}),
        ("PEFT", f"LoRA adapter {state}", "peft_tokens", adapted, {"model": base, "adapter": lora}),
        ("PEFT", f"LoRA adapter {saved}", "peft_tokens", adapted, {"model": base, "adapter": saved_lora}),
        (
            "diffusers",
            f"UNet {state}",
            "diffusers_sum",
            {"folder": str(models / "diffusion/hf")},
            {"folder": diffusion},
        ),
        ("SGLang's model and loader", f"Llama {saved}", "sglang_state", sglang, {"folder": checkpoint}),
        ("SGLang's model and loader", f"Llama {module}", "sglang_state", sglang, {"folder": llama}),
        *(
            (
                f"SGLang's model, `--load-format {load_format}`",
                what,
                "sglang_state",
                sglang,
                {"folder": folder, "load_format": load_format},
            )
            for load_format, what, folder in (
                ("tonnage", f"Llama {module}", llama),
                ("tonnage", f"Llama {module}, layout Tensorizer", load("llama", "module", Layout.TENSORIZER)),
                ("tonnage", "Llama by vLLM's serializer", serialized),
                ("sharded_state", "Llama by vLLM's serializer", serialized),
            )
        ),
    ]
    answers = engines.ask_all([Request(operation, each) for _, _, operation, *both in pairs for each in both])
    found = []
    for number, (engine, what, *_) in enumerate(pairs):
        original, ours = answers[2 * number : 2 * number + 2]
        assert "error" not in original, original
        found.append((engine, what, _compare_any(ours, original)))
    return found


def _compare_any(ours: dict[str, Any], original: dict[str, Any]) -> str:
    """Compares what any engine answered: tokens and probabilities, or tensors, and what it reports as missing."""
    if "error" in ours:
        return compare(ours, original)
    if ours.get("missing_keys"):
        return f"random weights for {len(ours['missing_keys'])} tensors, with a table of them"
    if ours.get("unexpected_keys"):
        return f"reports {len(ours['unexpected_keys'])} tensors as unexpected"
    same = all(ours[key] == value for key, value in original.items() if key != "locked")
    return SAME if same else "other tokens"


def test_no_engine_gives_other_tokens(results: dict[Case, str], others: list[tuple[str, str, str]]) -> None:
    assert {case: result for case, result in results.items() if result.startswith("other")} == {}
    assert [each for each in others if each[2].startswith("other")] == []


def test_the_load_format_tonnage_serves_all_that_vllm_can_serve(results: dict[Case, str]) -> None:
    ours = {case: found for case, found in results.items() if case.load_format == "tonnage"}
    assert {case: found for case, found in ours.items() if found != SAME} == {}


def test_the_load_format_tonnage_locks_the_entry_as_in_use_while_the_model_exists(
    answers: dict[Case, dict[str, Any]],
) -> None:
    locked = {case: answer["locked"] for case, answer in answers.items() if "locked" in answer}
    assert {case for case, held in locked.items() if held} == {case for case in locked if case.load_format == "tonnage"}


def test_a_checkpoint_starts_with_no_flag(results: dict[Case, str]) -> None:
    plain = {
        case: found
        for case, found in results.items()
        if case.load_format in {"auto", "runai_streamer"} and case.way not in {"vllm", "ranks"} and not is_fused(case)
    }
    assert {case: found for case, found in plain.items() if found != SAME} == {}


def test_a_checkpoint_written_from_fused_experts_starts_with_no_flag(
    engines: Engines, expected: dict[tuple[str, int], dict[str, Any]], load: Load, tmp_path: Path
) -> None:
    """The remedy that needs no other file."""
    written = str(tmp_path / "checkpoint")
    assert "error" not in engines.ask("write_checkpoint", model=load(*FUSED, Layout.SAFETENSORS), target=written)
    assert compare(engines.ask("generate", model=written), expected["mixtral", 1]) == SAME


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(*FUSED, "safetensors", "auto"), r"There is no module or parameter named '[\w.]+' in MixtralModel"),
        (Case("llama", "vllm", "safetensors", "auto"), "start vLLM with --load-format sharded_state"),
        (
            Case("llama", "module", "safetensors", "sharded_state"),
            "only pre-sharded checkpoints are currently supported!",
        ),
    ],
)
def test_the_guide_has_the_words_with_which_vllm_ends(
    answers: dict[Case, dict[str, Any]], case: Case, words: str
) -> None:
    message = re.search(words, answers[case]["message"])
    assert message, answers[case]
    assert f"| `{message[0]}` (" in GUIDE.read_text()


def is_fused(case: Case) -> bool:
    return (case.model, case.way) == FUSED


def test_the_page_of_the_documentation_is_what_the_run_gives(
    results: dict[Case, str], others: list[tuple[str, str, str]], engines: Engines, tmp_path: Path
) -> None:
    page = render(results, others, engines.versions)
    if os.environ.get("ENGINE_MATRIX") == "write":
        PAGE.write_text(page)
    committed = PAGE.read_text() if PAGE.exists() else ""
    (tmp_path / PAGE.name).write_text(page)
    difference = "".join(difflib.unified_diff(committed.splitlines(keepends=True), page.splitlines(keepends=True)))
    assert not difference, f"`make engines ENGINE_MATRIX=write` writes the page:\n{difference}"
