"""The transformers example with a small random model."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import tonnage

if TYPE_CHECKING:
    from collections.abc import Callable

    class Generates(Protocol):
        """The library annotates ``generate`` with a protocol that its own models do not implement."""

        def generate(
            self, inputs: torch.Tensor, *, max_new_tokens: int, do_sample: bool, pad_token_id: int
        ) -> torch.Tensor: ...


EXAMPLE = Path(__file__).parents[2] / "examples/attach/transformers_cpu.py"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    return torch.nn.Module.eval(LlamaForCausalLM(config))


@pytest.fixture
def directory(tmp_path: Path, model: LlamaForCausalLM) -> Path:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    return tmp_path


def test_it_generates_the_same_as_the_model(
    directory: Path, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(directory), "--tokens", "5"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    expected = cast("Generates", model).generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert printed.splitlines()[-1] == " ".join(map(str, expected[0].tolist()))


def test_its_parameters_are_the_caches_own_memory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    load: Callable[[Path], torch.nn.Module] = importlib.import_module("transformers_cpu").load
    loaded = load(directory)
    name = "model.layers.0.mlp.up_proj.weight"
    with tonnage.open(directory) as weights:
        assert torch.equal(loaded.state_dict()[name], weights[name])
    assert torch.equal(load_file(directory / "model.safetensors")[name], loaded.state_dict()[name])
    assert "model.safetensors" in next(
        line for line in Path("/proc/self/maps").read_text().splitlines() if _covers(line, loaded.state_dict()[name])
    )


def _covers(line: str, tensor: torch.Tensor) -> bool:
    start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
    return start <= tensor.data_ptr() < end
