"""What the load format ``tonnage`` of vLLM decides, without vLLM. tests/engines starts it with a real one."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.repository import ROOT
from tonnage.vllm_plugin.decisions import (
    EngineMismatch,
    ParallelSetup,
    check_embeddings,
    check_state,
    checkpoint_names,
    choose_rank,
    explain_refusal,
    find_fused_names,
    find_transposed,
    is_state_of_vllm,
    moves_whole_tensors,
    parse_options,
)


def test_each_worker_opens_the_files_of_its_own_rank() -> None:
    assert [choose_rank({0, 1}, ParallelSetup(rank, 2), label="m") for rank in (0, 1)] == [0, 1]


def test_a_node_that_loaded_only_its_own_ranks_is_enough() -> None:
    assert choose_rank({8, 9}, ParallelSetup(tensor_rank=9, tensor_ranks=16), label="m") == 9


@pytest.mark.parametrize(
    ("available", "setup", "message"),
    [
        ({0, 1}, ParallelSetup(), "--tensor-parallel-size 2"),
        ({0}, ParallelSetup(1, 2), "serialized for another --tensor-parallel-size than 2"),
        ({0, 1}, ParallelSetup(0, 2, pipeline_ranks=2), "Start it without"),
    ],
)
def test_ranks_of_another_setup_are_refused_with_the_flag_to_change(
    available: set[int], setup: ParallelSetup, message: str
) -> None:
    with pytest.raises(EngineMismatch, match=message):
        choose_rank(available, setup, label="/models/llama")


@given(st.sets(st.integers(0, 20)), st.integers(1, 16).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_a_worker_gets_its_own_rank_or_an_error_never_another_rank(
    available: set[int], rank_and_count: tuple[int, int]
) -> None:
    rank, count = rank_and_count
    try:
        chosen = choose_rank(available, ParallelSetup(rank, count), label="m")
    except EngineMismatch:
        return
    assert chosen == (rank if available else None)


def test_a_state_for_another_number_of_ranks_is_refused_by_the_shape_of_its_embeddings() -> None:
    """A node may have only the files of rank 0, and a single file has no rank in its name."""
    name = "model.embed_tokens.weight"
    check_embeddings({name: (512, 8)}, {name: (512, 8)}, ParallelSetup(), label="m")
    check_embeddings({name: (512, 8)}, {}, ParallelSetup(), label="m")
    for stored in ((256, 8), (1024, 8)):
        with pytest.raises(EngineMismatch, match=r"another --tensor-parallel-size than 1, .*embed_tokens.*the shape"):
            check_embeddings({name: (512, 8)}, {name: stored}, ParallelSetup(), label="m")


def test_a_state_of_vllm_is_recognized_by_its_mark_or_its_ranks() -> None:
    assert is_state_of_vllm({"vllm_tensorized_marker"}, None)
    assert is_state_of_vllm({"a"}, 0)
    assert not is_state_of_vllm({"a"}, None)


def test_a_model_does_not_get_the_mark_or_buffers_that_vllm_computes() -> None:
    names = ["a.weight", "model.rotary_emb.original_inv_freq", "vllm_tensorized_marker", "layers.0.attn._k_scale"]
    assert checkpoint_names(names) == ["a.weight", "layers.0.attn._k_scale"]


def test_a_state_with_all_names_passes_whatever_buffers_it_has_beside() -> None:
    check_state((), ["vllm_tensorized_marker", "a.rotary_emb.cos_sin_cache"], ParallelSetup(), label="m")


@pytest.mark.parametrize(("missing", "unexpected"), [(["a"], []), ([], ["b"])])
def test_a_state_of_another_model_is_refused_never_filled_up(missing: list[str], unexpected: list[str]) -> None:
    with pytest.raises(EngineMismatch, match=f"1 tensors .'{(missing + unexpected)[0]}'."):
        check_state(missing, unexpected, ParallelSetup(), label="m")


def test_names_that_only_transformers_has_in_memory_are_refused_with_the_way_to_write_them() -> None:
    error = explain_refusal(["model.layers.0.mlp.experts.gate_up_proj"], "There is no module 'mlp'. More.", label="m")
    assert "There is no module 'mlp'. Its experts" in str(error)
    assert "load_into(model" in str(error)
    assert "save_pretrained('checkpoint')" in str(error)
    assert find_fused_names(["model.layers.0.mlp.gate_up_proj.weight", "a.experts.gate_up_proj"]) == [
        "a.experts.gate_up_proj"
    ]


def test_matrices_that_vllm_transposed_are_found_square_ones_by_the_others_of_their_method() -> None:
    built = {
        "a.qkv_proj.weight": ("fp8", (6, 4)),
        "a.o_proj.weight": ("fp8", (4, 4)),
        "a.o_proj.weight_scale": ("fp8", (1, 1)),
        "lm_head.weight": ("none", (4, 4)),
        "other.weight": ("none", (6, 4)),
        "packed.weight": ("int4", (6, 4)),
        "absent.weight": ("fp8", (6, 4)),
    }
    stored = {name: shape for name, (_, shape) in built.items() if name != "absent.weight"}
    assert find_transposed(built, stored) == set()
    stored |= {"a.qkv_proj.weight": (4, 6), "packed.weight": (3, 8)}
    assert find_transposed(built, stored) == {"a.qkv_proj.weight", "a.o_proj.weight"}


def test_few_ranks_move_whole_tensors_and_many_move_their_part() -> None:
    assert [moves_whole_tensors(ranks) for ranks in (1, 2, 4, 8)] == [True, True, False, False]


def test_options_are_split_into_ours_and_those_of_vllm() -> None:
    given = {"post_processed": False, "wait_seconds": 60, "num_threads": 4}
    assert parse_options(given) == (False, 60, {"num_threads": 4})
    assert parse_options({}) == (None, None, {})
    with pytest.raises(EngineMismatch, match="post_processed must be true or false"):
        parse_options({"post_processed": "no"})
    for wrong in ("1m", True, 0, -1):
        with pytest.raises(EngineMismatch, match="wait_seconds must be a number of seconds"):
            parse_options({"wait_seconds": wrong})


def test_the_entry_point_is_declared_where_vllm_looks_for_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"tonnage": "tonnage.vllm_plugin:register"}


def test_importing_the_plugin_imports_neither_vllm_nor_torch() -> None:
    program = (
        "import sys, tonnage.vllm_plugin, tonnage.vllm_plugin.decisions; print({'vllm', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "loader", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
