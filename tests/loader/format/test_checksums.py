"""Checksums of stores, compared with those of the library that AWS's own SDKs use."""

from __future__ import annotations

import hashlib
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest
from awscrt import checksums as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from native import build_hook
from tonnage.contract import ChecksumAlgorithm, ObjectChecksum, parse_checksum
from tonnage.format import checksums
from tonnage.format.checksums import checksum_of, combine_crcs, crc_function, load_library

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

CRCS = [each for each in ChecksumAlgorithm if each.is_crc]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.PyDLL:
    path = tmp_path_factory.mktemp("native") / "crc.so"
    build_hook.compile_library(path, "crc.c")
    found = load_library(path)
    assert found is not None
    return found


@pytest.mark.parametrize("algorithm", CRCS)
@settings(max_examples=80)
@given(size=st.one_of(st.integers(0, 1300), st.integers(0, 70_000)), value=st.integers(0, 2**64 - 1), data=st.data())
def test_the_compiled_crcs_are_those_of_awscrt(
    library: ctypes.PyDLL, algorithm: ChecksumAlgorithm, size: int, value: int, data: st.DataObject
) -> None:
    value &= (1 << 8 * algorithm.size) - 1
    content = data.draw(st.randoms(use_true_random=False)).randbytes(size)
    assert getattr(library, algorithm.value)(content, size, value) == getattr(reference, algorithm.value)(
        content, value
    )


@pytest.mark.parametrize("algorithm", CRCS)
@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.binary(max_size=4000), max_size=6))
def test_the_combined_crc_of_ranges_is_that_of_all_bytes(algorithm: ChecksumAlgorithm, parts: list[bytes]) -> None:
    compute = getattr(reference, algorithm.value)
    assert combine_crcs(algorithm, [(compute(part), len(part)) for part in parts]) == compute(b"".join(parts))


@settings(deadline=None, max_examples=20)
@given(first=st.binary(max_size=100), length=st.integers(0, 2**40))
def test_a_range_may_have_any_length(first: bytes, length: int) -> None:
    from isal import isal_zlib

    ranges = [(zlib.crc32(first), len(first)), (0x12345678, length)]
    assert combine_crcs(ChecksumAlgorithm.CRC32, ranges) == isal_zlib.crc32_combine(
        zlib.crc32(first), 0x12345678, length
    )


def test_without_the_compiled_part_an_installed_awscrt_computes_the_crcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "load_library", lambda: load_library(tmp_path / "crc.so"))
    crc_function.cache_clear()
    try:
        assert crc_function(ChecksumAlgorithm.CRC64NVME) is reference.crc64nvme
    finally:
        crc_function.cache_clear()


def test_a_library_that_is_none_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "crc.so").write_bytes(b"\x7fELF, but no library")
    assert load_library(tmp_path / "crc.so") is None


@pytest.mark.parametrize(
    "algorithm", [each for each in ChecksumAlgorithm if each.value in hashlib.algorithms_available]
)
def test_hashes_are_those_of_hashlib(algorithm: ChecksumAlgorithm) -> None:
    assert checksum_of(algorithm, b"abc") == hashlib.new(algorithm.value, b"abc").digest()


@pytest.mark.parametrize("content", [b"", b"abc", bytes(100_000)])
def test_an_object_id_of_git_is_that_of_git(content: bytes) -> None:
    found = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
    assert checksum_of(ChecksumAlgorithm.GITSHA1, content).hex() == found.stdout.decode().strip()


@given(
    algorithm=st.sampled_from(ChecksumAlgorithm),
    value=st.binary(min_size=64, max_size=64),
    parts=st.integers(0, 10_000),
)
def test_a_checksum_is_read_as_it_was_written(algorithm: ChecksumAlgorithm, value: bytes, parts: int) -> None:
    checksum = ObjectChecksum(algorithm, value[: algorithm.size], parts)
    assert parse_checksum(str(checksum)) == checksum


@pytest.mark.parametrize(
    "text", ["", "crc32:00", "crc32:zzzzzzzz", "md4:" + "0" * 32, "md5:" + "0" * 32 + "-0", "x" * 999]
)
def test_other_text_is_no_checksum(text: str) -> None:
    assert parse_checksum(text) is None
