"""Models of many architectures, written by ``write_module``: engines see what a checkpoint has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tensorizer import TensorSerializer

import tonnage
from support.faulty_server import FaultyServer
from tonnage.vllm_plugin.names_in_memory import restore_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage.contract import Report

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.timeout(300),
]
CAUSAL = (
    "llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi3", "falcon", "opt", "bloom", "olmo2", "cohere", "granite",
    "starcoder2", "stablelm", "mamba", "lfm2", "glm4", "gpt_oss",
    "qwen3_moe", "mixtral", "deepseek_v3", "granitemoe", "jamba", "nemotron_h", "minimax_m2",
)  # fmt: skip
FACTORIES = {
    **dict.fromkeys(CAUSAL, "AutoModelForCausalLM"),
    **dict.fromkeys(("t5", "bart"), "AutoModelForSeq2SeqLM"),
    **dict.fromkeys(("bert", "modernbert"), "AutoModelForMaskedLM"),
    "whisper": "AutoModelForSpeechSeq2Seq",
    "vit": "AutoModel",
}
SMALL = {
    **dict.fromkeys(("vocab_size",), 128),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_key_value_heads", "num_experts_per_tok", "mamba_n_groups"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "state_size", "ssm_state_size", "mamba_d_state", "qk_rope_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "mamba_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "image_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("moe_intermediate_size", "num_mel_bins"), 48),
    **dict.fromkeys(("n_group", "n_groups", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    "word_embed_proj_dim": 64,
    "mamba_num_heads": 8,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "num_hidden_groups": 1,
}


def small_config(model_type: str) -> Any:
    """Returns the configuration of a small model: what is a number and has a known name is small."""
    from transformers import CONFIG_MAPPING

    config_class: Any = CONFIG_MAPPING[model_type]
    default = config_class()
    always = ("pad_token_id", "bos_token_id", "eos_token_id")
    fields: dict[str, Any] = {
        name: value
        for name, value in SMALL.items()
        if name in always or (type(getattr(default, name, None)) is int and name in default.to_dict())
    }
    for name in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(default.to_dict().get(name) or ()))
        fields |= {name: (kinds * 2)[:2]} if kinds else {}
    return config_class(**fields)


class Loaded:
    """A model, the folder that ``save_pretrained`` wrote, and the load of what ``write_module`` wrote."""

    def __init__(self, model: Any, saved: Path, report: Report) -> None:
        self.model, self.saved, self.report = model, saved, report


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Loaded]]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    with FaultyServer() as server:
        for model_type, factory in FACTORIES.items():
            torch.manual_seed(0)
            model = getattr(transformers, factory).from_config(small_config(model_type)).eval()
            saved, written = folder / model_type, folder / f"{model_type}.tensors"
            model.save_pretrained(saved)
            serializer = TensorSerializer(str(written))
            serializer.write_module(model)
            serializer.close()
            server.put(f"bucket/{model_type}/model.tensors", written.read_bytes())
            server.put(f"bucket/{model_type}/config.json", (saved / "config.json").read_bytes())
            report = tonnage.load(
                f"s3://bucket/{model_type}/",
                cache=folder / "cache",
                endpoint_url=server.endpoint,
                anonymous=True,
                environment={},
            )
            found[model_type] = Loaded(model, saved, report)
        yield found


@pytest.mark.parametrize("model_type", FACTORIES)
def test_transformers_reads_each_architecture_without_a_remark(loads: dict[str, Loaded], model_type: str) -> None:
    found = loads[model_type]
    factory: Any = getattr(transformers, FACTORIES[model_type])
    loaded, info = factory.from_pretrained(found.report.path, output_loading_info=True)
    assert not any(info.values()), info
    original = found.model.state_dict()
    state = loaded.state_dict()
    assert state.keys() == original.keys()
    assert [name for name, tensor in state.items() if not torch.equal(tensor, original[name])] == []


@pytest.mark.parametrize("model_type", FACTORIES)
def test_engines_see_the_names_of_the_checkpoint_or_a_note_or_a_mapping_has_them(
    loads: dict[str, Loaded], model_type: str
) -> None:
    found = loads[model_type]
    checkpoint = load_file(found.saved / "model.safetensors")
    seen = load_file(Path(found.report.path) / "model.safetensors")
    try:
        restored = dict(restore_checkpoint(seen, found.model.config))
    except ValueError:  # transformers has no other names in memory
        restored = seen
    assert [name for name, tensor in checkpoint.items() if not torch.equal(restored[name], tensor)] == []
    more = {name for name in restored.keys() - checkpoint.keys() if not name.endswith(".position_ids")}
    assert more == set() if model_type in CAUSAL else more <= set(found.model.state_dict())
    ties = found.model.config.get_text_config().tie_word_embeddings if model_type in CAUSAL else False
    assert not (ties and "lm_head.weight" in seen)
    noted = any("fused experts" in note for note in found.report.notes)
    assert noted == any(".experts." in name for name in seen.keys() - checkpoint.keys())


def test_an_output_head_that_is_the_embedding_is_laid_beside_the_shards(loads: dict[str, Loaded]) -> None:
    """vLLM's Gemma 2 and BLOOM refuse it, and tensorizer writes it for each of its names."""
    found = loads["gemma2"]
    assert any(note.startswith("'lm_head.weight' is the embedding") for note in found.report.notes)
    with tonnage.open(found.report.path) as weights:
        assert torch.equal(weights["lm_head.weight"], found.model.lm_head.weight)
        path = weights.file_of("lm_head.weight")
    assert path == Path(found.report.path) / "tonnage/tied-weights.safetensors"
    assert not any("is the embedding" in note for note in loads["llama"].report.notes)


TIED = '{"model_type": "gemma2", "tie_word_embeddings": true}'


@pytest.mark.parametrize(
    ("config", "options", "is_left_out"),
    [
        (TIED, {}, True),
        ('{"model_type": "gemma2"}', {}, True),  # what transformers 4 writes
        ('{"model_type": "x", "text_config": {"hidden_size": 4}}', {}, True),
        (TIED, {"computed_buffers": "in-shards"}, False),
        (TIED.replace("true", "false"), {}, False),
        ('{"model_type": "x", "text_config": {"tie_word_embeddings": false}}', {}, False),
        ("{}", {}, False),
        ("[", {}, False),
        ("", {}, False),
    ],
)
def test_an_output_head_stays_in_the_shards_unless_the_configuration_ties_it(
    config: str, options: dict[str, Any], *, is_left_out: bool, faulty_server: FaultyServer, tmp_path: Path
) -> None:
    """Engines that don't tie it would fill it with random values."""
    weight = torch.rand(6, 4)
    for head in (weight, torch.rand(6, 4)):
        serializer = TensorSerializer(str(tmp_path / "model.tensors"))
        serializer.write_state_dict({"model.embed_tokens.weight": weight, "lm_head.weight": head})
        serializer.close()
        faulty_server.put("bucket/m/model.tensors", (tmp_path / "model.tensors").read_bytes())
        if config:
            faulty_server.put("bucket/m/config.json", config.encode())
        report = tonnage.load(
            "s3://bucket/m/",
            cache=tmp_path / "cache",
            endpoint_url=faulty_server.endpoint,
            anonymous=True,
            environment={},
            **options,
        )
        names = set(load_file(Path(report.path) / "model.safetensors"))
        assert ("lm_head.weight" not in names) == (is_left_out and head is weight)
        with tonnage.open(report.path) as weights:
            assert torch.equal(weights["lm_head.weight"], head)
