"""The page of engines that were run: complete, and how its cells are found. tests/engines runs the engines."""

from __future__ import annotations

from typing import Any

import pytest

from engines_support.engine_matrix import SAME, TITLES, Case, all_cases, compare, render
from support.repository import ROOT

PAGE = (ROOT / "docs/reference/engine-matrix.md").read_text()
ANSWER: dict[str, Any] = {"tokens": [[1, 2]], "logprobs": [[-0.5, -0.25]]}


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (ANSWER, SAME),
        ({**ANSWER, "tokens": [[1, 3]]}, "other tokens"),
        ({**ANSWER, "logprobs": [[-0.5, -0.3]]}, "other probabilities"),
        ({"error": "KeyError", "message": "'model.embed_tokens.weight'"}, "ends: KeyError"),
        ({"error": "RuntimeError", "message": "serve with --load-format tonnage"}, "refused: RuntimeError"),
    ],
)
def test_an_answer_is_compared_with_that_of_the_models_own_folder(answer: dict[str, Any], result: str) -> None:
    assert compare(answer, ANSWER) == result


def test_the_page_has_a_cell_for_each_case() -> None:
    titles = tuple(f"| {title} |" for title in TITLES.values())
    rows = [line for line in PAGE.splitlines() if line.startswith(titles)]
    cells = [cell.strip() for row in rows for cell in row.split("|")[3:-1]]
    assert sum(bool(cell) for cell in cells) >= len(all_cases())


def test_no_cell_of_the_page_has_other_tokens() -> None:
    assert "other tokens" not in PAGE.partition("## vLLM")[2]
    assert "other probabilities" not in PAGE


def test_a_page_shows_each_result_in_the_row_of_its_model_and_way() -> None:
    page = render({Case("llama", "state", "safetensors", "auto"): "found"}, [("a", "b", "c")], {"vllm": "1"})
    [row] = [line for line in page.splitlines() if "found" in line]
    assert row.startswith("| Llama | `write_state_dict` of the checkpoint | found |")
    assert "| a | b | c |" in page
