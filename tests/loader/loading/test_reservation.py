"""Room is reserved at the beginning: loads that don't fit together never block each other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support.load_harness import KEY
from support.models import CONFIG
from support.tonnage_cli import run_tonnage, start_tonnage
from tonnage.cache import Cache, reservation
from tonnage.contract import Limits
from tonnage.errors import InsufficientSpace, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.load_harness import LoadHarness
    from tonnage.contract import Progress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")


@pytest.fixture
def small(request: pytest.FixtureRequest, harness: LoadHarness, tmp_path: Path) -> Iterator[LoadHarness]:
    """A cache in which one and a half of a model have room, on the medium of the parameter, and a second model."""
    harness.server.put(KEY.replace("/model/", "/other/"), harness.tensors_file)
    harness.server.put("bucket/other/config.json", CONFIG)
    folder = tmp_path / "small"
    folder.mkdir()
    size = len(harness.tensors_file) * 3 // 2
    if getattr(request, "param", "tmpfs") == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    else:
        image = tmp_path / "image"
        image.touch()
        os.truncate(image, size + (256 << 10))  # for the file system's own tables
        options = ["-q", "-F", "-m", "0", "-N", "64", "-O", "^has_journal,^resize_inode"]
        subprocess.run(["mkfs.ext4", *options, image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True).returncode:
            pytest.skip("no loop device")
    harness.cache = folder / "cache"
    yield harness
    subprocess.run(["umount", "-l", folder], check=True)


ON_DISK = pytest.mark.parametrize("small", ["ext4"], indirect=True)
ON_BOTH_MEDIA = pytest.mark.parametrize("small", ["tmpfs", "ext4"], indirect=True)


def arguments(harness: LoadHarness, model: str, *options: str, cache: Path | None = None) -> list[str]:
    return [
        *("load", f"s3://bucket/{model}/", "--cache", str(cache or harness.cache), "--anonymous"),
        *("--region", "us-east-1", "--endpoint-url", harness.server.endpoint),
        *("--part-size", "128Ki", "--workers", "2", "--progress", "off", *options),
    ]


def unpublished(harness: LoadHarness) -> list[Path]:
    return [path for path in harness.cache.parent.glob("*/*/.tonnage/partial/**/*") if path.is_file()]


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


@contextlib.contextmanager
def load_whose_room_is_taken(harness: LoadHarness) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Starts a load, and fills its medium while parts arrive. Yields the load and the file that fills it."""
    filler = harness.cache.parent / "filler"
    with start_tonnage(*arguments(harness, "model", "--bandwidth-limit", "600KB")) as process:
        harness.server.wait_for_bytes(262_217 + 200_000)
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        yield process, filler


@ON_BOTH_MEDIA
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


@pytest.mark.parametrize(
    ("second_cache", "small"), [("cache", "tmpfs"), ("unseen", "tmpfs"), ("unseen", "ext4")], indirect=["small"]
)
def test_of_two_loads_that_begin_together_one_is_loaded(small: LoadHarness, second_cache: str) -> None:
    """Also if neither sees what the other one does, as in two pods."""
    caches = [small.cache, small.cache.parent / second_cache]
    slow = ("--bandwidth-limit", "2MB")
    with (
        start_tonnage(*arguments(small, "model", *slow, cache=caches[0])) as first,
        start_tonnage(*arguments(small, "other", *slow, cache=caches[1])) as second,
    ):
        outputs = [process.communicate(timeout=50) for process in (first, second)]
        assert sorted((first.returncode, second.returncode)) == [0, 27], outputs
    assert unpublished(small) == []
    ((cache, loaded),) = [(cache, entry) for cache in set(caches) for entry in Cache(cache).entries()]
    assert run_tonnage("verify", loaded.name, "--cache", cache).returncode == 0
    assert run_tonnage("rm", loaded.name, "--cache", cache).returncode == 0
    small.assert_loaded(small.load())


def test_a_load_whose_room_another_program_had_for_a_while_begins_again_and_allocates_first(
    small: LoadHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = small.cache.parent / "filler"
    allocates: list[bool] = []

    def reserve(*args: Any, **options: Any) -> bool:
        allocates.append(options["allocates"])
        filler.unlink(missing_ok=True)
        return reservation.reserve(*args, **options)

    def take_room(progress: Progress) -> None:
        if progress.loaded_bytes > 400_000 and not filler.exists() and len(allocates) == 1:
            with pytest.raises(OSError, match="No space left"):
                fill(filler)

    monkeypatch.setattr("tonnage.loading.fill.reserve", reserve)
    limits = Limits(workers=1, part_size=100_000, bandwidth=1_000_000)
    report = small.load(limits=limits, on_progress=take_room)
    assert allocates == [False, True]
    assert report.outcome == "loaded"
    small.assert_loaded(report)
    assert unpublished(small) == []


def test_a_load_whose_room_another_program_keeps_fails_with_the_numbers_and_leaves_nothing(small: LoadHarness) -> None:
    with load_whose_room_is_taken(small) as (process, filler):
        out, err = process.communicate(timeout=50)
    assert process.returncode == InsufficientSpace.exit_code, out + err
    assert re.search(r"needed, .* free of", json.loads(out)["message"])
    assert unpublished(small) == []
    filler.unlink()
    small.assert_loaded(small.load())


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


@ON_DISK
def test_room_that_others_take_during_a_load_is_not_its_own(small: LoadHarness) -> None:
    with load_whose_room_is_taken(small) as (process, filler):
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
