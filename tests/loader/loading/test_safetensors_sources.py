"""Safetensors files as a source: they keep their names and bytes, and are verified by tensor from then on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import tonnage
from support.models import assert_tensors_equal, make_tensors, to_tensors_file
from tonnage.cache.cache import Cache
from tonnage.cache.verify import verify_entry
from tonnage.contract import Limits, Outcome, Verify
from tonnage.errors import CacheDamaged, FormatDamaged, FormatUnsupported, NameCollision, NoTensorFiles, ObjectNotFound
from tonnage.inspection import inspect_files, inspect_sources
from tonnage.loading import run_plan
from tonnage.loading.api import make_plan
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.s3_server import SeaweedS3
    from tonnage.contract import Report

LIMITS = Limits(workers=2, connections=4, part_size=64 << 10)
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Bucket:
    """A bucket of the S3 server, and a cache to load into."""

    def __init__(self, s3: SeaweedS3, tmp_path: Path) -> None:
        self.s3 = s3
        self.name = s3.make_bucket()
        self.files = tmp_path / "source"
        self.cache = tmp_path / "cache"

    def save(self, tensors: Mapping[str, torch.Tensor], path: str, **metadata: str) -> None:
        """Uploads tensors as a safetensors file."""
        file = self.files / path
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), file, metadata={"format": "pt", **metadata})
        self.s3.put(self.name, {f"m/{path}": file})

    def put(self, path: str, content: bytes | str) -> None:
        self.s3.put(self.name, {f"m/{path}": content.encode() if isinstance(content, str) else content})

    def upload(self, folder: Path) -> None:
        """Uploads a folder as it is."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.s3.put(self.name, {f"m/{path.relative_to(folder).as_posix()}": path})

    def load(self, *sources: str, **options: Any) -> Report:
        options.setdefault("limits", LIMITS)
        return tonnage.load(
            list(sources) or f"s3://{self.name}/m/",
            cache=self.cache,
            environment=self.s3.environment() | options.pop("variables", {}),
            **options,
        )

    def names(self, report: Report) -> set[str]:
        folder = self.cache / report.entry / "model"
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bucket(s3: SeaweedS3, tmp_path: Path) -> Bucket:
    return Bucket(s3, tmp_path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several files with an index, as transformers saves it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = tmp_path_factory.mktemp("llama")
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def sharded(bucket: Bucket, tensors: Mapping[str, torch.Tensor]) -> None:
    """Uploads tensors in two files and their index."""
    names = sorted(tensors)
    parts = (names[::2], names[1::2])
    for name, part in zip(SHARDS, parts, strict=True):
        bucket.save({key: tensors[key] for key in part}, name)
    places = {key: name for name, part in zip(SHARDS, parts, strict=True) for key in part}
    bucket.put(INDEX, json.dumps({"metadata": {}, "weight_map": places}))


def test_files_keep_their_names_and_bytes_and_transformers_loads_them(bucket: Bucket, llama: Path) -> None:
    bucket.upload(llama)
    report = bucket.load()
    folder = bucket.cache / report.entry / "model"
    assert bucket.names(report) == {path.name for path in llama.iterdir()}
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in llama.iterdir())
    tokens = torch.arange(20).reshape(1, -1)
    expected = AutoModelForCausalLM.from_pretrained(llama)(tokens).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, expected)
    with tonnage.open(folder) as weights:
        tensors = dict(weights)
    assert_tensors_equal(tensors, {k: v for path in llama.glob("*.safetensors") for k, v in load_file(path).items()})
    assert report.tensors == len(tensors)
    assert report.verified == "crc32"
    assert "CRC32: " in report.verified_by
    again = bucket.load()
    assert (again.outcome, again.downloaded_bytes) == (Outcome.HIT, 0)


def test_an_entry_is_verified_by_tensor_although_its_source_has_no_checksums(bucket: Bucket) -> None:
    tensors = make_tensors(count=4, rows=8) | {"empty": torch.empty((0, 3)), "scalar": torch.tensor(1.5)}
    bucket.save(tensors, "model.safetensors")
    report = bucket.load()
    entry = Cache(bucket.cache).entry(report.entry)
    assert verify_entry(entry, level=Verify.CRC32).verified is Verify.CRC32
    file = entry.model_dir / "model.safetensors"
    published = entry.read_published()
    assert published is not None
    damaged = next(tensor for tensor in published.table.tensors if tensor.name == "layers.2.weight")
    content = bytearray(file.read_bytes())
    content[damaged.offset] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(CacheDamaged, match=r"the tensor 'layers\.2\.weight' at offset"):
        verify_entry(entry, level=Verify.CRC32)


@pytest.mark.parametrize("way", ["key", "prefix of the key", "presigned"])
def test_one_object_is_a_model(bucket: Bucket, way: str) -> None:
    tensors = make_tensors(count=3, rows=4)
    bucket.save(tensors, "model.safetensors")
    address = {
        "key": f"s3://{bucket.name}/m/model.safetensors",
        "prefix of the key": f"s3://{bucket.name}/m/",
        "presigned": bucket.s3.presign(bucket.name, "m/model.safetensors"),
    }[way]
    report = bucket.load(address)
    assert_tensors_equal(load_file(bucket.cache / report.entry / "model/model.safetensors"), tensors)


def test_several_presigned_urls_with_an_index_are_a_model(bucket: Bucket) -> None:
    tensors = make_tensors(count=6, rows=4)
    sharded(bucket, tensors)
    bucket.save(tensors, "copy.safetensors")
    names = [*SHARDS, INDEX, "copy.safetensors"]
    urls = [bucket.s3.presign(bucket.name, f"m/{name}") for name in names]
    report = bucket.load(*urls)
    assert bucket.names(report) == {*SHARDS, INDEX}
    with tonnage.open(report.path) as weights:
        assert_tensors_equal(dict(weights), tensors)


def test_what_the_index_does_not_list_is_left_out(bucket: Bucket) -> None:
    tensors = make_tensors(count=6, rows=4)
    sharded(bucket, tensors)
    bucket.save(tensors, "consolidated.safetensors")
    bucket.save(tensors, "original/model.safetensors")
    bucket.save(tensors, "model.safetensors")
    for name in ("pytorch_model.bin", "original/consolidated.00.pth", "model.gguf", "config.json"):
        bucket.put(name, "{}")
    bucket.put("pytorch_model.bin.index.json", "{}")
    report = bucket.load()
    assert bucket.names(report) == {*SHARDS, INDEX, "config.json"}
    notes = " ".join(report.notes)
    for name in (
        "consolidated.safetensors",
        "original/model.safetensors",
        "the index beside them doesn't list them: model.safetensors",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "model.gguf",
        "pytorch_model.bin.index.json",
    ):
        assert name in notes


def test_companions_that_are_pointers_of_git_lfs_are_noted_also_by_a_hit(bucket: Bucket) -> None:
    bucket.save(make_tensors(count=1, rows=4), "model.safetensors")
    oid = "0" * 64
    bucket.put("tokenizer.json", f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 9085657\n")
    bucket.put("config.json", "{}")
    notes = [bucket.load().notes for _ in range(2)]
    assert [len(each) for each in notes] == [1, 1]
    assert all(each[0].startswith("tokenizer.json is a pointer of Git LFS") for each in notes)


def test_an_index_that_lists_a_missing_file_is_refused_by_its_name(bucket: Bucket) -> None:
    sharded(bucket, make_tensors(count=4, rows=4))
    bucket.s3.client().delete_object(Bucket=bucket.name, Key=f"m/{SHARDS[1]}")
    with pytest.raises(ObjectNotFound, match=f"{INDEX} lists '{SHARDS[1]}', which is not there"):
        bucket.load()


def test_a_file_that_the_index_lists_is_the_model_whatever_its_name_is(bucket: Bucket, llama: Path) -> None:
    """The index of some of Mistral's models lists consolidated.safetensors, elsewhere a second copy."""
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    bucket.save(state, "consolidated.safetensors")
    bucket.save({"other": torch.zeros(2)}, "model.safetensors")
    bucket.put("config.json", (llama / "config.json").read_bytes())
    bucket.put(INDEX, json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "consolidated.safetensors")}))
    report = bucket.load()
    assert bucket.names(report) == {"consolidated.safetensors", INDEX, "config.json"}
    assert any("doesn't list them: model.safetensors" in note for note in report.notes)
    tokens = torch.arange(20).reshape(1, -1)
    loaded = AutoModelForCausalLM.from_pretrained(report.path)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    plan = make_plan(f"s3://{bucket.name}/m/")
    (resolved,) = resolve(plan, environment=bucket.s3.environment()).sources
    pinned = structs.replace(plan, sources=(structs.replace(plan.sources[0], objects=resolved.objects),))
    assert run_plan(pinned, cache=bucket.cache, environment=bucket.s3.environment()).report.outcome is Outcome.HIT


def test_an_index_that_lists_a_tensor_which_none_of_its_files_has_is_refused_by_name(bucket: Bucket) -> None:
    """Engines would fill it with random values: half of an upload is of another revision."""
    tensors = make_tensors(count=4, rows=4)
    sharded(bucket, tensors)
    bucket.save({"other": torch.zeros(3)}, SHARDS[1])
    with pytest.raises(
        FormatDamaged, match=rf"{INDEX} lists the tensor '.*' \(and 1 more\) in '{SHARDS[1]}'"
    ) as caught:
        bucket.load()
    assert "--exclude" in caught.value.remedy
    with pytest.raises(FormatDamaged, match="which doesn't have it"):
        inspect_sources(make_plan(f"s3://{bucket.name}/m/"), environment=bucket.s3.environment())


def test_wrong_places_in_an_index_of_tensors_that_engines_read_are_noted(bucket: Bucket) -> None:
    tensors = make_tensors(count=4, rows=4)
    sharded(bucket, tensors)
    bucket.save({"extra": torch.zeros(3), **{name: tensors[name] for name in sorted(tensors)[1::2]}}, SHARDS[1])
    (note,) = bucket.load().notes
    assert f"{INDEX} doesn't list the tensor 'extra', but a file that it lists has it" in note
    places = {name: SHARDS[at // 2] for at, name in enumerate(sorted(tensors))}
    bucket.put(INDEX, json.dumps({"metadata": {"total_size": 1}, "weight_map": places | {"extra": SHARDS[1]}}))
    report = bucket.load()
    (note,) = report.notes
    assert f"lists the tensor 'layers.1.weight' (and 1 more) in '{SHARDS[0]}', but it is in another file" in note
    with tonnage.open(report.path) as weights:
        assert set(weights) == {*tensors, "extra"}


def test_transformers_takes_tensors_from_the_files_and_random_values_for_those_that_are_nowhere(
    llama: Path, tmp_path: Path
) -> None:
    """Therefore a wrong place is a note, and a tensor that no file has is an error."""
    index = json.loads((llama / INDEX).read_bytes())
    files = sorted(set(index["weight_map"].values()))
    turned = {name: files[(files.index(file) + 1) % len(files)] for name, file in index["weight_map"].items()}
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / INDEX).write_text(json.dumps(index | {"weight_map": turned}))
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected = from_pretrained(llama).state_dict()
    assert_tensors_equal(loaded.state_dict(), expected)
    lost = load_file(tmp_path / files[0])
    save_file({"other": torch.zeros(2)}, tmp_path / files[0], metadata={"format": "pt"})
    _, info = from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(lost)


def test_files_with_a_tensor_in_common_are_refused_by_name(bucket: Bucket) -> None:
    tensors = make_tensors(count=2, rows=4)
    bucket.save(tensors, "a.safetensors")
    bucket.save(tensors, "b.safetensors")
    with pytest.raises(NameCollision, match=r"layers.0.weight' is in s3://.*a.safetensors and in s3://.*b.safetensors"):
        bucket.load()
    report = bucket.load(include=["a.safetensors"])
    assert bucket.names(report) == {"a.safetensors"}


def test_weights_chooses_between_both_kinds_in_one_prefix(bucket: Bucket) -> None:
    tensors = make_tensors(count=3, rows=4)
    bucket.save(tensors, "model.safetensors")
    bucket.put("weights.tensors", to_tensors_file(tensors))
    auto = bucket.load()
    assert auto.verified == "crc32"
    assert any("--weights safetensors" in note for note in auto.notes)
    chosen = bucket.load(weights="safetensors")
    assert (chosen.verified, bucket.names(chosen)) == ("crc32", {"model.safetensors"})
    assert bucket.load(weights="tensorizer").entry == auto.entry


def test_the_tensorizer_layout_is_refused_for_safetensors_files(bucket: Bucket) -> None:
    bucket.save(make_tensors(count=1, rows=4), "model.safetensors")
    with pytest.raises(FormatUnsupported, match=r"Tensorizer layout has copies of \.tensors files only") as caught:
        bucket.load(layout="tensorizer")
    assert "--layout safetensors" in caught.value.remedy


def test_a_prefix_without_weights_is_refused_with_the_files_that_are_needed(bucket: Bucket) -> None:
    bucket.put("config.json", "{}")
    bucket.put("pytorch_model.bin", "x")
    with pytest.raises(NoTensorFiles, match=r"none of the 2 objects is a matching \.tensors or \.safetensors file"):
        bucket.load()
    with pytest.raises(NoTensorFiles, match=r"matching \.safetensors file"):
        bucket.load(weights="safetensors")


def test_a_large_file_is_divided_into_shards_on_request(bucket: Bucket) -> None:
    tensors = make_tensors(count=8, rows=16)
    bucket.save(tensors, "model.safetensors", trained_with="x")
    report = bucket.load(limits=Limits(workers=2, connections=4, part_size=64 << 10, segment_size=24 << 10))
    names = bucket.names(report)
    assert INDEX in names
    assert "model.safetensors" not in names
    assert len(names) > 3  # shards and their index
    with tonnage.open(report.path) as weights:
        assert_tensors_equal(dict(weights), tensors)
        assert weights.metadata["tonnage.revision"] == report.revision
    assert bucket.load().outcome is Outcome.HIT


def test_ranks_are_loaded_alone_and_added_later(bucket: Bucket) -> None:
    tensors = {rank: {part: make_tensors(seed=rank, count=2, rows=4) for part in (0, 1)} for rank in (0, 1)}
    for rank, parts in tensors.items():
        for part, content in parts.items():
            named = {f"{part}.{name}": tensor for name, tensor in content.items()}
            bucket.save(named, f"model-rank-{rank}-part-{part}.safetensors")
    report = bucket.load(ranks=[1])
    assert bucket.names(report) == {f"model-rank-1-part-{part}.safetensors" for part in (0, 1)}
    both = bucket.load()
    assert both.entry == report.entry
    for rank in (0, 1):
        with tonnage.open(both.path, rank=rank) as weights:
            assert set(weights) == {f"{part}.layers.{number}.weight" for part in (0, 1) for number in (0, 1)}
            assert torch.equal(weights["1.layers.1.weight"], tensors[rank][1]["layers.1.weight"])
    with pytest.raises(ObjectNotFound, match="there is no file for the requested rank 2"):
        bucket.load(ranks=[2])


def test_inspect_shows_the_same_for_the_bucket_and_for_the_folder(bucket: Bucket, llama: Path) -> None:
    bucket.upload(llama)
    plan = make_plan(f"s3://{bucket.name}/m/")
    remote = inspect_sources(plan, environment=bucket.s3.environment())
    local = inspect_files([llama])
    found = {file.path: file.tensors for file in remote.files if file.kind == "tensors"}
    assert found == {file.path: file.tensors for file in local.files}
    assert {file.format for file in local.files} == {"safetensors"}


SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "tied": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "Mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4)),
    "Qwen3-MoE": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    ),
}


@pytest.mark.parametrize("shard", ["10GB", "60KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_models_with_equal_outputs(bucket: Bucket, tmp_path: Path, name: str, shard: str) -> None:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    kind(config).to(torch.bfloat16).save_pretrained(tmp_path / "saved", max_shard_size=shard)
    bucket.upload(tmp_path / "saved")
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = from_pretrained(bucket.load().path, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values()), info
    expected = from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    tokens = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(tokens).logits, expected.eval()(tokens).logits)


def quantize(folder: Path) -> None:
    """Makes a saved model one in fp8, with a scale for each block, as DeepSeek and Qwen publish theirs."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        blocks = [-(-length // 128) for length in weight.shape]
        tensors[f"{name}_scale_inv"] = scale.expand(blocks).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    block = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": block}))


def test_transformers_loads_a_model_in_fp8_with_equal_outputs(bucket: Bucket, tmp_path: Path) -> None:
    """Without a GPU, transformers dequantizes it."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL | {"hidden_size": 128, "intermediate_size": 256}))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    quantize(tmp_path / "saved")
    bucket.upload(tmp_path / "saved")
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = from_pretrained(bucket.load().path, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values()), info
    expected = from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    tokens = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        logits = loaded.eval()(tokens).logits
        assert torch.equal(logits, expected.eval()(tokens).logits)
        assert not torch.equal(logits, model.eval()(tokens).logits)


def test_a_variant_beside_the_model_is_loaded_on_request(bucket: Bucket, tmp_path: Path) -> None:
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.save_pretrained(tmp_path / "saved")
    model.half().save_pretrained(tmp_path / "saved", variant="fp16")
    bucket.upload(tmp_path / "saved")
    report = bucket.load()
    assert "model.fp16.safetensors" not in bucket.names(report)
    assert any("--include" in note and "model.fp16.safetensors" in note for note in report.notes)
    chosen = bucket.load(include=["*.fp16.safetensors"])
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded = from_pretrained(chosen.path, variant="fp16", dtype=torch.float16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_dtypes_of_quantized_models_are_opened_bit_for_bit(bucket: Bucket) -> None:
    bits = torch.randint(0, 255, (16, 8), dtype=torch.uint8)
    tensors = {
        str(dtype): bits.clone().view(dtype)
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2, torch.int8)
    }
    bucket.save(tensors, "model.safetensors")
    report = bucket.load()
    with tonnage.open(report.path) as weights:
        assert_tensors_equal(dict(weights), tensors)
    with tonnage.open(f"{report.path}/model.safetensors") as weights:
        assert_tensors_equal(dict(weights), tensors)
