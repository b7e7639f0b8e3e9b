"""The command against a real S3 server, as scripts use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cache_entries import ENTRY_NAME, published_entry
from support.models import assert_tensors_equal, load_safetensors_dir
from support.tensors_writer import RawTensor, build_tensors_file
from support.tonnage_cli import CommandResult, command_environment, run_tonnage, start_tonnage
from tonnage.contract import Plan, S3Source, Verify, decode_report, encode_plan

if TYPE_CHECKING:
    from loader.cli.conftest import Model
    from support.faulty_server import FaultyServer
    from support.s3_server import SeaweedS3

REPORT_FIELDS = {
    "outcome", "reason", "message", "revision", "path", "bytes", "downloaded_bytes", "resumed_bytes", "seconds",
    "tensors", "segments", "retries", "verified",
}  # fmt: skip


def test_a_load_ends_with_its_report_and_the_model_is_at_its_path(
    loaded: tuple[Path, CommandResult], model: Model
) -> None:
    _, finished = loaded
    assert finished.returncode == 0
    assert finished.stdout.count("\n") == 1
    report = finished.report
    assert report.keys() >= REPORT_FIELDS
    assert (report["outcome"], report["reason"], report["verified"]) == ("loaded", "", "crc32")
    assert report["tensors"] == len(model.tensors)
    assert report["downloaded_bytes"] > 0
    assert_tensors_equal(load_safetensors_dir(Path(report["path"])), dict(model.tensors))
    assert json.loads((Path(report["path"]) / "config.json").read_text()) == {"model_type": "tiny"}


def test_progress_is_json_lines_on_standard_error_without_a_terminal(loaded: tuple[Path, CommandResult]) -> None:
    lines = [json.loads(line) for line in loaded[1].stderr.splitlines()]
    assert [line["phase"] for line in lines][:1] == ["resolving"]
    assert {line["kind"] for line in lines} == {"progress"}


def test_the_second_load_is_a_hit_that_downloads_nothing(loaded: tuple[Path, CommandResult], model: Model) -> None:
    cache, first = loaded
    finished = run_tonnage(
        "load", model.source, "--progress", "off", environment={**model.environment, "TONNAGE_CACHE": str(cache)}
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.report["outcome"] == "hit"
    assert finished.report["downloaded_bytes"] == 0
    assert finished.report["path"] == first.report["path"]


def test_ls_shows_the_entry_as_table_and_json(loaded: tuple[Path, CommandResult]) -> None:
    cache, first = loaded
    name = first.report["entry"]
    table = run_tonnage("ls", "--cache", cache)
    assert table.returncode == 0
    title, row, footer = table.stdout.splitlines()
    assert title.split()[:3] == ["ENTRY", "STATE", "SIZE"]
    assert row.split()[:2] == [name, "ready"]
    assert "1 entry" in footer
    listed = json.loads(run_tonnage("ls", "--cache", cache, "--json").stdout)
    (entry,) = listed["entries"]
    assert (entry["name"], entry["state"], entry["in_use"]) == (name, "ready", False)
    assert entry["path"] == first.report["path"]
    assert listed["medium"]["filesystem"]


@pytest.mark.parametrize("level", ["size", "crc32", "sha256"])
def test_verify_finds_an_intact_entry_by_a_prefix_of_its_name(loaded: tuple[Path, CommandResult], level: str) -> None:
    cache, first = loaded
    finished = run_tonnage("verify", first.report["entry"][:5], "--cache", cache, "--level", level, "--json")
    assert finished.returncode == 0
    (result,) = json.loads(finished.stdout)["entries"]
    assert (result["sound"], result["verified"]) == (True, level)


def test_verify_names_the_changed_file_and_exits_with_its_code(model: Model, tmp_path: Path) -> None:
    report = run_tonnage("load", model.source, "--cache", tmp_path, environment=model.environment).report
    shard = next(Path(report["path"]).glob("*.safetensors"))
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    by_path = run_tonnage("verify", report["path"])
    assert by_path.returncode == 29
    assert "tonnage: CacheDamaged: " in by_path.stderr
    assert shard.name in by_path.stderr
    assert run_tonnage("verify", report["path"], "--level", "size", "--progress", "off").returncode == 0


def test_a_load_fails_unless_it_finds_the_resolved_digest(
    loaded: tuple[Path, CommandResult], model: Model, tmp_path: Path
) -> None:
    finished = run_tonnage("resolve", model.source, "--json", environment=model.environment)
    report = decode_report(finished.stdout)
    assert report.revision == loaded[1].report["revision"]
    assert report.resolved is not None
    assert [pin.key for pin in report.resolved[0].objects] == ["tiny/config.json", "tiny/model.tensors"]
    args: list[str | Path] = ["load", model.source, "--cache", tmp_path, "--progress", "off", "--expect-digest"]
    assert run_tonnage(*args, report.digest, environment=model.environment).returncode == 0
    other = run_tonnage(*args, "sha256:" + "0" * 64, environment=model.environment)
    assert (other.returncode, other.report["reason"]) == (19, "DigestMismatch")


def test_resolve_prints_a_table_with_revision_and_digest(model: Model) -> None:
    finished = run_tonnage("resolve", model.source, environment=model.environment)
    assert finished.returncode == 0
    assert f"{model.source}model.tensors" in finished.stdout
    assert "revision r-" in finished.stdout
    assert "digest   sha256:" in finished.stdout


def test_a_plan_with_pinned_objects_loads_the_same_entry(
    loaded: tuple[Path, CommandResult], model: Model, tmp_path: Path
) -> None:
    resolved = decode_report(
        run_tonnage("resolve", model.source, "--json", environment=model.environment).stdout
    ).resolved
    assert resolved is not None
    source = S3Source(bucket=model.bucket, prefix="tiny/", objects=resolved[0].objects)
    plan = encode_plan(Plan(sources=(source,), verify=Verify.SHA256, entry="mine")).decode()
    finished = run_tonnage("load", "--plan", "-", "--cache", tmp_path, environment=model.environment, stdin_text=plan)
    assert finished.returncode == 0
    assert finished.report["entry"] == "mine"
    assert finished.report["digest"] == loaded[1].report["digest"]
    assert finished.report["verified"] == "sha256"


def test_inspect_shows_tensors_partition_and_companions(model: Model) -> None:
    finished = run_tonnage("inspect", model.source, "--tensors", "2", environment=model.environment)
    assert finished.returncode == 0
    for part in (
        "layers.0.weight",
        "float32",
        "[64, 256]",
        "2 more; show all with --tensors all",
        "config.json",
        "1 segment",
    ):
        assert part in finished.stdout, part
    assert "layers.3.weight" not in finished.stdout
    described = json.loads(run_tonnage("inspect", model.source, "--json", environment=model.environment).stdout)
    names = [tensor["name"] for file in described["files"] for tensor in file["tensors"]]
    assert names == list(model.tensors)


def test_inspect_downloads_no_weights(faulty_server: FaultyServer) -> None:
    data = build_tensors_file([RawTensor(b"w", b"|u1", (8 << 20,), bytes(8 << 20))]).data
    faulty_server.put("m/w.tensors", bytes(data))
    assert run_tonnage("inspect", f"{faulty_server.url}/m/w.tensors").returncode == 0
    assert faulty_server.bytes_sent < 1 << 20


def test_the_tensorizer_layout_is_the_unmodified_object(model: Model, tmp_path: Path) -> None:
    args: list[str | Path] = ["--cache", tmp_path, "--layout", "tensorizer", "--exclude", "*.json"]
    finished = run_tonnage("load", model.source, *args, environment=model.environment)
    assert finished.returncode == 0
    folder = Path(finished.report["path"])
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["model.tensors"]
    assert (folder / "model.tensors").read_bytes() == model.file


def test_a_held_entry_can_be_removed_only_after_sigterm(model: Model, tmp_path: Path) -> None:
    args: list[str | Path] = ["load", model.source, "--cache", tmp_path, "--hold", "--progress", "off"]
    with start_tonnage(*args, environment=model.environment) as process:
        assert process.stdout is not None
        entry = json.loads(process.stdout.readline())["entry"]
        while b"hold.py" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert process.poll() is None
            time.sleep(0.01)
        refused = run_tonnage("rm", entry, "--cache", tmp_path)
        assert refused.returncode == 30
        assert str(process.pid) in refused.stderr
        assert str(process.pid) in run_tonnage("ls", "--cache", tmp_path).stdout
        assert run_tonnage("rm", "--all", "--cache", tmp_path).returncode == 30
        process.terminate()
        assert process.wait(5) == 0
    removed = run_tonnage("rm", entry[:4], "--cache", tmp_path)
    assert (removed.returncode, removed.stderr) == (0, "")
    assert removed.stdout.startswith(f"removed {entry}, ")
    assert "no entries" in run_tonnage("ls", "--cache", tmp_path).stdout


def test_rm_continues_after_an_entry_that_is_in_use(tmp_path: Path) -> None:
    other = published_entry(tmp_path)
    other.path.rename(tmp_path / "aa-in-use")
    published_entry(tmp_path)
    held = subprocess.Popen(["flock", "-s", tmp_path / "aa-in-use/.tonnage/use.lock", "-c", "echo held; read x"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with held:
        assert held.stdout is not None
        held.stdout.readline()
        finished = run_tonnage("rm", "--all", "--cache", tmp_path, "--json")
        held.communicate(b"\n")
    assert finished.returncode == 30
    results = {entry["name"]: entry["removed"] for entry in json.loads(finished.stdout)["entries"]}
    assert results == {"aa-in-use": False, ENTRY_NAME: True}


def test_an_ambiguous_prefix_removes_no_entry(tmp_path: Path) -> None:
    published_entry(tmp_path).path.rename(tmp_path / "r-0999")
    published_entry(tmp_path)
    finished = run_tonnage("rm", "r-0", "--cache", tmp_path)
    assert finished.returncode == 2
    assert "prefix of several entries" in finished.stderr
    assert json.loads(run_tonnage("ls", "--cache", tmp_path, "--json").stdout)["entries"][1]["state"] == "ready"


def test_an_interrupted_load_reports_it_and_the_next_one_resumes(s3: SeaweedS3, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    tensors = [RawTensor(f"t{number}".encode(), b"|u1", (4 << 20,), bytes(4 << 20)) for number in range(12)]
    s3.put(bucket, {"m/model.tensors": bytes(build_tensors_file(tensors).data)})
    args: list[str | Path] = ["load", f"s3://{bucket}/m/", "--cache", tmp_path, "--part-size", "1Mi"]
    slow: list[str | Path] = ["--bandwidth-limit", "12MiB", "--report", tmp_path / "report"]
    with start_tonnage(*args, *slow, environment=s3.environment()) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["loaded_bytes"] > 8 << 20:
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 32
    assert json.loads(out)["reason"] == "Interrupted"
    assert "the load resumes from the data on disk" in err
    assert json.loads((tmp_path / "report").read_text())["reason"] == "Interrupted"
    again = run_tonnage(*args, environment=s3.environment())
    assert (again.returncode, again.report["outcome"]) == (0, "loaded")
    assert again.report["resumed_bytes"] > 0
    assert again.report["resumed_bytes"] + again.report["downloaded_bytes"] >= 48 << 20


def test_a_load_that_waits_for_another_reports_it_and_ends_as_a_hit(s3: SeaweedS3, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    tensors = [RawTensor(f"t{number}".encode(), b"|u1", (4 << 20,), bytes(4 << 20)) for number in range(4)]
    s3.put(bucket, {"m/model.tensors": bytes(build_tensors_file(tensors).data)})
    args: list[str | Path] = ["load", f"s3://{bucket}/m/", "--cache", tmp_path]
    with start_tonnage(*args, "--bandwidth-limit", "8MiB", environment=s3.environment()) as first:
        assert first.stderr is not None
        while json.loads(first.stderr.readline())["phase"] != "loading":
            pass
        second = run_tonnage(*args, environment=s3.environment())
        out, _ = first.communicate(timeout=30)
    assert json.loads(out)["outcome"] == "loaded"
    assert [json.loads(line)["phase"] for line in second.stderr.splitlines()] == ["resolving", "waiting"]
    assert (second.returncode, second.report["outcome"]) == (0, "hit")


def test_a_terminal_shows_one_summary(loaded: tuple[Path, CommandResult], model: Model) -> None:
    leading, following = os.openpty()
    environment = command_environment({**model.environment, "TERM": "xterm", "COLUMNS": "140"})
    args = [sys.executable, "-m", "tonnage", "load", model.source, "--cache", str(loaded[0])]
    with subprocess.Popen(args, env=environment, stdout=subprocess.PIPE, stderr=following, text=True) as process:
        os.close(following)
        out, _ = process.communicate(timeout=30)
    shown = os.read(leading, 65536).decode()
    os.close(leading)
    assert json.loads(out)["outcome"] == "hit"
    assert "(hit in" in shown
    assert "4 tensors verified by CRC-32" in shown
    assert loaded[1].report["path"] in shown
