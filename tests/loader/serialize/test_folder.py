"""``tonnage serialize`` between folders: real safetensors and torch write, and tensorizer reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from tensorizer import DecryptionParams, TensorDeserializer

from support.tensors_corpus import SAFETENSORS_DTYPES, random_bits
from support.tonnage_cli import command_environment, run_tonnage, start_tonnage
from tonnage.contract import FileSelection
from tonnage.contract.plan import RankSelection
from tonnage.errors import (
    AccessDenied,
    DtypeUnsupported,
    FormatDamaged,
    FormatUnsupported,
    InsufficientSpace,
    Interrupted,
    InvalidPlan,
    NoTensorFiles,
    ObjectNotFound,
    TargetExists,
    TargetNotWritable,
    TonnageError,
)
from tonnage.serialize.run import Request, Result, serialize
from tonnage.serialize.source_files import is_opaque
from tonnage.serialize.writer import FileWriter, is_same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

KEY = bytes(range(32))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")


def run(source: Path, target: Path, **options: Any) -> Result:
    """Serializes ``source``. Options are those of ``Request``, and ``canceled``."""
    canceled = options.pop("canceled", lambda: False)
    request = Request(
        paths=(source,), target=target, files=options.pop("files", FileSelection()), scratch=target.parent, **options
    )
    return serialize(request, environment={}, canceled=canceled)


def read(path: Path, key: bytes | None = None) -> dict[str, torch.Tensor]:
    """Reads a file with tensorizer, which verifies its hashes."""
    encryption = None if key is None else DecryptionParams.from_key(key)
    found = TensorDeserializer(str(path), device="cpu", verify_hash=True, encryption=encryption)
    return {str(name): tensor for name, tensor in found.items()}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert [name for name, tensor in expected.items() if not is_same(found[name], tensor)] == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder with two shards, an index and companions, beside a file that no model needs."""
    tensors = {f"layers.{number}.weight": random_bits(torch.bfloat16, 64, 32, seed=number) for number in range(6)}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    names = list(tensors)
    shards = {f"model-0000{at}-of-00002.safetensors": names[3 * (at - 1) : 3 * at] for at in (1, 2)}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.md").write_text("no companion")
    (folder / "original").mkdir()
    save_file({"other": torch.zeros(2)}, folder / "original" / "consolidated.safetensors")
    return folder, tensors


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_shards_of_an_index_become_one_file_that_tensorizer_reads_and_companions_are_copied(
    checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, tensors = checkpoint
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = run(folder, tmp_path / "target")
    assert files_of(tmp_path / "target") == ["config.json", "model.tensors", "tokenizer.json"]
    assert_same(read(tmp_path / "target/model.tensors"), tensors)
    assert (tmp_path / "target/config.json").read_text() == '{"model_type": "tiny"}'
    assert (result.tensors, result.bytes, result.encrypted) == (6, 6 * 64 * 32 * 2, False)
    assert [note for note in result.notes if "original/consolidated.safetensors" in note]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "target"}, "nothing else is left"


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_tensorizer_reads_every_dtype_that_safetensors_has(key: bytes | None, tmp_path: Path) -> None:
    tensors = {str(dtype): random_bits(dtype, 5, 8, seed=3) for dtype in sorted(SAFETENSORS_DTYPES, key=str)}
    tensors |= {"scalar": torch.tensor(7.5), "flag": torch.tensor([True, False])}
    if key is None:
        tensors["empty"] = torch.empty((0, 3))
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    result = run(tmp_path / "source", tmp_path / "target", key=key)
    found = read(tmp_path / "target/model.tensors", key)
    assert_same(found, {name: tensors[name] for name in found})
    assert found.keys() == tensors.keys()
    assert result.encrypted == (key is not None)


def test_an_encrypted_file_does_not_have_the_plain_bytes_and_needs_the_key(tmp_path: Path) -> None:
    data = random_bits(torch.uint8, 4096)
    save_file({"secret": data}, tmp_path / "m.safetensors")
    run(tmp_path / "m.safetensors", tmp_path / "target", key=KEY)
    written = (tmp_path / "target/m.tensors").read_bytes()
    assert data.numpy().tobytes()[:64] not in written
    with pytest.raises(Exception, match=r"(?i)decrypt|encrypt|crypto"):
        read(tmp_path / "target/m.tensors", bytes(32))
    with pytest.raises(InvalidPlan, match="5 bytes; it must have 32"):
        run(tmp_path / "m.safetensors", tmp_path / "other", key=b"short")


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_tensor_that_tensorizer_could_not_read_back_is_refused_by_name_and_nothing_is_left(
    key: bytes | None, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    dtype = torch.float32 if key else torch.bfloat16
    save_file({"some": torch.ones(2), "no.data": torch.empty((0, 2), dtype=dtype)}, tmp_path / "source/m.safetensors")
    with pytest.raises(DtypeUnsupported, match=r"no\.data"):
        run(tmp_path / "source", tmp_path / "target", key=key)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    assert is_opaque(torch.bfloat16)
    assert not is_opaque(torch.float16)


def test_parts_of_ranks_become_one_file_for_each_rank(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for rank in range(3):
        for part in range(2):
            save_file(
                {f"w.{part}": torch.full((4,), float(rank))}, source / f"model-rank-{rank}-part-{part}.safetensors"
            )
    run(source, tmp_path / "all")
    assert files_of(tmp_path / "all") == [f"model-rank-00{rank}.tensors" for rank in range(3)]
    found = read(tmp_path / "all/model-rank-002.tensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"w.0": [2.0] * 4, "w.1": [2.0] * 4}
    run(source, tmp_path / "some", files=FileSelection(ranks=RankSelection(wanted=(0, 2))))
    assert files_of(tmp_path / "some") == ["model-rank-000.tensors", "model-rank-002.tensors"]
    with pytest.raises(ObjectNotFound, match="no file for the requested rank 7"):
        run(source, tmp_path / "none", files=FileSelection(ranks=RankSelection(wanted=(0, 7))))


def test_a_pipeline_keeps_its_folders_and_stems(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        (source / path).parent.mkdir(parents=True)
        save_file({"w": torch.ones(3)}, source / path)
    (source / "model_index.json").write_text("{}")
    (source / "unet/config.json").write_text("{}")
    run(source, tmp_path / "target")
    expected = [
        "model_index.json", "text_encoder/model.tensors", "unet/config.json", "unet/diffusion_pytorch_model.tensors",
    ]  # fmt: skip
    assert files_of(tmp_path / "target") == expected


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_a_state_dict_is_serialized_with_tied_and_transposed_tensors(wrap: Any, tmp_path: Path) -> None:
    tied = random_bits(torch.float32, 6, 4)
    state = {"embed": tied, "head": tied, "transposed": tied.T, "slice": tied[1:3, :2]}
    torch.save(wrap(state), tmp_path / "model.pt")
    run(tmp_path / "model.pt", tmp_path / "target")
    found = read(tmp_path / "target/model.tensors")
    assert_same(found, {name: tensor.contiguous() for name, tensor in state.items()})


def test_the_state_dicts_that_transformers_reads_are_serialized(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    parts = {f"pytorch_model-0000{at}-of-00002.bin": {f"t{at}": torch.ones(at)} for at in (1, 2)}
    for name, state in {**parts, "pytorch_model.bin": {"t1": torch.zeros(1)}}.items():
        torch.save(state, source / name)
    torch.save({"t1": torch.zeros(1).half()}, source / "pytorch_model.fp16.bin")
    places = {next(iter(state)): name for name, state in parts.items()}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    result = run(source, tmp_path / "sharded")
    assert_same(read(tmp_path / "sharded/pytorch_model.tensors"), {"t1": torch.ones(1), "t2": torch.ones(2)})
    assert not any("-of-00002.bin" in note for note in result.notes)
    (source / "pytorch_model.bin.index.json").unlink()
    for name in parts:
        (source / name).unlink()
    assert run(source, tmp_path / "whole").files == ("pytorch_model.tensors",)
    assert_same(read(tmp_path / "whole/pytorch_model.tensors"), {"t1": torch.zeros(1)})


def test_links_are_followed_as_by_libraries_and_named_if_they_lead_nowhere(tmp_path: Path) -> None:
    """The cache of huggingface_hub has links to files, and people link folders of pipelines."""
    blobs, source = tmp_path / "blobs", tmp_path / "source"
    for folder in (blobs / "unet", source):
        folder.mkdir(parents=True)
    save_file({"w": torch.ones(3)}, blobs / "unet/model.safetensors")
    (blobs / "unet/loop").symlink_to("..")
    (source / "unet").symlink_to(blobs / "unet")
    (source / "model_index.json").write_text("{}")
    run(source, tmp_path / "target")
    assert files_of(tmp_path / "target") == ["model_index.json", "unet/model.tensors"]
    (source / "config.json").symlink_to("../blobs/gone")
    with pytest.raises(ObjectNotFound, match=r"config\.json is a link to \.\./blobs/gone, which does not exist"):
        run(source, tmp_path / "other")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PWNED"],)


def test_a_state_dict_with_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWNED", str(tmp_path / "pwned"))
    torch.save({"w": torch.ones(1), "x": Code()}, tmp_path / "evil.pt")
    with pytest.raises(FormatUnsupported, match="not unpickled"):
        run(tmp_path / "evil.pt", tmp_path / "target")
    assert not (tmp_path / "pwned").exists()


def write_cut(path: Path) -> None:
    save_file({"w": torch.ones(100)}, path)
    os.truncate(path, 300)


def write_incomplete(path: Path) -> None:
    path.mkdir()
    save_file({"a": torch.ones(1)}, path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_bad_index(path: Path) -> None:
    path.mkdir()
    save_file({"a": torch.ones(1)}, path / "model.safetensors")
    (path / "model.safetensors.index.json").write_text("[" * 100_000)


BROKEN = {
    "missing": lambda _: None,
    "garbage.pt": lambda path: path.write_bytes(b"garbage"),
    "other.txt": lambda path: path.write_text("no weights"),
    "numbers.pt": lambda path: torch.save({"w": torch.ones(1), "step": 7}, path),
    "sparse.pt": lambda path: torch.save({"w": torch.eye(3).to_sparse()}, path),
    "legacy.pt": lambda path: torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False),
    "cut.safetensors": write_cut,
    "no weights": lambda path: path.mkdir(),
    "incomplete": write_incomplete,
    "bad index": write_bad_index,
}
"""How to write sources that can't be serialized."""


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("missing", ObjectNotFound, "does not exist"),
        ("garbage.pt", FormatUnsupported, "can't be mapped"),
        ("other.txt", FormatUnsupported, "no state dict"),
        ("numbers.pt", FormatUnsupported, "'step', which is a int"),
        ("sparse.pt", DtypeUnsupported, "sparse"),
        ("legacy.pt", FormatUnsupported, "can't be mapped"),
        ("cut.safetensors", FormatDamaged, "but has 300"),
        ("no weights", NoTensorFiles, "no .safetensors"),
        ("incomplete", ObjectNotFound, "model-00002-of-00002.safetensors', which is not there"),
        ("bad index", FormatDamaged, "not an index"),
    ],
)
def test_a_source_that_can_not_be_serialized_is_refused_with_a_remedy_and_nothing_is_left(
    kind: str, error: type[TonnageError], words: str, tmp_path: Path
) -> None:
    (tmp_path / "sources").mkdir()
    source = tmp_path / "sources" / kind
    BROKEN[kind](source)
    with pytest.raises(error) as caught:
        run(source, tmp_path / "target")
    assert words in caught.value.message
    assert "bug in Tonnage" not in caught.value.remedy
    assert {path.name for path in tmp_path.iterdir()} == {"sources"}


def test_more_tensors_than_an_index_has_room_for_become_several_files(tmp_path: Path) -> None:
    tensors = {f"model.layers.{number}.{'experts.' * 30}weight": torch.ones(1) for number in range(1200)}
    save_file(tensors, tmp_path / "model.safetensors")
    run(tmp_path / "model.safetensors", tmp_path / "target")
    names = files_of(tmp_path / "target")
    assert names == [f"model-0000{at}-of-0000{len(names)}.tensors" for at in range(1, len(names) + 1)]
    assert len(names) > 1
    found = [name for file in names for name in read(tmp_path / "target" / file)]
    assert sorted(found) == sorted(tensors)


def test_the_file_size_limits_the_files(checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, tensors = checkpoint
    result = run(folder, tmp_path / "target", file_size=2 * 4096)
    assert len(result.files) == 3
    assert_same({k: v for file in result.files for k, v in read(tmp_path / "target" / file).items()}, tensors)


def test_an_existing_target_is_refused_and_replaced_only_if_all_its_files_are(
    checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, _ = checkpoint
    target = tmp_path / "target"
    target.mkdir()
    run(folder, target)  # an empty folder is no obstacle
    before = (target / "model.tensors").stat().st_ino
    with pytest.raises(TargetExists, match=r"config\.json, model\.tensors, tokenizer\.json"):
        run(folder, target)
    run(folder, target, overwrite=True)
    assert (target / "model.tensors").stat().st_ino != before
    (target / "notes.txt").write_text("mine")
    with pytest.raises(TargetExists, match=r"would not be replaced.*: notes\.txt"):
        run(folder, target, overwrite=True)
    assert (target / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "target"}


@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/tensors", "."])
def test_a_target_in_the_source_or_around_it_is_refused(
    place: str, checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(InvalidPlan, match="in each other"):
        run(checkpoint[0], tmp_path / place, overwrite=True)


def test_a_target_that_is_a_file_a_link_or_below_a_file_is_refused(
    checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("elsewhere", target_is_directory=True)
    for name in ("file", "link"):
        with pytest.raises(InvalidPlan, match="can't be replaced"):
            run(checkpoint[0], tmp_path / name, overwrite=True)
    with pytest.raises(TargetNotWritable):
        run(checkpoint[0], tmp_path / "file/target")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB more than a file's index and headers take."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_disk_without_room_is_refused_before_anything_is_written(small_disk: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1 << 20)}, tmp_path / "m.safetensors")
    with pytest.raises(InsufficientSpace, match="free, and the files need"):
        run(tmp_path / "m.safetensors", small_disk / "target")
    assert list(small_disk.iterdir()) == []


@needs_root
def test_a_disk_that_becomes_full_leaves_nothing(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({str(at): torch.zeros(1 << 16) for at in range(16)}, tmp_path / "m.safetensors")
    monkeypatch.setattr("tonnage.serialize.local_target.check_space", lambda *_: None)  # another process fills it later
    with pytest.raises(InsufficientSpace, match="No space left on device"):
        run(tmp_path / "m.safetensors", small_disk / "target")
    assert list(small_disk.iterdir()) == []


def test_an_interruption_leaves_nothing(checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    answers = iter([False] * 8 + [True] * 100)
    with pytest.raises(Interrupted):
        run(checkpoint[0], tmp_path / "target", canceled=lambda: next(answers))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_a_killed_run_leaves_no_target_and_the_next_one_removes_what_it_left(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_file({str(at): torch.zeros(1 << 18) for at in range(80)}, tmp_path / "source/model.safetensors")
    target = tmp_path / "target"
    with start_tonnage("serialize", tmp_path / "source", target, "--progress", "json") as process:
        assert process.stderr is not None
        assert '"serializing"' in process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = {path.name for path in tmp_path.iterdir()} - {"source"}
    assert left == {".target.tonnage-unfinished"}
    run(tmp_path / "source", target)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_bytes_that_change_between_write_and_read_are_found(
    checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FileWriter.write

    def write_and_damage(writer: FileWriter, on_bytes: Callable[[int], None]) -> None:
        write(writer, on_bytes)
        with writer.location.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(FileWriter, "write", write_and_damage)
    with pytest.raises(TonnageError, match="read back with a difference") as caught:
        run(checkpoint[0], tmp_path / "target")
    assert caught.value.reason == "ChecksumMismatch"
    assert not (tmp_path / "target").exists()


MEASURE = """
import resource, sys
from pathlib import Path
from tonnage.contract import FileSelection
from tonnage.contract.plan import RankSelection
from tonnage.serialize.run import Request, serialize
small, large, target = map(Path, sys.argv[1:])
peaks = []
for number, path, key in ((0, small, bytes(32)), (1, large, None), (2, large, bytes(32))):
    files = FileSelection()
    serialize(Request(paths=(path,), target=target / str(number), files=files, scratch=target, key=key), environment={})
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0], peaks[2] - peaks[0])
"""


def test_memory_is_that_of_two_tensors_however_large_the_model_is(tmp_path: Path) -> None:
    tensor_bytes = 24 << 20
    save_file({str(at): torch.zeros(tensor_bytes // 4) for at in range(12)}, tmp_path / "large.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "small.safetensors")
    paths = [tmp_path / name for name in ("small.safetensors", "large.safetensors", "out")]
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, env=command_environment(), capture_output=True, text=True, check=True)
    plain, encrypted = map(int, done.stdout.split())
    assert plain << 10 < 3 * tensor_bytes  # the model has 12
    assert encrypted << 10 < 4 * tensor_bytes


def test_the_command_prints_what_it_wrote_and_refuses_what_it_can_not_mean(
    checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, tensors = checkpoint
    (tmp_path / "key").write_bytes(KEY)
    done = run_tonnage("serialize", folder, tmp_path / "target", "--encryption-key", tmp_path / "key", "--json")
    assert done.returncode == 0, done.stderr
    assert done.report["files"] == ["model.tensors"]
    assert_same(read(tmp_path / "target/model.tensors", KEY), tensors)
    plain = run_tonnage("serialize", folder, tmp_path / "plain", "--progress", "off")
    assert plain.stdout.startswith(f"Wrote {tmp_path}/plain: 6 tensors, 24.0 KiB in 1 file, and 2 companions")
    for arguments, words in (
        ([folder], "Only one of SOURCE and TARGET"),
        ([folder, "https://host/x"], "TARGET must be a folder or s3://bucket/prefix/"),
        ([folder, "s3://bucket"], "TARGET must be a folder or s3://bucket/prefix/"),
        ([folder, "s3://bucket/a/", tmp_path / "x"], "can't be combined"),
        ([folder, tmp_path / "x", "--encryption-key", tmp_path / "none"], "can't be read"),
        ([folder, tmp_path / "x", "--delete-source"], "--delete-source"),
    ):
        refused = run_tonnage("serialize", *arguments)
        assert refused.returncode == 2, refused.output
        assert words in refused.stderr


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "source"))

    monkeypatch.setattr("os.scandir", deny)
    with pytest.raises(AccessDenied, match="can't be listed"):
        run(tmp_path / "source", tmp_path / "target")
