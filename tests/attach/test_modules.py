"""Loading weights into modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tonnage.attach import ModuleMismatch, open_weights

if TYPE_CHECKING:
    from pathlib import Path

    from support.attach_fixture_types import Attach


class Model(nn.Module):
    """Parameters, buffers of both kinds, a tied head, and one module under two names."""

    steps: torch.Tensor
    angles: torch.Tensor

    def __init__(self, *, tied: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7, dtype=dtype)
        self.layers = nn.ModuleList(nn.Linear(7, 7, dtype=dtype) for _ in range(3))
        self.norm = nn.BatchNorm1d(7, dtype=dtype)
        self.register_buffer("steps", torch.arange(5))
        self.register_buffer("angles", torch.ones(3), persistent=False)
        self.register_parameter("absent", None)
        self.head = nn.Linear(7, 11, bias=False, dtype=dtype)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        found: torch.Tensor = self.head(self.norm(hidden)) + self.angles.sum()
        return found


def seeded() -> Model:
    torch.manual_seed(5)
    return Model().eval()


def without_head(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The model as on a hub: the tied weight is stored once."""
    path = tmp_path / "model.safetensors"
    save_file(without_head(seeded()), path)
    return path


@pytest.fixture
def serialized(tmp_path: Path) -> Path:
    """The model as tensorizer writes modules: the tied weight twice, all buffers, and a dot before the root's names."""
    from tensorizer import TensorSerializer

    path = tmp_path / "model.tensors"
    serializer = TensorSerializer(str(path))
    serializer.write_module(seeded())
    serializer.close()
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("path", ["saved", "serialized"])
def test_a_module_is_filled_in_place(request: pytest.FixtureRequest, path: str) -> None:
    model = Model().eval()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    with open_weights(request.getfixturevalue(path)) as weights:
        result = model_result = weights.load_into(model)
    assert equal(model, seeded())
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert model.head.weight is model.embed.weight
    assert result == ((), (), ())
    assert model_result.missing == ()


@pytest.mark.parametrize("meta", [(), ("embed",), ("embed", "head", "layers")])
def test_progress_counts_new_and_overwritten_tensors_together(
    request: pytest.FixtureRequest, meta: tuple[str, ...]
) -> None:
    """Both names of the tied weight are in the file; comparing them does not count as progress."""
    model = Model()
    for name in meta:
        model.get_submodule(name).to("meta")
    seen: list[tuple[int, int]] = []
    with open_weights(request.getfixturevalue("serialized")) as weights:
        weights.load_into(model, "cpu", progress=lambda done, total: seen.append((done, total)))
    size = sum(tensor.nbytes for tensor in {*model.parameters(), *model.buffers()})
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {size}
    assert seen[-1][0] == size


@pytest.mark.parametrize("path", ["saved", "serialized"])
def test_a_module_on_the_meta_device_gets_the_caches_own_memory(request: pytest.FixtureRequest, path: str) -> None:
    with torch.device("meta"):
        model = Model().eval()
    assert model.head.weight is model.embed.weight
    with open_weights(request.getfixturevalue(path)) as weights:
        result = weights.load_into(model)
        assert model.embed.weight.data_ptr() == weights["embed.weight"].data_ptr()
    assert model.head.weight is model.embed.weight
    assert isinstance(model.embed.weight, nn.Parameter)
    assert model.embed.weight.requires_grad
    assert equal(model, seeded())
    if path == "saved":
        assert result.left_on_meta == ("angles",)
        model.angles = torch.ones(3)
    else:
        assert result.left_on_meta == ()
    ids = torch.arange(11)
    assert torch.equal(model(ids), seeded()(ids))


def test_a_model_filled_from_the_cache_can_be_trained_without_touching_the_cache(saved: Path) -> None:
    before = saved.read_bytes()
    with torch.device("meta"):
        model = Model()
    with open_weights(saved) as weights:
        weights.load_into(model)
    model.angles = torch.ones(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.arange(11)).sum().backward()
    optimizer.step()
    assert not equal(model.eval(), seeded())
    assert saved.read_bytes() == before


def test_all_mismatches_are_listed_at_once_and_nothing_is_changed(tmp_path: Path) -> None:
    state = without_head(seeded())
    del state["layers.1.bias"], state["norm.running_mean"]
    state |= {"extra.weight": torch.ones(2), "layers.0.bias": torch.ones(8), "layers.2.bias": torch.ones(7).half()}
    save_file(state, tmp_path / "model.safetensors")
    model = Model()
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open_weights(tmp_path) as weights, pytest.raises(ModuleMismatch) as caught:
        weights.load_into(model)
    error = caught.value
    assert error.missing == ("layers.1.bias", "norm.running_mean")
    assert error.unexpected == ("extra.weight",)
    assert error.differing == (
        "'layers.0.bias' has the shape (7,) in the module and (8,) in the weights",
        "'layers.2.bias' is float32 in the module and float16 in the weights",
    )
    for part in (*error.missing, *error.unexpected, *error.differing):
        assert part in str(error)
    assert all(torch.equal(untouched[name], tensor) for name, tensor in model.state_dict().items())


def test_without_strict_what_both_have_is_loaded_and_converted(tmp_path: Path) -> None:
    state = without_head(seeded())
    del state["layers.1.bias"]
    state |= {"extra.weight": torch.ones(2), "layers.2.bias": torch.full((7,), 3).half()}
    save_file(state, tmp_path / "model.safetensors")
    model = Model()
    kept = model.get_parameter("layers.1.bias").clone()
    with open_weights(tmp_path) as weights:
        result = weights.load_into(model, strict=False)
    assert result.missing == ("layers.1.bias",)
    assert result.unexpected == ("extra.weight",)
    assert torch.equal(model.get_parameter("layers.1.bias"), kept)
    converted = model.get_parameter("layers.2.bias")
    assert converted.dtype == torch.float32
    assert converted.tolist() == [3] * 7


@pytest.mark.parametrize(("name", "tensor"), [("layers.0.bias", torch.ones(8)), ("steps", torch.ones(5))])
def test_shapes_and_kinds_of_numbers_must_agree_even_without_strict(
    tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    save_file(without_head(seeded()) | {name: tensor}, tmp_path / "model.safetensors")
    with open_weights(tmp_path) as weights, pytest.raises(ModuleMismatch, match=name):
        weights.load_into(Model(), strict=False)


@pytest.mark.parametrize("meta", [False, True])
def test_dtype_converts_the_module(saved: Path, meta: bool) -> None:
    with torch.device("meta" if meta else "cpu"):
        model = Model()
    parameter = model.embed.weight
    with open_weights(saved) as weights:
        weights.load_into(model, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.steps.dtype == torch.int64
    assert torch.equal(model.embed.weight, seeded().embed.weight.bfloat16())
    assert model.head.weight is model.embed.weight
    assert meta or model.embed.weight is parameter


def test_a_mismatch_of_dtypes_names_both(saved: Path) -> None:
    with open_weights(saved) as weights, pytest.raises(ModuleMismatch, match="bfloat16 in the module and float32"):
        weights.load_into(Model(dtype=torch.bfloat16))


def test_tied_names_must_have_equal_tensors_in_the_weights(tmp_path: Path) -> None:
    state = without_head(seeded()) | {"head.weight": torch.zeros(11, 7)}
    save_file(state, tmp_path / "model.safetensors")
    with open_weights(tmp_path) as weights:
        with pytest.raises(ModuleMismatch, match="one tensor in the module and two different tensors in the weights"):
            weights.load_into(Model())
        model = Model(tied=False)
        weights.load_into(model)
        assert model.head.weight.count_nonzero() == 0


def test_the_tied_weight_may_be_under_either_name(tmp_path: Path) -> None:
    state = seeded().state_dict()
    state["head.weight"] = state.pop("embed.weight")
    save_file(state, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = Model()
    with open_weights(tmp_path) as weights:
        weights.load_into(model)
    assert model.embed.weight is model.head.weight
    assert not model.embed.weight.is_meta


def test_a_buffer_in_the_file_may_be_a_parameter_of_the_module(tmp_path: Path) -> None:
    from tensorizer import TensorSerializer

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bias", torch.tensor([1.0, 2.0]))

    class After(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

    serializer = TensorSerializer(str(tmp_path / "m.tensors"))
    serializer.write_module(Before())
    serializer.close()
    module = After()
    with open_weights(tmp_path / "m.tensors") as weights:
        weights.load_into(module)
    assert isinstance(module.bias, nn.Parameter)
    assert module.bias.tolist() == [1, 2]
    assert dict(module.named_buffers()) == {}


def test_integer_parameters_need_no_gradient(tmp_path: Path) -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, dtype=torch.int8, device="meta"), requires_grad=False)

    save_file({"weight": torch.tensor([1, 2, 3], dtype=torch.int8)}, tmp_path / "m.safetensors")
    module = Quantized()
    with open_weights(tmp_path / "m.safetensors") as weights:
        weights.load_into(module)
    assert module.weight.tolist() == [1, 2, 3]
    assert not module.weight.requires_grad


def test_a_lazy_module_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "m.safetensors")
    with open_weights(tmp_path / "m.safetensors") as weights, pytest.raises(ModuleMismatch, match="not initialized"):
        weights.load_into(nn.LazyLinear(2))


def test_a_shared_module_is_filled_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.two = self.one

    save_file({"one.weight": torch.ones(2, 2), "one.bias": torch.ones(2)}, tmp_path / "m.safetensors")
    with torch.device("meta"):
        module = Twice()
    with open_weights(tmp_path / "m.safetensors") as weights:
        weights.load_into(module)
    assert module.two.weight is module.one.weight
    assert module.two.weight.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_filling_through_copy_workers(
    attach: Attach, saved: Path, meta: bool, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: tensors on the meta device get new memory; the others are overwritten through temporary groups."""
    weights = attach(saved)
    copier = weights._copier
    from tonnage.attach.progress import ProgressReporter

    monkeypatch.setattr(
        type(weights),
        "_load",
        lambda _self, records, device, dtype, _progress: copier.load(
            records, device, dtype=dtype, reporter=ProgressReporter("off", 1, description="")
        ),
    )
    monkeypatch.setattr(
        type(weights),
        "_stream",
        lambda _self, records, device, use, _progress: copier.stream(
            records, device, use, reporter=ProgressReporter("off", 1, description="")
        ),
    )
    with torch.device("meta" if meta else "cpu"):
        model = Model().eval()
    weights.load_into(model, dtype=dtype)
    expected = seeded()
    for name, tensor in model.state_dict().items():
        own = expected.state_dict()[name]
        assert torch.equal(tensor, own.to(dtype) if dtype and own.is_floating_point() else own), name
    assert model.head.weight is model.embed.weight
