"""Files that vLLM serialized: named for its ``sharded_state``, without what that refuses, and refused by all others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tensorizer import TensorSerializer
from transformers import AutoModelForCausalLM, LlamaConfig

import tonnage
from support.load_harness import LoadHarness
from support.models import load_safetensors_dir
from tonnage.cache import Cache
from tonnage.cache.verify import verify_entry
from tonnage.contract import Limits, Outcome, Verify

if TYPE_CHECKING:
    from support.faulty_server import FaultyServer

SHARDED = Limits(workers=2, connections=4, part_size=64 << 10, segment_size=20_000)
TIED = "model.embed_tokens.weight"
COMPUTED = "model.layers.0.rotary_emb.cos_sin_cache"


class Rotary(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cos_sin_cache", torch.rand(32, 8), persistent=False)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotary_emb = Rotary()
        self.qkv_proj = torch.nn.Linear(64, 96)
        self.register_buffer("_k_scale", torch.rand(1))


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(128, 64)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))
        self.norm = torch.nn.LayerNorm(64)


class Served(torch.nn.Module):
    """A module with names, buffers and ties like those of vLLM's own."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.model = Inner()
        self.lm_head = torch.nn.Linear(64, 128, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight


def serialize(path: Path, model: torch.nn.Module) -> None:
    """Writes a module as vLLM's ``serialize_vllm_model`` does: marked by a meta parameter."""
    model.register_parameter(
        "vllm_tensorized_marker", torch.nn.Parameter(torch.empty((1,), device="meta"), requires_grad=False)
    )
    serializer = TensorSerializer(str(path))
    serializer.write_module(model)
    serializer.close()
    del model.vllm_tensorized_marker


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items()}


def put(server: FaultyServer, folder: Path, name: str, model: torch.nn.Module) -> bytes:
    folder.mkdir(exist_ok=True)
    serialize(folder / name, model)
    config: Any = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    data = (folder / name).read_bytes()
    server.put(f"bucket/model/{name}", data)
    server.put("bucket/model/config.json", (folder / "config.json").read_bytes())
    return data


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Served:
    torch.manual_seed(0)
    return Served(tied=request.param)


@pytest.fixture
def harness(faulty_server: FaultyServer, tmp_path: Path, model: Served) -> LoadHarness:
    data = put(faulty_server, tmp_path / "source", "model.tensors", model)
    return LoadHarness(faulty_server, tmp_path / "cache", tensors_of(model), data)


class Quantized(Served):
    """vLLM had post-processed the weights before it wrote them."""

    def __init__(self) -> None:
        super().__init__(tied=False)
        packed = torch.randn(64, 64).to(torch.float8_e4m3fn)
        self.model.proj = torch.nn.Module()
        self.model.proj.weight = torch.nn.Parameter(packed, requires_grad=False)


class Undecided(Served):
    """Has a buffer of which the name doesn't show whether it is part of vLLM's state."""

    def __init__(self) -> None:
        super().__init__(tied=False)
        self.model.register_buffer("position_ids", torch.arange(8), persistent=False)


class HeldTwice(Served):
    """vLLM holds the router in the experts, too, and ``sharded_state`` looks for that name."""

    def __init__(self) -> None:
        super().__init__(tied=False)
        self.model.mlp = torch.nn.Module()
        self.model.mlp.gate = torch.nn.Linear(64, 8, bias=False)


def read_as_sharded_state(folder: Path, rank: int = 0, *, stem: str = "model") -> dict[str, torch.Tensor]:
    """Reads the files that vLLM's ``sharded_state`` lists, by default or with a pattern that has another stem."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{stem}-rank-{rank}-part-*.safetensors")):
        found |= load_file(path)
    return found


def expected_by_sharded_state(model: Served) -> dict[str, torch.Tensor]:
    """Returns the tensors that vLLM's ``sharded_state`` takes: its state, each weight by its first name only."""
    state = dict(model.state_dict())
    if model.lm_head.weight is model.model.embed_tokens.weight:
        del state[TIED]
    return state


def assert_equal(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert set(found) - {"vllm_tensorized_marker"} == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("limits", [Limits(workers=1), SHARDED], ids=["one-shard", "shards"])
def test_sharded_state_finds_exactly_what_it_takes(harness: LoadHarness, model: Served, limits: Limits) -> None:
    report = harness.load(limits=limits, verify="sha256")
    folder = harness.cache / report.entry / "model"
    assert_equal(read_as_sharded_state(folder), expected_by_sharded_state(model))
    for path in (folder.parent, folder):
        with tonnage.open(path) as weights:
            assert_equal(weights, harness.tensors)
    assert harness.load(limits=limits).outcome is Outcome.HIT
    assert verify_entry(Cache(harness.cache).entry(report.entry), level=Verify.SHA256).tensors == report.tensors


def test_a_mounted_folder_opens_with_all_tensors(harness: LoadHarness, tmp_path: Path) -> None:
    mounted = (harness.cache / harness.load(limits=SHARDED).entry / "model").rename(tmp_path / "mounted")
    with tonnage.open(mounted) as weights:
        assert_equal(weights, harness.tensors)


def test_equal_data_of_other_tensors_is_not_taken_for_a_tie(harness: LoadHarness) -> None:
    names = set(read_as_sharded_state(harness.cache / harness.load().entry / "model"))
    layers = {name for name in names if "qkv_proj" in name}
    assert len(layers) == 6
    assert {"model.norm.weight", "model.norm.bias"} <= names


@pytest.mark.parametrize("model_class", [Quantized, Undecided, HeldTwice])
@pytest.mark.parametrize("name", ["model.tensors", "model-rank-000.tensors"])
def test_sharded_state_ends_at_the_name_of_what_serves_the_folder_if_it_cannot(
    faulty_server: FaultyServer, tmp_path: Path, model_class: type[Quantized | Undecided | HeldTwice], name: str
) -> None:
    """Not at a shape or name of the model, which would not help a user."""
    model = model_class()
    harness = LoadHarness(
        faulty_server, tmp_path / "cache", tensors_of(model), put(faulty_server, tmp_path / "source", name, model)
    )
    ranks: Any = {"ranks": [0]} if "rank" in name else {}
    report = harness.load(limits=SHARDED, **ranks)
    assert any("--load-format tonnage" in note for note in report.notes)
    folder = harness.cache / report.entry / "model"
    assert set(read_as_sharded_state(folder)) == {"start_vllm_with_load_format_tonnage"}
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    with pytest.raises(Exception, match="start vLLM with --load-format tonnage"):
        from_pretrained(folder)
    mounted = folder.rename(tmp_path / "mounted")
    with tonnage.open(mounted) as weights:
        assert_equal(weights, harness.tensors)


def test_transformers_refuses_the_folder_and_shows_the_flag_that_serves_it(harness: LoadHarness) -> None:
    folder = harness.cache / harness.load().entry / "model"
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    with pytest.raises(Exception, match="start vLLM with --load-format sharded_state"):
        from_pretrained(folder)


def test_a_reader_of_all_files_meets_a_tensor_that_no_model_has(harness: LoadHarness) -> None:
    folder = harness.cache / harness.load().entry / "model"
    (path,) = folder.glob("start_vllm_with*.safetensors")
    (name,) = load_file(path)
    assert name == "start_vllm_with_load_format_sharded_state"
    assert name not in load_safetensors_dir(folder)


def test_ranks_that_are_loaded_one_after_the_other_share_the_refusal(
    faulty_server: FaultyServer, tmp_path: Path
) -> None:
    models = [Served(tied=True), Served(tied=True)]
    for rank, model in enumerate(models):
        put(faulty_server, tmp_path / "source", f"model-rank-{rank:03d}.tensors", model)
    for rank in range(2):
        options: Any = {"endpoint_url": faulty_server.endpoint, "anonymous": True, "ranks": [rank]}
        report = tonnage.load("s3://bucket/model/", cache=tmp_path / "cache", environment={}, **options)
        assert report.outcome is Outcome.LOADED
        assert report.served_by == "vllm serve MODEL --load-format tonnage --tensor-parallel-size RANKS"
    folder = tmp_path / "cache" / report.entry / "model"
    assert report.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for rank, model in enumerate(models):
        assert_equal(read_as_sharded_state(folder, rank, stem="state"), expected_by_sharded_state(model))
        for path in (folder.parent, folder):
            with tonnage.open(path, rank=rank) as weights:
                assert_equal(weights, tensors_of(model))
    assert verify_entry(Cache(tmp_path / "cache").entry(report.entry), level=Verify.CRC32).tensors == report.tensors


def test_sharded_state_does_not_find_ranks_by_default_as_it_would_serve_some_of_them_for_all(
    faulty_server: FaultyServer, tmp_path: Path
) -> None:
    """It copies the tensors of one rank into the first parts of larger ones, and ends only at unknown names."""
    for rank in range(2):
        put(faulty_server, tmp_path / "source", f"model-rank-{rank:03d}.tensors", Served(tied=False))
    options: Any = {"endpoint_url": faulty_server.endpoint, "anonymous": True}
    folder = Path(tonnage.load("s3://bucket/model/", cache=tmp_path / "cache", environment={}, **options).path)
    for rank in range(2):
        assert set(read_as_sharded_state(folder, rank)) == {"start_vllm_with_load_format_tonnage"}
