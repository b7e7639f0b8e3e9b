"""Room is reserved at the beginning: loads that don't fit together never block each other."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.load_harness import KEY
from support.models import CONFIG
from support.tonnage_cli import run_tonnage, start_tonnage
from tonnage.cache import Cache, reservation
from tonnage.contract import Limits
from tonnage.errors import InsufficientSpace, Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from support.load_harness import LoadHarness

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")


@pytest.fixture
def small(harness: LoadHarness, tmp_path: Path) -> Iterator[LoadHarness]:
    """A cache in which one and a half of a model have room, and a second model."""
    harness.server.put(KEY.replace("/model/", "/other/"), harness.tensors_file)
    harness.server.put("bucket/other/config.json", CONFIG)
    folder = tmp_path / "small"
    folder.mkdir()
    size = len(harness.tensors_file) * 3 // 2
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    harness.cache = folder / "cache"
    yield harness
    subprocess.run(["umount", "-l", folder], check=True)


def arguments(harness: LoadHarness, model: str, *options: str) -> list[str]:
    return [
        *("load", f"s3://bucket/{model}/", "--cache", str(harness.cache), "--anonymous", "--region", "us-east-1"),
        *("--endpoint-url", harness.server.endpoint, "--part-size", "128Ki", "--workers", "2", "--progress", "off"),
        *options,
    ]


def unpublished(harness: LoadHarness) -> list[Path]:
    return [path for path in harness.cache.glob("*/.tonnage/partial/**/*") if path.is_file()]


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def test_a_load_that_does_not_fit_beside_another_fails_before_its_first_byte_and_leaves_nothing(
    small: LoadHarness,
) -> None:
    with start_tonnage(*arguments(small, "model", "--bandwidth-limit", "600KB")) as first:
        small.server.wait_for_bytes(262_217 + 200_000)
        second = run_tonnage(*arguments(small, "other"))
        assert (second.report["reason"], second.report["downloaded_bytes"]) == ("InsufficientSpace", 0)
        assert "Beside it: r-" in second.report["message"]
        assert "in use" in second.report["message"]
        assert len({path.relative_to(small.cache).parts[0] for path in unpublished(small)}) == 1
        out, err = first.communicate(timeout=50)
        assert first.returncode == 0, out + err
    small.assert_loaded(small.load())


def test_of_two_loads_that_begin_together_one_is_loaded(small: LoadHarness) -> None:
    slow = ("--bandwidth-limit", "2MB")
    with (
        start_tonnage(*arguments(small, "model", *slow)) as first,
        start_tonnage(*arguments(small, "other", *slow)) as second,
    ):
        outputs = [process.communicate(timeout=50) for process in (first, second)]
        assert sorted((first.returncode, second.returncode)) == [0, 27], outputs
    assert unpublished(small) == []
    (loaded,) = Cache(small.cache).entries()
    assert run_tonnage("verify", loaded.name, "--cache", small.cache).returncode == 0
    assert run_tonnage("rm", loaded.name, "--cache", small.cache).returncode == 0
    small.assert_loaded(small.load())


def test_a_load_whose_room_is_taken_while_its_first_parts_arrive_begins_again(
    small: LoadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one would have taken it between the check of the free space and the allocation."""
    filler = small.cache.parent / "filler"
    allocate_all = reservation._allocate_all
    calls: list[int] = []

    def taken(paths: Sequence[Path], canceled: Callable[[], bool], *, threads: int) -> None:
        calls.append(small.server.bytes_sent)
        if len(calls) > 1:
            allocate_all(paths, canceled, threads=threads)
            return
        small.server.wait_for_bytes(small.server.bytes_sent + 400_000)
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        try:
            allocate_all(paths, canceled, threads=threads)
        finally:
            filler.unlink()

    monkeypatch.setattr(reservation, "_allocate_all", taken)
    report = small.load(limits=Limits(workers=1, part_size=100_000, bandwidth=1_000_000))
    assert len(calls) == 2
    assert report.outcome == "loaded"
    small.assert_loaded(report)
    assert unpublished(small) == []


def test_what_an_interrupted_load_has_left_makes_room_for_another(small: LoadHarness) -> None:
    with pytest.raises(Interrupted):
        small.load(canceled=lambda: small.server.bytes_sent > len(small.tensors_file) * 2 // 3)
    assert unpublished(small)
    other = run_tonnage(*arguments(small, "other"))
    assert other.report["outcome"] == "loaded", other.output
    assert any("had left in r-" in note for note in other.report["notes"])
    assert unpublished(small) == []


def test_an_interrupted_load_keeps_its_room_and_resumes(small: LoadHarness) -> None:
    with pytest.raises(Interrupted):
        small.load(canceled=lambda: small.server.bytes_sent > len(small.tensors_file) * 2 // 3)
    with (small.cache / "filler").open("wb") as file:
        file.write(bytes(len(small.tensors_file) // 4))
    report = small.load()
    assert report.resumed_bytes > 0
    small.assert_loaded(report)


def test_room_that_others_take_during_a_load_is_not_its_own(small: LoadHarness) -> None:
    filler = small.cache.parent / "filler"
    with start_tonnage(*arguments(small, "model", "--bandwidth-limit", "600KB")) as process:
        small.server.wait_for_bytes(262_217 + 200_000)
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        os.truncate(filler, filler.stat().st_size - (256 << 10))  # for manifest and journal, which are not reserved
        out, err = process.communicate(timeout=50)
        assert process.returncode == 0, out + err
    small.assert_loaded(small.load())


def test_a_full_medium_is_refused_with_numbers(small: LoadHarness) -> None:
    small.cache.mkdir()
    (small.cache.parent / "filler").write_bytes(bytes(len(small.tensors_file)))
    with pytest.raises(InsufficientSpace, match=r"needed, .* free of"):
        small.load()
    assert unpublished(small) == []
    (small.cache.parent / "filler").unlink()
    small.assert_loaded(small.load())
