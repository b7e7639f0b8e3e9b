"""Loads without faults."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import tonnage
from support.faulty_server import Fault
from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir, make_tensors, to_tensors_file
from tonnage.contract import Limits, Outcome, Progress, Verify
from tonnage.errors import DigestMismatch, InsufficientSpace, Interrupted, Timeout

if TYPE_CHECKING:
    from pathlib import Path

    from support.load_harness import LoadHarness
    from support.s3_server import SeaweedS3
    from support.tensors_corpus import CorpusFile


def test_a_model_is_loaded_from_s3_and_verified(harness: LoadHarness) -> None:
    report = harness.load()
    harness.assert_loaded(report)
    assert report.outcome is Outcome.LOADED
    assert report.verified == "crc32"
    assert report.tensors == len(harness.tensors)
    assert report.downloaded_bytes > 0
    assert report.resumed_bytes == 0
    assert report.medium is not None


def test_the_second_load_is_a_hit_that_lists_but_downloads_nothing(harness: LoadHarness) -> None:
    first = harness.load()
    sent = harness.server.bytes_sent
    gets = harness.server.count_requests(method="GET", key="bucket/model/weights.tensors")
    second = harness.load()
    assert second.outcome is Outcome.HIT
    assert second.path == first.path
    assert second.downloaded_bytes == 0
    assert harness.server.count_requests(method="GET", key="bucket/model/weights.tensors") == gets
    assert harness.server.bytes_sent - sent < 4096  # the listing


def test_files_are_world_readable_and_read_only(harness: LoadHarness) -> None:
    report = harness.load()
    for path in (harness.cache / report.entry / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE((harness.cache / report.entry / "model").stat().st_mode) & 0o055 == 0o055


@pytest.mark.parametrize("level", list(Verify))
def test_each_level_of_verification_is_reported(harness: LoadHarness, level: Verify) -> None:
    report = harness.load(verify=level)
    assert report.verified == level.reachable
    harness.assert_loaded(report)


def test_an_entry_is_verified_again_when_a_higher_level_is_requested(harness: LoadHarness) -> None:
    harness.load(verify="none")
    report = harness.load(verify="sha256")
    assert (report.outcome, report.verified) == (Outcome.HIT, "sha256")
    again = harness.load(verify="crc32")
    assert (again.outcome, again.verified) == (Outcome.HIT, "sha256")


def test_the_tensorizer_layout_is_the_object_itself(harness: LoadHarness) -> None:
    report = harness.load(layout="tensorizer")
    assert (harness.cache / report.entry / "model" / "weights.tensors").read_bytes() == harness.tensors_file
    assert report.entry.endswith("-tensorizer")


def test_both_layouts_can_be_in_the_cache(harness: LoadHarness) -> None:
    assert harness.load().entry != harness.load(layout="tensorizer").entry


def test_segments_have_the_requested_size(harness: LoadHarness) -> None:
    report = harness.load(limits=Limits(workers=2, connections=4, part_size=100_000, segment_size=500_000))
    assert report.segments > 3
    assert (harness.cache / report.entry / "model" / "model.safetensors.index.json").exists()
    harness.assert_loaded(report)


def test_progress_goes_from_resolving_to_the_last_byte(harness: LoadHarness) -> None:
    seen: list[Progress] = []
    harness.load(
        on_progress=seen.append, limits=Limits(workers=1, connections=1, part_size=100_000, bandwidth=2_000_000)
    )
    assert seen[0].phase == "resolving"
    loading = [progress for progress in seen if progress.phase == "loading"]
    assert loading
    assert all(earlier.loaded_bytes <= later.loaded_bytes for earlier, later in itertools.pairwise(loading))
    assert all(progress.loaded_bytes <= progress.total_bytes for progress in loading)
    assert any(progress.bytes_per_second > 0 for progress in loading)


def test_a_canceled_load_is_resumed_by_the_next_one(harness: LoadHarness) -> None:
    slow = Limits(workers=1, connections=2, part_size=100_000, bandwidth=1_000_000)
    with pytest.raises(Interrupted):
        harness.load(limits=slow, canceled=lambda: harness.server.bytes_sent > 900_000)
    harness.assert_nothing_visible()
    report = harness.load()
    assert report.resumed_bytes > 0
    assert report.resumed_bytes + report.downloaded_bytes < len(harness.tensors_file) + 700_000
    harness.assert_loaded(report)


def test_a_deadline_is_kept(harness: LoadHarness) -> None:
    with pytest.raises(Timeout):
        harness.load(limits=Limits(workers=1, connections=1, part_size=100_000, bandwidth=200_000, timeout=1.0))
    harness.assert_nothing_visible()


def test_an_unexpected_digest_is_rejected_before_anything_is_fetched(harness: LoadHarness) -> None:
    with pytest.raises(DigestMismatch):
        harness.load(expected_digest="sha256:" + "0" * 64)
    assert harness.server.count_requests(method="GET", key="bucket/model/weights.tensors") == 0


def test_a_new_version_of_the_object_is_another_entry(harness: LoadHarness) -> None:
    first = harness.load()
    others = make_tensors(seed=1)
    harness.server.put("bucket/model/weights.tensors", to_tensors_file(others))
    second = harness.load()
    assert second.outcome is Outcome.LOADED
    assert second.path != first.path
    assert_tensors_equal(load_safetensors_dir(harness.cache / second.entry / "model"), others)
    harness.assert_loaded(first)


def test_insufficient_space_is_reported_before_the_first_byte_with_both_numbers(
    harness: LoadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def full(path: Any) -> os.statvfs_result:
        found = list(real(path))
        found[3] = found[4] = 1
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(InsufficientSpace, match=r"\d"):
        harness.load()
    gets = list(harness.server.find_requests(method="GET", key="bucket/model/weights.tensors"))
    assert all(request.range is not None and request.range[0] == 0 for request in gets)


def test_space_that_must_remain_free_is_not_used(harness: LoadHarness) -> None:
    with pytest.raises(InsufficientSpace, match="must remain free"):
        harness.load(limits=Limits(min_free=1 << 60))


def test_ranks_are_loaded_one_by_one_into_one_entry(harness: LoadHarness) -> None:
    files = {rank: make_tensors(seed=rank, count=3) for rank in range(3)}
    for rank, found in files.items():
        harness.server.put(f"bucket/ranks/model-rank-{rank:03d}.tensors", to_tensors_file(found))

    def load(ranks: list[int] | None) -> Any:
        return tonnage.load(
            "s3://bucket/ranks/",
            cache=harness.cache,
            ranks=ranks,
            anonymous=True,
            endpoint_url=harness.server.endpoint,
            region="us-east-1",
            environment={},
        )

    first, second = load([0]), load([0, 2])
    assert first.path == second.path
    assert (first.outcome, second.outcome) == (Outcome.LOADED, Outcome.LOADED)
    folder = harness.cache / first.entry / "model"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model-rank-0-part-0.safetensors",
        "model-rank-2-part-0.safetensors",
    ]
    assert load([2]).outcome is Outcome.HIT
    everything = load(None)
    assert everything.outcome is Outcome.LOADED
    from safetensors.torch import load_file

    for rank, found in files.items():
        assert_tensors_equal(load_file(folder / f"model-rank-{rank}-part-0.safetensors"), found)


def test_every_file_of_the_corpus_is_loaded_from_a_real_s3_server(
    corpus: dict[str, CorpusFile], s3: SeaweedS3, tmp_path: Path
) -> None:
    bucket = s3.make_bucket()
    for item in corpus.values():
        s3.put(bucket, {f"{item.name}/{item.path.name}": item.path})
    for item in corpus.values():
        layout = "safetensors" if item.safetensors and not item.encrypted else "tensorizer"
        report = tonnage.load(
            f"s3://{bucket}/{item.name}/",
            cache=tmp_path,
            layout=layout,
            endpoint_url=s3.endpoint,
            environment=s3.environment(),
            limits=Limits(workers=1),
        )
        folder = tmp_path / report.entry / "model"
        if layout == "tensorizer":
            assert (folder / item.path.name).read_bytes() == item.path.read_bytes(), item.name
        else:
            stored = {item.flat_names[path] for path, tensor in item.tensors.items() if not tensor.is_meta}
            expected = {name: tensor for name, tensor in item.by_flat_name.items() if name in stored}
            assert_tensors_equal(load_safetensors_dir(folder), expected)
        assert report.verified == "crc32", item.name
        assert ("CRC32 of tensors" in report.verified_by) is not item.encrypted, item.name


def test_importing_the_package_and_a_hit_import_nothing_heavy(harness: LoadHarness) -> None:
    harness.load()
    script = (
        "import sys, tonnage\n"
        f"report = tonnage.load('s3://bucket/model/', cache={str(harness.cache)!r}, anonymous=True, "
        f"endpoint_url={harness.server.endpoint!r}, region='us-east-1', environment={{}})\n"
        "assert report.outcome == 'hit', report\n"
        "heavy = {'torch', 'numpy', 'botocore', 'boto3', 'isal', 'rich', 'pydantic', 'asyncio', 'kubernetes'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": "loader", "PATH": os.environ["PATH"]},
    )
    assert done.stdout.strip() == "[]"


def test_the_companion_is_unchanged(harness: LoadHarness) -> None:
    report = harness.load()
    assert (harness.cache / report.entry / "model" / "config.json").read_bytes() == CONFIG


def test_an_option_that_does_not_exist_is_an_error_and_not_ignored(harness: LoadHarness) -> None:
    with pytest.raises(TypeError, match=r"no option 'anonymus'; there are .*anonymous"):
        harness.load(anonymus=True)


def test_files_left_out_and_retries_of_resolving_are_in_progress_and_report(harness: LoadHarness) -> None:
    harness.server.put("bucket/model/modeling_x.py", b"code")
    harness.server.add_fault(Fault(status=500), times=1)
    seen: list[Progress] = []
    report = harness.load(on_progress=seen.append)
    assert [note for note in report.notes if "modeling_x.py" in note] == list(seen[-1].notes)
    assert seen[0].notes == ()
    assert report.retries == 1
    harness.assert_loaded(report)
