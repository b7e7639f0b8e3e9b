"""Huge pages in a real tmpfs that gives them only by advice."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from support.load_harness import KEY
from support.models import to_tensors_file
from tonnage.transfer.huge_pages import HUGE_PAGE, HugePageAllocator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.load_harness import LoadHarness

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs takes root")


@pytest.fixture
def advised(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that gives huge pages by advice, of 64 MiB."""
    folder = tmp_path / "advised"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "huge=advise,size=64m", "none", folder], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs with huge pages: {done.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def huge_bytes(path: Path) -> int:
    """Returns how many bytes of a file are in huge pages: those that a mapping maps as such."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapping:
        sum(mapping[at] for at in range(0, size, mmap.PAGESIZE))
        found = re.search(
            rf"{re.escape(str(path))}\n(?:(?!-).*\n)*?ShmemPmdMapped: +(\d+) kB", Path("/proc/self/smaps").read_text()
        )
    assert found
    return int(found[1]) << 10


def test_writes_alone_get_small_pages_and_populated_ranges_huge_ones(advised: Path) -> None:
    for name, allocator in (("plain", None), ("populated", HugePageAllocator())):
        path = advised / name
        with path.open("w+b") as file:
            file.truncate(4 * HUGE_PAGE + 5)
            for at in range(0, 4 * HUGE_PAGE, HUGE_PAGE // 2):
                if allocator is not None:
                    allocator.populate(file.fileno(), at, at + HUGE_PAGE // 2)
                os.pwrite(file.fileno(), b"x" * (HUGE_PAGE // 2), at)
        assert path.read_bytes() == b"x" * (4 * HUGE_PAGE) + bytes(5)
        assert huge_bytes(path) == (0 if allocator is None else 4 * HUGE_PAGE)


def test_populating_keeps_what_was_written(advised: Path) -> None:
    with (advised / "file").open("w+b") as file:
        file.truncate(2 * HUGE_PAGE)
        os.pwrite(file.fileno(), b"early", 100)
        HugePageAllocator().populate(file.fileno(), 0, 2 * HUGE_PAGE)
        assert os.pread(file.fileno(), 5, 100) == b"early"


def test_a_full_tmpfs_and_a_file_that_can_not_be_mapped_are_left_to_the_write(advised: Path) -> None:
    with (advised / "large").open("w+b") as file:
        file.truncate(100 << 20)
        HugePageAllocator().populate(file.fileno(), 0, 100 << 20)
        assert os.pwrite(file.fileno(), bytes(1 << 20), 0) == 1 << 20
    with (advised / "empty").open("w+b") as file:
        HugePageAllocator().populate(file.fileno(), 0, 100)


@pytest.mark.usefixtures("receiver")
def test_a_load_into_such_a_tmpfs_gets_huge_pages_and_reports_it(harness: LoadHarness, advised: Path) -> None:
    harness.tensors = {f"layers.{n}": torch.rand(1 << 20) for n in range(4)}
    harness.server.put(KEY, to_tensors_file(harness.tensors))
    harness.cache = advised / "cache"
    report = harness.load()
    harness.assert_loaded(report)
    assert report.medium is not None
    assert report.medium.pages == "advise"
    shards = [path for path in (advised / "cache").rglob("*.safetensors") if path.stat().st_size > 2 * HUGE_PAGE]
    assert shards
    assert all(huge_bytes(path) >= (path.stat().st_size // HUGE_PAGE - 1) * HUGE_PAGE for path in shards)
