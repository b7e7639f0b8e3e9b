"""Detection of unread pages in shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tonnage.attach.copy.page_lru import has_unread_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Kernel = Callable[[str | None, str], dict[str, Path]]

GIB = 1 << 30


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """Writes the two files of the kernel with these contents."""

    def make(lru: str | None, meminfo: str) -> dict[str, Path]:
        files = {"lru_gen": tmp_path / "enabled", "meminfo": tmp_path / "meminfo"}
        if lru is not None:
            files["lru_gen"].write_text(lru)
        files["meminfo"].write_text(meminfo)
        return files

    return make


def memory(*, shared: float, active: float) -> str:
    kinds = {"MemTotal": 9.0, "Active(anon)": active, "Shmem": shared}
    return "HugePages_Free: 0\n" + "".join(f"{name}:   {int(gib * 2**20)} kB\n" for name, gib in kinds.items())


@pytest.mark.parametrize("text", ["0x0007\n", "0x0001\n"])
def test_a_kernel_with_the_multi_gen_lru_has_no_slow_first_reads(kernel: Kernel, text: str) -> None:
    assert not has_unread_pages(GIB, **kernel(text, memory(shared=5, active=0)))


@pytest.mark.parametrize("text", ["0x0000\n", "0x0006\n", "?", None])
@pytest.mark.parametrize(
    ("shared", "active", "found"),
    [(1.0, 0.0, True), (3.0, 2.4, True), (3.0, 2.8, True), (3.0, 2.9, False), (1.0, 1.0, False), (1.0, 4.0, False)],
)
def test_without_the_multi_gen_lru_the_page_lists_decide(
    kernel: Kernel, text: str | None, shared: float, active: float, found: bool
) -> None:
    assert has_unread_pages(GIB, **kernel(text, memory(shared=shared, active=active))) is found


@pytest.mark.parametrize("meminfo", ["", "Shmem: 5 kB\n", "Shmem: many kB\nActive(anon): 4 kB\n", "\0\n"])
def test_an_unknown_kernel_is_assumed_to_be_slow(kernel: Kernel, meminfo: str) -> None:
    assert has_unread_pages(GIB, **kernel(None, meminfo))


def test_this_machine_has_no_exbibyte_of_unread_pages() -> None:
    assert not has_unread_pages(1 << 60), "no machine has an exbibyte of unread pages"
