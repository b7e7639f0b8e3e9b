"""``tonnage load SOURCE --into DIR`` and the calls of KServe's storage initializer, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tonnage
from support.child_processes import UNPRIVILEGED_UID, run_in_child
from support.hub_server import HubServer
from support.load_harness import BOTH_KINDS
from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir, make_tensors, to_safetensors_file
from support.tonnage_cli import CommandResult, run_tonnage, start_tonnage
from tonnage.cache.flat import Folder
from tonnage.contract import Outcome
from tonnage.errors import CacheNotWritable
from tonnage.loading.api import make_plan
from tonnage.loading.load import run_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.load_harness import LoadHarness

SOURCE = "s3://bucket/model/"
TUNING = ("--part-size", "128Ki", "--workers", "2", "--connections", "4", "--progress", "off")


def variables(harness: LoadHarness, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What KServe's webhook sets for a bucket that needs no credentials."""
    return {
        "AWS_ENDPOINT_URL": harness.server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "awsAnonymousCredential": "true",
        **(extra or {}),
    }


def load(harness: LoadHarness, *words: str | Path, **extra: str) -> CommandResult:
    return run_tonnage("load", *words, *TUNING, environment=variables(harness, extra))


def into(harness: LoadHarness, folder: Path, *options: str) -> CommandResult:
    return load(harness, SOURCE, "--into", folder, "--anonymous", *options)


def visible(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        str(path.relative_to(folder)) for path in (folder / ".tonnage").rglob("*")
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where KServe mounts its volume: a folder that exists and that others may write to."""
    made = tmp_path / "mnt" / "models"
    made.mkdir(parents=True)
    made.chmod(0o777)
    return made


@BOTH_KINDS
def test_the_folder_has_the_files_themselves_and_the_second_load_downloads_nothing(
    harness: LoadHarness, folder: Path
) -> None:
    first = into(harness, folder)
    assert (first.returncode, first.report["outcome"]) == (0, "loaded"), first.stderr
    assert (first.report["path"], first.report["entry"], first.report["verified_by"] != "") == (str(folder), "", True)
    assert_tensors_equal(load_safetensors_dir(folder), harness.tensors)
    assert (folder / "config.json").read_bytes() == CONFIG
    assert all(path.parent == folder or path.parts[-2] == "tonnage" for path in map(folder.joinpath, visible(folder)))
    again = into(harness, folder)
    assert (again.report["outcome"], again.report["downloaded_bytes"]) == ("hit", 0)
    with tonnage.open(folder) as weights:
        assert_tensors_equal(dict(weights), harness.tensors)
    assert run_tonnage("verify", folder, "--progress", "off").returncode == 0


@BOTH_KINDS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_load_shows_no_file_and_the_next_one_resumes(
    harness: LoadHarness, folder: Path, number: signal.Signals
) -> None:
    words = ("load", SOURCE, folder, *TUNING, "--bandwidth-limit", "2MB")
    with start_tonnage(*words, environment=variables(harness)) as process:
        harness.server.wait_for_bytes(harness.body + (len(harness.tensors_file) - harness.body) // 2)
        process.send_signal(number)
        process.communicate(timeout=50)
    assert visible(folder) == set()
    after = load(harness, SOURCE, folder)
    assert after.returncode == 0, after.stderr
    assert after.report["resumed_bytes"] > 0
    assert_tensors_equal(load_safetensors_dir(folder), harness.tensors)


def test_two_at_once_download_the_model_once(harness: LoadHarness, folder: Path) -> None:
    words = ("load", SOURCE, folder, *TUNING, "--bandwidth-limit", "4MB")
    with (
        start_tonnage(*words, environment=variables(harness)) as one,
        start_tonnage(*words, environment=variables(harness)) as other,
    ):
        reports = [json.loads(process.communicate(timeout=50)[0].splitlines()[-1]) for process in (one, other)]
    assert sorted(report["outcome"] for report in reports) == ["hit", "loaded"]
    assert harness.server.count_requests(method="GET", key="bucket/model/config.json") == 1


def test_files_of_others_stay_and_weights_among_them_are_named(harness: LoadHarness, folder: Path) -> None:
    (folder / "lost+found").mkdir()
    (folder / "old.safetensors").write_bytes(b"of another program")
    report = into(harness, folder).report
    assert report["outcome"] == "loaded"
    assert any("old.safetensors" in note for note in report["notes"])
    assert (folder / "old.safetensors").read_bytes() == b"of another program"


def test_a_file_of_the_same_name_is_refused_before_the_transfer_and_replaced_on_request(
    harness: LoadHarness, folder: Path
) -> None:
    (folder / "config.json").write_bytes(b"mine")
    refused = into(harness, folder)
    assert (refused.returncode, refused.report["reason"]) == (38, "TargetExists")
    assert "config.json" in refused.report["message"]
    assert "--overwrite" in refused.report["remedy"]
    assert harness.server.bytes_sent < len(harness.tensors_file)
    assert (folder / "config.json").read_bytes() == b"mine"
    assert into(harness, folder, "--overwrite").returncode == 0
    assert (folder / "config.json").read_bytes() == CONFIG


def test_another_revision_is_refused_and_replaces_the_first_on_request(harness: LoadHarness, folder: Path) -> None:
    first = into(harness, folder).report
    (folder / "mine.txt").write_text("kept")
    harness.server.put("bucket/model/config.json", CONFIG + b"\n")
    harness.server.put("bucket/model/tokenizer.json", b"{}")
    refused = into(harness, folder)
    assert refused.report["reason"] == "TargetExists"
    assert first["revision"] in refused.report["message"]
    assert (folder / "config.json").read_bytes() == CONFIG
    replaced = load(harness, SOURCE, folder, TONNAGE_OVERWRITE="true").report
    assert (replaced["outcome"], any(first["revision"] in note for note in replaced["notes"])) == ("loaded", True)
    assert (folder / "config.json").read_bytes() == CONFIG + b"\n"
    assert visible(folder) >= {"tokenizer.json", "mine.txt"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("loaded", [False, True])
def test_a_read_only_folder_is_a_hit_if_it_has_the_model_and_names_the_folder_if_not(
    harness: LoadHarness, *, loaded: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        folder = Path(made)
        if loaded:
            into(harness, folder)
        folder.chmod(0o555)

        def run() -> None:
            plan = make_plan(SOURCE, endpoint_url=harness.server.endpoint, anonymous=True)
            if loaded:
                found = run_plan(plan, cache=Folder(folder), environment={})
                assert found.report.outcome is Outcome.HIT
            else:
                with pytest.raises(CacheNotWritable, match=str(folder)):
                    run_plan(plan, cache=Folder(folder), environment={})

        assert run_in_child(run, uid=UNPRIVILEGED_UID) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_folder_gives_how_much_is_missing(harness: LoadHarness) -> None:
    small = Path("/dev/shm") / f"tonnage-into-{os.getpid()}"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=False, capture_output=True
    )
    if mounted.returncode:
        small.rmdir()
        pytest.skip("may not mount a tmpfs")
    try:
        done = into(harness, small)
        assert (done.returncode, done.report["reason"]) == (27, "InsufficientSpace")
        assert str(small) in done.report["message"]
        assert "tonnage rm" not in done.report["remedy"]
        assert visible(small) == set()
    finally:
        subprocess.run(["umount", str(small)], check=True)
        small.rmdir()


def test_several_pairs_are_loaded_one_after_the_other(harness: LoadHarness, folder: Path) -> None:
    """KServe's ``storageUris`` with a repository on a hub, whose revision it separates with a colon."""
    tensors = make_tensors()
    with HubServer() as hub:
        commit = hub.push("org/adapter", {"model.safetensors": to_safetensors_file(tensors), "config.json": CONFIG})
        done = load(
            harness, SOURCE, folder / "base", f"hf://org/adapter:{commit}", folder / "adapter",
            HF_ENDPOINT=hub.endpoint,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["path"] for report in reports] == [str(folder / "base"), str(folder / "adapter")]
    assert_tensors_equal(load_safetensors_dir(folder / "base"), harness.tensors)
    assert_tensors_equal(load_safetensors_dir(folder / "adapter"), tensors)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["/mnt/models"], "no SOURCE is before it"),
        ([SOURCE, "/mnt/a", SOURCE], "has no folder behind it"),
        ([SOURCE, "/mnt/a", "/mnt/b"], "no SOURCE is before it"),
        ([SOURCE, "/mnt/a", "--cache", "/dev/shm/x"], "--cache and a folder"),
        ([SOURCE, "--into", "/mnt/a", "--cache", "/dev/shm/x"], "--cache and --into"),
        ([SOURCE, "--into", "/mnt/a", "--hold"], "--hold and --into"),
        ([SOURCE, "--cache", "/dev/shm/x", "--overwrite"], "--overwrite is for --into"),
    ],
)
def test_words_that_contradict_each_other_are_refused(words: list[str], problem: str) -> None:
    done = run_tonnage("load", *words)
    assert done.returncode == 2
    assert problem in done.report["message"]


@pytest.mark.parametrize(
    ("config", "problem"), [("{", "not a JSON object"), ("[]", "not a JSON object"), ('{"type": "gs"}', "type 'gs'")]
)
def test_a_storage_secret_that_can_not_be_used_is_named(
    harness: LoadHarness, folder: Path, config: str, problem: str
) -> None:
    done = load(harness, SOURCE, folder, STORAGE_CONFIG=config)
    assert (done.returncode, problem in done.report["message"]) == (2, True)


def test_a_storage_secret_names_the_server_and_its_keys_are_not_printed(folder: Path, s3: Any) -> None:
    bucket = s3.make_bucket()
    s3.put(bucket, {"m/model.safetensors": to_safetensors_file(make_tensors()), "m/config.json": CONFIG})
    access = s3.environment()
    secret = {
        "type": "s3",
        "endpoint_url": s3.endpoint,
        "access_key_id": access["AWS_ACCESS_KEY_ID"],
        "secret_access_key": access["AWS_SECRET_ACCESS_KEY"],
        "region": "us-east-1",
    }
    done = run_tonnage(
        "load", f"s3://{bucket}/m", folder, "--progress", "off",
        environment={"STORAGE_CONFIG": json.dumps(secret), "S3_VERIFY_SSL": "0", "AWS_EC2_METADATA_DISABLED": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.output
    assert "S3_VERIFY_SSL is ignored" in done.stderr
    assert secret["secret_access_key"] not in done.output
