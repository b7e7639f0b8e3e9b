"""Libraries that read adapters, pipelines and other parts of models find them under the names that they look for."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorizer import TensorSerializer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import tonnage
from support.load_harness import BOTH_KINDS
from tonnage.contract import Limits, Outcome
from tonnage_operator.api.status import MAX_NOTE

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty_server import FaultyServer
    from tonnage.contract import Report

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.timeout(180),
]
TOKENS = torch.arange(20).reshape(1, -1)


class Source:
    """A folder of a bucket, filled from folders that libraries saved, and its load."""

    def __init__(self, server: FaultyServer, tmp_path: Path, kind: str) -> None:
        self.server = server
        self.kind = kind
        self.cache = tmp_path / "cache"

    def put(self, saved: Path, *, rename: dict[str, str] | None = None) -> None:
        """Uploads what a library saved; for the kind ``tensors`` each file as a ``.tensors`` file of the same stem."""
        for path in sorted(saved.rglob("*")):
            name = path.relative_to(saved).as_posix()
            if path.is_dir() or (self.kind == "tensors" and name.endswith(".index.json")):
                continue
            if path.suffix == ".safetensors" and self.kind == "tensors":
                converted = path.with_suffix(".tensors")
                serializer = TensorSerializer(str(converted))
                serializer.write_state_dict(load_file(path))
                serializer.close()
                name = name.removesuffix(".safetensors") + ".tensors"
                name = (rename or {}).get(name, name)
                self.server.put(f"bucket/model/{name}", converted.read_bytes())
                converted.unlink()
            else:
                self.server.put(f"bucket/model/{name}", path.read_bytes())

    def load(self, *, segment_size: int = 0) -> Report:
        return tonnage.load(
            "s3://bucket/model/",
            cache=self.cache,
            endpoint_url=self.server.endpoint,
            anonymous=True,
            limits=Limits(workers=2, connections=4, part_size=64 << 10, segment_size=segment_size),
            environment={},
        )

    def folder(self, **options: int) -> Path:
        return self.cache / self.load(**options).entry / "model"


@pytest.fixture
def source(faulty_server: FaultyServer, tmp_path: Path, weights_kind: str) -> Source:
    return Source(faulty_server, tmp_path, weights_kind)


def make_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def save_adapter(model: Any, folder: Path) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    return adapted.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize(
    ("weights_kind", "name"),
    [("tensors", "adapter_model.tensors"), ("tensors", "lora.tensors"), ("safetensors", "")],
    indirect=["weights_kind"],
)
def test_peft_finds_an_adapter_as_one_file_whatever_its_segments(source: Source, tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapted = save_adapter(make_llama(), tmp_path / "adapter")
    source.put(tmp_path / "adapter", rename={"adapter_model.tensors": name})
    folder = source.folder(segment_size=1000)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["adapter_model.safetensors"]
    loaded = peft.PeftModel.from_pretrained(make_llama(), folder)
    assert torch.equal(logits(loaded.eval()), logits(adapted))
    assert not torch.equal(logits(loaded), logits(make_llama()))


@pytest.mark.parametrize("segment_size", [0, 30_000], ids=["one-shard", "shards"])
def test_an_adapter_beside_its_base_is_a_model_of_its_own(source: Source, tmp_path: Path, segment_size: int) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = make_llama()
    base.save_pretrained(tmp_path / "saved")
    adapted = save_adapter(base, tmp_path / "saved")
    source.put(tmp_path / "saved")
    folder = source.folder(segment_size=segment_size)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert weight_map.keys() == load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert "adapter_model.safetensors" not in weight_map.values()
    loaded = peft.PeftModel.from_pretrained(make_llama(), folder)
    assert torch.equal(logits(loaded.eval()), logits(adapted))
    names = set(weight_map)
    for path in (folder.parent, folder):
        with tonnage.open(path) as weights:
            assert set(weights) == names
    adapter = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    with tonnage.open(folder / "adapter_model.safetensors") as weights:
        assert set(weights) == set(adapter)
    assert source.load(segment_size=segment_size).outcome is Outcome.HIT
    mounted = folder.rename(tmp_path / "mounted")
    with tonnage.open(mounted) as weights:
        assert set(weights) == names


@BOTH_KINDS
@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("segment_size", [0, 20_000], ids=["one-shard", "shards"])
def test_diffusers_opens_a_pipeline(source: Source, tmp_path: Path, segment_size: int, variant: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
        attention_head_dim=2,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
        )
    )
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "saved", variant=variant or None)
    source.put(tmp_path / "saved")
    folder = source.folder(segment_size=segment_size)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, variant=variant or None, local_files_only=True, low_cpu_mem_usage=False, tokenizer=None
    )
    for part, original in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        found = getattr(loaded, part).state_dict()
        assert found.keys() == original.state_dict().keys()
        for name, tensor in original.state_dict().items():
            assert torch.equal(found[name], tensor), (part, name)
    with tonnage.open(folder / "unet") as weights:
        assert set(weights) == set(unet.state_dict())


@BOTH_KINDS
def test_the_weights_of_a_pipelines_adapter_keep_their_name(source: Source, tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_base", reason="diffusers is not installed")
    tensors = {"unet.down.lora_A.weight": torch.rand(2, 3)}
    (tmp_path / "saved").mkdir()
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "saved" / utils.LORA_WEIGHT_NAME_SAFE)
    source.put(tmp_path / "saved")
    state, *_ = utils._fetch_state_dict(
        str(source.folder(segment_size=1)), None, True, True, None, False, None, None, None, None, {}, False
    )
    assert torch.equal(state["unet.down.lora_A.weight"], tensors["unet.down.lora_A.weight"])


def test_a_variant_beside_the_model_is_chosen_by_its_name(source: Source, tmp_path: Path) -> None:
    model = make_llama()
    model.save_pretrained(tmp_path / "saved")
    half = copy.deepcopy(model).half()
    half.save_pretrained(tmp_path / "saved", variant="fp16")
    source.put(tmp_path / "saved")
    folder = source.folder(segment_size=30_000)
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    for variant, original in ((None, model), ("fp16", half)):
        loaded, info = from_pretrained(folder, variant=variant, dtype=torch.float32, output_loading_info=True)
        assert not any(info.values()), info
        for name, tensor in original.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor.float()), (variant, name)


@BOTH_KINDS
def test_a_sentence_transformer_opens_from_its_folder_with_equal_embeddings(source: Source, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    base = tmp_path / "base"
    base.mkdir()
    (base / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]))
    tokenizer: Any = BertTokenizer(vocab=str(base / "vocab.txt"))
    tokenizer.save_pretrained(base)
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    bert: Any = BertModel(config)
    bert.save_pretrained(base)
    parts = [modules.Transformer(str(base)), modules.Pooling(32), modules.Dense(32, 16)]
    original = library.SentenceTransformer(modules=parts, device="cpu")
    original.save_pretrained(str(tmp_path / "saved"))
    source.put(tmp_path / "saved")
    opened = library.SentenceTransformer(str(source.folder(segment_size=8000)), device="cpu", local_files_only=True)
    sentences = ["a b c", "d e f g", "h"]
    embeddings = opened.encode(sentences)
    assert embeddings.shape == (3, 16)
    assert (embeddings == original.encode(sentences)).all()


def test_several_consolidated_files_have_an_index_of_their_stem(source: Source, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    from safetensors.torch import save_file

    tensors = {f"layers.{number}.weight": torch.rand(100) for number in range(4)}
    save_file(tensors, tmp_path / "saved" / "consolidated.safetensors")
    source.put(tmp_path / "saved")
    folder = source.folder(segment_size=500)
    index = json.loads((folder / "consolidated.safetensors.index.json").read_bytes())
    assert index["weight_map"].keys() == tensors.keys()
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("consolidated-*.safetensors")}
    with safe_open(folder / index["weight_map"]["layers.0.weight"], framework="pt") as file:
        assert torch.equal(file.get_tensor("layers.0.weight"), tensors["layers.0.weight"])


def put_module(source: Source, module: torch.nn.Module, folder: Path, config: Any) -> None:
    """Uploads a module, written by the line of tensorizer's documentation."""
    folder.mkdir()
    serializer = TensorSerializer(str(folder / "model.tensors"))
    serializer.write_module(module)
    serializer.close()
    config.save_pretrained(folder)
    for path in folder.iterdir():
        source.server.put(f"bucket/model/{path.name}", path.read_bytes())


def test_fused_experts_are_read_by_transformers_and_noted(source: Source, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config: Any = MixtralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        architectures=["MixtralForCausalLM"],
    )
    model: Any = MixtralForCausalLM(config)
    model.eval()
    put_module(source, model, tmp_path / "fused", config)
    report = source.load()
    (note,) = [note for note in report.notes if "fused experts" in note]
    assert all(way in note for way in ("--load-format tonnage", "load_into(model", "save_pretrained('checkpoint')"))
    assert len(note) <= MAX_NOTE, "a ModelWeights would have the note without its end"
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = from_pretrained(report.path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    assert any(name.endswith(".experts.gate_up_proj") for name in load_file(tmp_path / "again" / "model.safetensors"))
    written: Any = MixtralForCausalLM(config)  # the note's remedy, from the entry alone
    with tonnage.open(report.path) as weights:
        weights.load_into(written, strict=False)
        written.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    model.save_pretrained(tmp_path / "original")
    assert all(
        torch.equal(saved[name], tensor)
        for name, tensor in load_file(tmp_path / "original" / "model.safetensors").items()
    )
    source.put(tmp_path / "saved")
    assert not any("experts" in note for note in source.load().notes)


def test_a_wrapped_module_that_transformers_would_replace_by_random_values_is_noted(
    source: Source, tmp_path: Path
) -> None:
    model = make_llama()
    put_module(source, torch.nn.DataParallel(model), tmp_path / "wrapped", model.config)
    report = source.load()
    assert any("have 'module.' in them" in note and "random values" in note for note in report.notes)
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = from_pretrained(report.path, output_loading_info=True)
    assert info["missing_keys"]
    assert not torch.equal(logits(loaded), logits(model))
