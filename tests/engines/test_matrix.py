"""Real engines start on what Tonnage loads, and give the same tokens as from the model's own folder, or an error."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines_support.engine_client import Request, start_engines
from engines_support.engine_matrix import (
    ADAPTER,
    OTHER_FLAGS,
    OTHER_RANKS,
    SAME,
    Case,
    all_cases,
    compare,
    names_the_way,
    render,
)
from support.repository import ROOT
from tonnage.contract import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines_support.engine_client import Engines

    Load = Callable[[str, str, Layout], str]

Other = tuple[str, str, str, str]
"""Another engine, what it read, the result, and the engine's message if it ended."""
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
    cases = [case for case in (*all_cases(), *OTHER_RANKS, *OTHER_FLAGS) if (case.model, 1) in expected]
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
    return {
        case: compare(answer, expected.get((case.model, case.ranks), expected[case.model, 1]))
        for case, answer in answers.items()
    }


@pytest.fixture(scope="session")
def others(engines: Engines, models: Path, load: Load, tmp_path_factory: pytest.TempPathFactory) -> list[Other]:
    """The other engines: what each read, and how it compares with the original."""
    base, adapter = str(models / "llama/hf"), str(models / "lora/hf")
    tied = str(models / "qwen2/hf")
    llama, qwen2 = (load(model, "module", Layout.SAFETENSORS) for model in ("llama", "qwen2"))
    tensorizer = load("llama", "module", Layout.TENSORIZER)
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
        (
            "transformers",
            f"Llama {module}, layout Tensorizer",
            "transformers_tokens",
            {"model": base},
            {"model": tensorizer},
        ),
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
        (
            "SGLang's model and loader",
            f"Llama {module}, layout Tensorizer",
            "sglang_state",
            sglang,
            {"folder": tensorizer},
        ),
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
                ("tonnage", f"Llama {module}, layout Tensorizer", tensorizer),
                ("tonnage", "Llama by vLLM's serializer", serialized),
                ("sharded_state", f"Llama {module}", llama),
                ("sharded_state", "Llama by vLLM's serializer", serialized),
            )
        ),
    ]
    # Many pairs have the same original, which is asked for once.
    requests = {
        json.dumps([operation, each]): Request(operation, each) for _, _, operation, *both in pairs for each in both
    }
    answers: dict[str, dict[str, Any]] = {}
    with start_engines(tmp_path_factory.mktemp("sglang"), "sglang") as sglang_engines:
        for asked, of_sglang in ((engines, False), (sglang_engines, True)):
            chosen = {key: each for key, each in requests.items() if (each.operation == "sglang_state") == of_sglang}
            answers |= dict(zip(chosen, asked.ask_all([*chosen.values()]), strict=True))
    found = []
    for engine, what, operation, *both in pairs:
        original, ours = (answers[json.dumps([operation, each])] for each in both)
        assert "error" not in original, original
        found.append((engine, what, _compare_any(ours, original), ours.get("message", "")))
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


def test_no_engine_gives_other_tokens(results: dict[Case, str], others: list[Other]) -> None:
    assert {case: result for case, result in results.items() if result.startswith("other")} == {}
    assert [each for each in others if each[2].startswith("other")] == []


def test_the_load_format_tonnage_serves_all_that_vllm_can_serve(results: dict[Case, str]) -> None:
    ours = {case: found for case, found in results.items() if case.load_format == "tonnage" and not is_of_others(case)}
    assert {case: found for case, found in ours.items() if found != SAME} == {}


def test_files_for_another_number_of_ranks_are_refused_with_the_way_to_serve_them(results: dict[Case, str]) -> None:
    found = {case: results[case] for case in OTHER_RANKS if is_of_others(case)}
    assert {case: each for case, each in found.items() if not each.startswith("refused")} == {}


def test_sharded_state_serves_ranks_by_a_pattern(
    engines: Engines, expected: dict[tuple[str, int], dict[str, Any]], load: Load
) -> None:
    """The way without the plugin, and why it is not the default: it notices more ranks only."""
    pattern = re.search(r'{"pattern": "([^"]+)"}', (ROOT / "docs/guides/writing.md").read_text())
    assert pattern
    model = load("llama", "ranks", Layout.SAFETENSORS)
    arguments = {"model": model, "load_format": "sharded_state", "extra": {"pattern": pattern[1]}}
    right, wrong, more = engines.ask_all([Request("generate", arguments | {"ranks": ranks}) for ranks in (2, 1, 4)])
    assert compare(right, expected["llama", 2]) == SAME
    assert compare(wrong, expected["llama", 1]) == "other tokens"
    assert re.search("only pre-sharded checkpoints are|The size of tensor a", more["message"])


def test_the_load_format_tonnage_locks_the_entry_as_in_use_while_the_model_exists(
    answers: dict[Case, dict[str, Any]],
) -> None:
    locked = {case: answer["locked"] for case, answer in answers.items() if "locked" in answer}
    assert {case for case, held in locked.items() if held} == {case for case in locked if case.load_format == "tonnage"}


def test_a_checkpoint_starts_with_no_flag(results: dict[Case, str]) -> None:
    plain = {
        case: found
        for case, found in results.items()
        if case.load_format in {"auto", "runai_streamer"} and case.way not in {"vllm", "ranks"}
        if not is_fused(case) and case not in OTHER_FLAGS
    }
    assert {case: found for case, found in plain.items() if found != SAME} == {}


def test_a_checkpoint_written_from_fused_experts_starts_with_no_flag(
    engines: Engines, expected: dict[tuple[str, int], dict[str, Any]], load: Load, tmp_path: Path
) -> None:
    """The remedy that needs no other file."""
    written = str(tmp_path / "checkpoint")
    assert "error" not in engines.ask("write_checkpoint", model=load(*FUSED, Layout.SAFETENSORS), target=written)
    assert compare(engines.ask("generate", model=written), expected["mixtral", 1]) == SAME


def test_the_guide_has_the_words_with_which_engines_end_and_what_to_do(
    answers: dict[Case, dict[str, Any]], results: dict[Case, str], others: list[Other]
) -> None:
    """Of every start that ends without naming the way that works; and each of its words is from a run."""
    ended = [answers[case]["message"] for case, found in results.items() if found != SAME]
    ended += [message for *_, message in others if message]
    messages = [re.sub(r"/\S+/(r-[0-9a-f]+)(-tensorizer)?/model\b", "/models/llama", each) for each in ended]
    table = GUIDE.read_text().partition("| the engine's message |")[2].partition("\n\n")[0]
    words = [word for row in table.splitlines()[2:] for word in re.findall(r"`([^`]+)` \(", row.split(" | ")[0] + " ")]
    assert [each for each in messages if not any(word in each for word in words) and not names_the_way(each)] == []
    assert [word for word in words if not any(word in each for each in messages)] == []


def is_of_others(case: Case) -> bool:
    """Returns whether vLLM serialized the files for another number of ranks."""
    return bool(case.other_ranks) and case.way in {"vllm", "ranks"}


def is_fused(case: Case) -> bool:
    return (case.model, case.way) == FUSED


def test_the_page_of_the_documentation_is_what_the_run_gives(
    results: dict[Case, str], others: list[Other], engines: Engines, tmp_path: Path
) -> None:
    page = render(results, [each[:3] for each in others], engines.versions)
    if os.environ.get("ENGINE_MATRIX") == "write":
        PAGE.write_text(page)
    committed = PAGE.read_text() if PAGE.exists() else ""
    (tmp_path / PAGE.name).write_text(page)
    difference = "".join(difflib.unified_diff(committed.splitlines(keepends=True), page.splitlines(keepends=True)))
    assert not difference, f"`make engines ENGINE_MATRIX=write` writes the page:\n{difference}"
