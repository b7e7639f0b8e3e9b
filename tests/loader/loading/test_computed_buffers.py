"""What engines see of a model that was written in the way of tensorizer's documentation: what they take, no more."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from tensorizer import TensorSerializer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tonnage
from support.load_harness import KEY, SMALL_LIMITS, LoadHarness
from tonnage.cache import Cache
from tonnage.cache.listing import list_entries
from tonnage.cache.verify import verify_entry
from tonnage.contract import Limits, Outcome, Verify
from tonnage.errors import CacheDamaged, CacheInUse, Interrupted
from tonnage.loading.api import make_plan
from tonnage.loading.load import run_plan

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty_server import FaultyServer

OWN_FILE = "tonnage/computed-buffers.safetensors"
COMPUTED = {"model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"}
SHARDED = Limits(workers=2, connections=4, part_size=64 << 10, segment_size=300_000)


def make_llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.config.architectures = ["LlamaForCausalLM"]
    return model.eval()


def put(server: FaultyServer, model: Any, folder: Path, **options: bool) -> bytes:
    """Uploads a model, written by the line of tensorizer's documentation."""
    folder.mkdir(exist_ok=True)
    serializer = TensorSerializer(str(folder / "model.tensors"))
    serializer.write_module(model, **options)
    serializer.close()
    model.config.save_pretrained(folder)
    data = (folder / "model.tensors").read_bytes()
    server.put(KEY, data)
    server.put("bucket/model/config.json", (folder / "config.json").read_bytes())
    return data


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_llama(0)


@pytest.fixture
def harness(faulty_server: FaultyServer, tmp_path: Path, llama: Any) -> LoadHarness:
    data = put(faulty_server, llama, tmp_path / "source")
    tensors = {**dict(llama.named_parameters()), **dict(llama.named_buffers())}
    return LoadHarness(faulty_server, tmp_path / "cache", {name: tensors[name].detach() for name in tensors}, data)


def names_in(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def seen_by_engines(folder: Path) -> set[str]:
    """Returns the names of all tensors in the files that engines list: those of the top folder."""
    return set().union(*(names_in(path) for path in folder.glob("*.safetensors")))


def assert_opens_with_all_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with tonnage.open(path) as weights:
        assert set(weights) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(weights[name], tensor), name


def make_older(harness: LoadHarness) -> None:
    """Makes an entry such as releases wrote that had computed buffers in the shards."""
    report = harness.load(computed_buffers="in-shards")
    entry = harness.cache / report.entry
    manifest = json.loads((entry / ".tonnage" / "manifest.json").read_bytes())
    del manifest["computed_buffers"]
    (entry / ".tonnage" / "manifest.json").write_text(json.dumps(manifest))
    entry.rename(harness.cache / report.revision)


@pytest.mark.parametrize("limits", [SMALL_LIMITS, SHARDED], ids=["one-shard", "shards"])
def test_engines_see_the_state_dict_and_tonnage_sees_all_tensors(
    harness: LoadHarness, llama: Any, limits: Limits
) -> None:
    report = harness.load(limits=limits, verify="sha256")
    folder = harness.cache / report.entry / "model"
    assert seen_by_engines(folder) == set(llama.state_dict())
    assert names_in(folder / OWN_FILE) == COMPUTED
    if limits is SHARDED:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        assert index["weight_map"].keys() == llama.state_dict().keys()
    assert report.tensors == len(harness.tensors)
    assert report.verified == "sha256"
    (note,) = report.notes
    assert note.startswith("2 buffers that engines compute themselves")
    assert OWN_FILE in note
    assert_opens_with_all_tensors(harness.cache / report.entry, harness.tensors)
    assert_opens_with_all_tensors(folder, harness.tensors)


def test_transformers_reads_it_with_equal_logits_and_without_a_remark(
    harness: LoadHarness, llama: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = harness.load(limits=SHARDED).path
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        from_pretrained: Any = AutoModelForCausalLM.from_pretrained
        loaded, info = from_pretrained(path, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not any(info.values()), info
    assert "UNEXPECTED" not in caplog.text
    assert "MISSING" not in caplog.text
    tokens = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        assert torch.equal(loaded(tokens).logits, llama(tokens).logits)


def test_a_directory_that_is_mounted_alone_opens_with_all_tensors(harness: LoadHarness, tmp_path: Path) -> None:
    folder = harness.cache / harness.load(limits=SHARDED).entry / "model"
    mounted = folder.rename(tmp_path / "mounted")
    assert_opens_with_all_tensors(mounted, harness.tensors)


def test_a_module_gets_its_computed_buffers(harness: LoadHarness, llama: Any) -> None:
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(llama.config)
    with tonnage.open(harness.load().path) as weights:
        result = weights.load_into(model)
    assert (result.missing, result.unexpected, result.left_on_meta) == ((), (), ())
    tokens = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        assert torch.equal(model.eval()(tokens).logits, llama(tokens).logits)


def test_ranks_that_are_loaded_one_after_the_other_keep_their_own_buffers(
    faulty_server: FaultyServer, tmp_path: Path
) -> None:
    models = [make_llama(0), make_llama(1)]
    for rank, model in enumerate(models):
        model.model.rotary_emb.inv_freq.mul_(rank + 1)
        data = put(faulty_server, model, tmp_path / "source")
        faulty_server.put(f"bucket/ranks/model-rank-{rank:03d}.tensors", data)
    for rank in range(2):
        options: Any = {"endpoint_url": faulty_server.endpoint, "anonymous": True, "ranks": [rank]}
        report = tonnage.load("s3://bucket/ranks/", cache=tmp_path / "cache", environment={}, **options)
        assert report.outcome is Outcome.LOADED
    folder = tmp_path / "cache" / report.entry / "model"
    assert not any(name in COMPUTED for name in seen_by_engines(folder))
    mounted = tmp_path / "mounted"
    shutil.copytree(folder, mounted)
    for path in (folder, mounted):
        for rank, model in enumerate(models):
            with tonnage.open(path, rank=rank) as weights:
                for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                    assert torch.equal(weights[name], tensor), name


def test_the_next_load_is_a_hit_with_the_same_report(harness: LoadHarness) -> None:
    first = harness.load(limits=SHARDED)
    second = harness.load(limits=SHARDED)
    assert second.outcome is Outcome.HIT
    assert (second.notes, second.segments, second.bytes) == (first.notes, first.segments, first.bytes)
    (row,) = list_entries(Cache(harness.cache))
    files = [path for path in (harness.cache / first.entry / "model").rglob("*") if path.is_file()]
    assert (row.files, row.bytes) == (len(files), first.bytes)


def test_the_switch_leaves_all_tensors_in_the_shards_of_another_entry(harness: LoadHarness) -> None:
    separate = harness.load()
    in_shards = harness.load(computed_buffers="in-shards")
    assert in_shards.outcome is Outcome.LOADED
    assert in_shards.entry == f"{separate.entry}-in-shards"
    folder = harness.cache / in_shards.entry / "model"
    assert seen_by_engines(folder) == set(harness.tensors)
    assert not (folder / "tonnage").exists()
    assert in_shards.notes == ()
    assert harness.load(computed_buffers="in-shards").outcome is Outcome.HIT
    assert harness.load().outcome is Outcome.HIT


def test_an_entry_of_an_older_release_is_loaded_again(harness: LoadHarness, llama: Any) -> None:
    make_older(harness)
    report = harness.load()
    assert report.outcome is Outcome.LOADED
    assert any("earlier release" in note for note in report.notes)
    assert seen_by_engines(harness.cache / report.entry / "model") == set(llama.state_dict())
    assert harness.load().outcome is Outcome.HIT


def test_an_entry_of_an_older_release_without_computed_buffers_is_a_hit(
    harness: LoadHarness, llama: Any, tmp_path: Path
) -> None:
    put(harness.server, llama, tmp_path / "source", include_non_persistent_buffers=False)
    make_older(harness)
    report = harness.load()
    assert (report.outcome, report.notes) == (Outcome.HIT, ())


def test_a_named_entry_is_not_shared_by_both_values_of_the_switch(harness: LoadHarness) -> None:
    def load(place: str) -> Outcome | None:
        plan = make_plan(
            "s3://bucket/model/", endpoint_url=harness.server.endpoint, anonymous=True, computed_buffers=place
        )
        plan = msgspec.structs.replace(plan, entry="mine")
        return run_plan(plan, cache=harness.cache, environment={}).report.outcome

    assert load("separate") is Outcome.LOADED
    with pytest.raises(CacheInUse, match="computed-buffers separate"):
        load("in-shards")
    assert load("separate") is Outcome.HIT


def test_damage_to_a_computed_buffer_is_found(harness: LoadHarness) -> None:
    report = harness.load()
    entry = Cache(harness.cache).entry(report.entry)
    assert verify_entry(entry, level=Verify.SHA256).tensors == len(harness.tensors)
    file = entry.model_dir / OWN_FILE
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheDamaged, match="inv_freq"):
        verify_entry(entry, level=Verify.CRC32)


@pytest.mark.parametrize("lost", [False, True])
def test_an_interrupted_load_resumes_and_fetches_a_lost_file_again(harness: LoadHarness, *, lost: bool) -> None:
    slow = Limits(workers=1, connections=2, part_size=100_000, bandwidth=1_000_000)
    with pytest.raises(Interrupted):
        harness.load(limits=slow, canceled=lambda: harness.server.bytes_sent > 900_000)
    harness.assert_nothing_visible()
    if lost:
        (file,) = harness.cache.rglob("computed-buffers.safetensors")
        file.unlink()
    report = harness.load()
    assert report.resumed_bytes > 0
    assert_opens_with_all_tensors(harness.cache / report.entry, harness.tensors)


def test_revisions_differ_in_the_header_of_every_shard(harness: LoadHarness, tmp_path: Path) -> None:
    reports = [harness.load(limits=SHARDED)]
    put(harness.server, make_llama(1), tmp_path / "source")
    reports.append(harness.load(limits=SHARDED))
    headers: list[list[bytes]] = []
    for report in reports:
        files = sorted((harness.cache / report.entry / "model").rglob("*.safetensors"))
        assert len(files) > 2
        headers.append([])
        for path in files:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            assert metadata["format"] == "pt"
            assert metadata["tonnage.revision"] == report.revision
            assert metadata["tonnage.digest"] == report.digest
            data = path.read_bytes()
            headers[-1].append(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for before, after in zip(*headers, strict=True):
        assert before != after


def test_a_file_that_vllm_serialized_is_recognized(harness: LoadHarness, llama: Any, tmp_path: Path) -> None:
    marker = torch.nn.Parameter(torch.empty((1,), device="meta"), requires_grad=False)
    llama.register_parameter("vllm_tensorized_marker", marker)
    try:
        put(harness.server, llama, tmp_path / "source")
    finally:
        del llama.vllm_tensorized_marker
    for layout in ("safetensors", "tensorizer"):
        for report in (harness.load(layout=layout), harness.load(layout=layout)):
            assert any("serialized by vLLM" in note for note in report.notes)
            load_format = "tensorizer" if layout == "tensorizer" else "sharded_state"
            assert any(f"vllm serve MODEL --load-format {load_format}" in note for note in report.notes)
            assert report.served_by.startswith(f"vllm serve MODEL --load-format {load_format}")
