"""Verification finds every changed byte and names its place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cache_entries import ENTRY_NAME, make_sample, publish, published_entry, write_partial
from tonnage.cache import Cache, EntryState, TensorTable, commit
from tonnage.cache import verify as verify_module
from tonnage.cache.eviction import evict
from tonnage.cache.listing import entry_info, list_entries
from tonnage.cache.non_tensor_checksums import non_tensor_ranges
from tonnage.cache.verify import achievable_level, verify_entry
from tonnage.contract import Verify
from tonnage.errors import CacheDamaged, Interrupted
from tonnage.loading.manifest_builder import upgrade_manifest

if TYPE_CHECKING:
    from pathlib import Path

MADE = make_sample()
SHARD = "model-rank-1-part-0.safetensors"


def flip(path: Path, position: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("level", list(Verify))
def test_an_unchanged_entry_is_verified(root: Path, level: Verify) -> None:
    result = verify_entry(published_entry(root), level=level)
    assert result.verified is (Verify.CRC32 if level is Verify.BEST else level)
    assert result.tensors == 4
    assert result.bytes == (MADE.manifest.bytes if level.strength > 1 else 0)
    assert result.notes == ()


@pytest.mark.parametrize("level", [Verify.CRC32, Verify.SHA256])
def test_a_flipped_bit_in_a_tensor_is_found_with_file_tensor_and_offset(root: Path, level: Verify) -> None:
    entry = published_entry(root)
    flip(entry.model_dir / SHARD, 1500)
    with pytest.raises(CacheDamaged, match=rf"{SHARD} was changed: the tensor 'layer\.1\.1' at offset 1,016 \(1,000"):
        verify_entry(entry, level=level)
    assert verify_entry(entry, level=Verify.SIZE).verified is Verify.SIZE


@pytest.mark.parametrize("path", [SHARD, "tokenizer/vocab.txt", "model.safetensors.index.json"])
def test_a_flipped_bit_outside_of_tensors_is_found(root: Path, path: str) -> None:
    entry = published_entry(root)
    flip(entry.model_dir / path, 3)
    with pytest.raises(
        CacheDamaged, match=f"{path} was changed: the CRC-32 of (the file|its bytes outside of tensors) is"
    ):
        verify_entry(entry)


def test_every_changed_byte_of_the_model_is_detected(memory: Path) -> None:
    made = make_sample(ranks=1, tensor_bytes=20)
    entry = published_entry(memory, made)
    for path, data in made.files.items():
        for position in range(0, len(data), 1 if path.startswith("model-rank") else 37):
            flip(entry.model_dir / path, position)
            with pytest.raises(CacheDamaged):
                verify_entry(entry, threads=1)
            flip(entry.model_dir / path, position)
    verify_entry(entry)


def test_all_damage_is_counted_and_the_first_is_named(root: Path) -> None:
    entry = published_entry(root)
    flip(entry.model_dir / SHARD, 20)
    flip(entry.model_dir / SHARD, 1500)
    flip(entry.model_dir / "tokenizer/vocab.txt", 0)
    with pytest.raises(CacheDamaged, match=r"'layer\.1\.0' .* 2 more are damaged\."):
        verify_entry(entry)


def test_a_shortened_file_is_named_before_anything_is_read(root: Path) -> None:
    entry = published_entry(root)
    (entry.model_dir / SHARD).chmod(0o644)
    os.truncate(entry.model_dir / SHARD, 100)
    with pytest.raises(CacheDamaged, match=rf"{SHARD} has 100 bytes instead of 2,016"):
        verify_entry(entry)


def test_an_empty_entry_can_not_be_verified(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    with pytest.raises(CacheDamaged, match="no published files"):
        verify_entry(entry)


def test_large_tensors_are_verified_by_several_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "TASK_BYTES", 4096)
    monkeypatch.setattr(verify_module, "READ_BYTES", 1000)
    entry = published_entry(root, make_sample(tensor_bytes=50_000))
    seen: list[tuple[int, int]] = []
    result = verify_entry(entry, threads=4, progress=lambda done, total: seen.append((done, total)))
    assert result.verified is Verify.CRC32
    assert len(seen) > 48
    assert max(seen) == (result.bytes, result.bytes)
    flip(entry.model_dir / SHARD, 70_000)
    with pytest.raises(CacheDamaged, match=r"'layer\.1\.1'"):
        verify_entry(entry, threads=4)


def test_verifying_can_be_canceled(root: Path) -> None:
    with pytest.raises(Interrupted, match="verifying"):
        verify_entry(published_entry(root), canceled=lambda: True)


def test_tensors_without_a_checksum_are_reported() -> None:
    tensors = MADE.table.tensors
    assert achievable_level(tensors, Verify.SHA256) == (Verify.SHA256, ())
    no_sha = [msgspec.structs.replace(tensors[0], sha256=None), *tensors[1:]]
    verified, notes = achievable_level(no_sha, Verify.SHA256)
    assert verified is Verify.CRC32
    assert notes == ("1 of 4 tensors have no SHA-256 in their source.",)
    verified, notes = achievable_level([msgspec.structs.replace(no_sha[0], crc32=None), *tensors[1:]], Verify.CRC32)
    assert verified is Verify.SIZE
    assert "encrypted" in notes[0]


def test_a_tensor_with_only_a_sha256_is_verified_by_it(root: Path) -> None:
    tensors = tuple(msgspec.structs.replace(tensor, crc32=None) for tensor in MADE.table.tensors)
    entry = published_entry(root, MADE._replace(table=TensorTable(tensors=tensors)))
    assert verify_entry(entry).verified is Verify.CRC32
    flip(entry.model_dir / SHARD, 1500)
    with pytest.raises(CacheDamaged, match="SHA-256"):
        verify_entry(entry)


def test_a_higher_level_is_written_to_the_manifest_and_a_lower_one_is_not(root: Path) -> None:
    entry = published_entry(root)
    manifest = entry.read_manifest()
    assert manifest is not None
    manifest = upgrade_manifest(manifest, Verify.CRC32)
    assert manifest.verified is Verify.CRC32
    assert upgrade_manifest(manifest, Verify.SIZE) == manifest
    commit.rewrite_manifest(entry, upgrade_manifest(manifest, Verify.SHA256))
    again = entry.read_manifest()
    assert again is not None
    assert again.verified is Verify.SHA256
    assert again == msgspec.structs.replace(manifest, verified=Verify.SHA256, sources=again.sources)
    assert {source.verified for source in again.sources} == {Verify.SHA256}
    assert entry.state is EntryState.READY


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=6), st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_tensors_and_non_tensor_bytes_make_up_the_file_or_overlap(extents: list[tuple[int, int]], size: int) -> None:
    ranges = [(start, start + length) for start, length in extents]
    covered = [position for start, end in set(ranges) for position in range(start, end)]
    if len(set(covered)) != len(covered) or any(end > size for _, end in ranges):
        with pytest.raises(CacheDamaged, match="overlaps"):
            non_tensor_ranges(ranges, size, label="f")
    else:
        rest = [position for start, end in non_tensor_ranges(ranges, size, label="f") for position in range(start, end)]
        assert sorted(rest + covered) == list(range(size))


def test_entry_info_lists_contents_and_lock_holders(root: Path) -> None:
    entry = published_entry(root)
    (row,) = list_entries(Cache(root))
    assert (row.name, row.state, row.bytes, row.files) == (ENTRY_NAME, EntryState.READY, MADE.manifest.bytes, 4)
    assert (row.revision, row.layout, row.verified, row.created) == (ENTRY_NAME, "safetensors", "crc32", 1.0)
    assert (row.in_use, row.holders) == (False, ())
    os.utime(entry.use_lock_path, (1000, 1000))
    assert entry_info(entry).last_used == 1000
    with entry.acquire_use_lock():
        row = entry_info(entry)
        assert row.in_use
        assert [holder.pid for holder in row.holders] == [os.getpid()]
        assert row.last_used > 1000
    assert msgspec.json.decode(msgspec.json.encode(row))["holders"][0]["mode"] == "shared"


def test_entry_info_of_a_partial_and_of_a_damaged_entry(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    write_partial(entry, MADE)
    assert (entry_info(entry).state, entry_info(entry).bytes) == (EntryState.PARTIAL, MADE.manifest.bytes)
    publish(entry, MADE)
    (entry.model_dir / SHARD).unlink()
    row = entry_info(entry)
    assert row.state is EntryState.DAMAGED
    assert SHARD in row.problem


def test_removing_frees_the_listed_bytes(root: Path) -> None:
    entry = published_entry(root)
    assert evict(entry) == MADE.manifest.bytes
    assert evict(entry) == 0
    assert list_entries(Cache(root)) == []
    assert evict(Cache(root).entry("r-none")) == 0
