"""The medium of the cache, and whether a load fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.cache import check_free_space, inspect_medium
from tonnage.cache.medium import in_memory, insufficient_space_message, machine_memory, page_kind
from tonnage.cache.procfs import Mount, find_mount, parse_mountinfo
from tonnage.contract import Medium
from tonnage.errors import InsufficientSpace

GIB = 1 << 30
LINES = (
    "25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684092k,huge=within_size\n"
    "26 24 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n"
    "27 24 0:24 /a\\040b /mnt/with\\040space\\134 rw shared:9 - tmpfs none rw\n"
    "not a line\n28 24 0:9 / /x rw - tmpfs\n\n"
)


def tmpfs(*options: str) -> Mount:
    return Mount(1, "0:1", "/", "/m", "tmpfs", ("rw", *options))


def test_mountinfo_is_read_with_optional_fields_and_escapes() -> None:
    first, second, third = parse_mountinfo(LINES)
    assert first == Mount(25, "0:23", "/", "/dev/shm", "tmpfs", ("rw", "size=24684092k", "huge=within_size"))
    assert (second.filesystem, second.device) == ("ext4", "254:0")
    assert (third.root, third.mount_point) == ("/a b", "/mnt/with space\\")


@given(st.text())
def test_arbitrary_mountinfo_does_not_raise(text: str) -> None:
    parse_mountinfo(text)


@pytest.mark.parametrize(
    ("mount", "setting", "pages"),
    [
        (tmpfs(), "always within_size advise [never] deny force", "4k"),
        (tmpfs("huge=never"), "", "4k"),
        (tmpfs("huge=always"), "", "always"),
        (tmpfs("huge=within_size", "size=1k"), "", "within_size"),
        (tmpfs("huge=advise"), "", "advise"),
        (tmpfs("huge=always"), "always within_size advise never [deny] force", "4k"),
        (tmpfs(), "always within_size advise never deny [force]", "always"),
        (Mount(1, "8:1", "/", "/", "ext4", ("rw",)), "[force]", ""),
    ],
)
def test_the_pages_of_a_tmpfs_are_named(mount: Mount, setting: str, pages: str) -> None:
    assert page_kind(mount, shmem_enabled=setting) == pages


def test_a_directory_in_memory_has_the_medium_tmpfs(memory: Path) -> None:
    medium = inspect_medium(memory)
    assert medium.filesystem == "tmpfs"
    assert medium.pages in {"4k", "always", "within_size", "advise"}
    assert 0 < medium.free_bytes <= medium.capacity_bytes
    assert in_memory(memory)
    assert in_memory(memory / "not" / "yet")


def test_a_path_that_does_not_exist_has_the_medium_of_its_parent(tmp_path: Path) -> None:
    assert inspect_medium(tmp_path / "a" / "b").filesystem == inspect_medium(tmp_path).filesystem
    found = find_mount(tmp_path)
    assert found is not None
    device = tmp_path.stat().st_dev
    if found.filesystem in {"ext4", "xfs", "tmpfs"}:
        assert found.device == f"{os.major(device)}:{os.minor(device)}"


def test_huge_pages_of_a_mount_are_seen(memory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tonnage.cache import inspect_medium; "
        "print(inspect_medium(Path(sys.argv[1])))"
    )
    script = f'mount -t tmpfs -o huge=always,size=4M none "$1" && exec {sys.executable} -c "{code}" "$1"'
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3] / "loader")}
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(memory)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    if "huge" in run.stderr or "ermitted" in run.stderr or "ermission" in run.stderr:
        pytest.skip("can't mount a tmpfs with huge pages here")
    assert "filesystem='tmpfs', pages='always', capacity_bytes=4194304" in run.stdout, run.stderr


def test_a_load_that_fits_is_accepted(root: Path) -> None:
    check_free_space(root / "entry", 1000, min_free=1000)


def test_a_load_larger_than_the_free_space_is_rejected_with_both_numbers(root: Path) -> None:
    free = inspect_medium(root).free_bytes
    with pytest.raises(InsufficientSpace, match=r"GiB \([0-9,]+ bytes\)"):
        check_free_space(root, free + (1 << 40))


def test_the_message_contains_needed_and_free_bytes() -> None:
    medium = Medium(filesystem="ext4", capacity_bytes=100 * GIB, free_bytes=10 * GIB)
    assert insufficient_space_message(Path("/c"), medium, 10 * GIB) == ""
    assert insufficient_space_message(Path("/c"), medium, 12 * GIB, min_free=GIB) == (
        "/c has not enough space: 12.0 GiB (12,884,901,888 bytes) needed, 1.0 GiB (1,073,741,824 bytes) must remain "
        "free, 10.0 GiB (10,737,418,240 bytes) free of 100.0 GiB (107,374,182,400 bytes) (ext4)."
    )


def test_a_load_larger_than_the_memory_limit_is_rejected() -> None:
    medium = Medium(filesystem="tmpfs", capacity_bytes=100 * GIB, free_bytes=100 * GIB)
    assert insufficient_space_message(Path("/c"), medium, 2 * GIB, limit=2 * GIB, machine=2 * GIB) == ""
    assert "this process's memory limit of 1.0 GiB" in insufficient_space_message(
        Path("/c"), medium, 2 * GIB, limit=GIB
    )
    assert (
        "would exceed the 1.0 GiB (1,073,741,824 bytes) of memory and swap of this machine"
        in insufficient_space_message(Path("/c"), medium, 2 * GIB, machine=GIB)
    )


def test_a_medium_of_unknown_size_is_accepted() -> None:
    assert insufficient_space_message(Path("/c"), Medium(filesystem="ramfs"), 1 << 60) == ""


def test_the_machines_memory_is_known() -> None:
    found = machine_memory()
    assert found is not None
    assert found >= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.9
    assert machine_memory(Path("/nowhere")) is None
