"""Files that are parked: without a descriptor until one is needed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tonnage.attach.files.source_file import SourceFile, reserve_descriptors
from tonnage.errors import CacheDamaged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"0123456789")
    return path


def descriptors_of(path: Path) -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(link.exists() and link.samefile(path) for link in links)


def test_a_parked_file_has_no_descriptor_and_opens_again_when_one_is_needed(path: Path) -> None:
    with SourceFile(path) as file:
        file.park()
        assert descriptors_of(path) == 0
        assert file.mapping()[:] == b"0123456789"
        assert file.descriptor >= 0
        assert descriptors_of(path) > 0
    assert file.descriptor == -1


def test_a_parked_file_that_is_closed_stays_closed(path: Path) -> None:
    file = SourceFile(path)
    file.park()
    file.close()
    assert file.descriptor == -1


def test_a_file_with_the_same_name_is_not_read_in_its_place(path: Path, tmp_path: Path) -> None:
    with SourceFile(path) as file:
        file.park()
        other = tmp_path / "other"
        other.write_bytes(b"9876543210")
        other.rename(path)
        with pytest.raises(CacheDamaged, match=r"model\.safetensors was replaced by another file"):
            file.mapping()
        path.unlink()
        with pytest.raises(CacheDamaged, match=r"model\.safetensors can't be opened again: No such file"):
            file.mapping()


def test_threads_that_need_the_descriptor_at_once_open_one(path: Path) -> None:
    with SourceFile(path) as file:
        file.park()
        start, found = threading.Barrier(8), []

        def use() -> None:
            start.wait()
            found.append(file.descriptor)

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1
        assert descriptors_of(path) == 1


def test_reserving_descriptors_leaves_none_open_even_above_the_limit() -> None:
    for count in (128, 1 << 30):
        before = len(list(Path("/proc/self/fd").iterdir()))
        reserve_descriptors(count)
        for thread in threading.enumerate():
            if thread.name == "tonnage-descriptors":
                thread.join()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
