"""Entries and the cache directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cache_entries import ENTRY_NAME, make_sample, partial_of, published_entry, write_partial
from support.child_processes import UNPRIVILEGED_UID, run_in_child
from tonnage.cache import Cache, Entry, EntryState, commit
from tonnage.cache.journal import read_journal
from tonnage.cache.partial import create_partial, find_partials, seconds_since_last_write, take_over
from tonnage.cache.peer_ranges import RANGES_NAME, read_entry_sources
from tonnage.cache.stream import failure_path, read_failure
from tonnage.errors import CacheDamaged, CacheNotWritable, InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Callable

MADE = make_sample()
SHARD = "model-rank-0-part-0.safetensors"


def test_a_created_entry_is_empty_and_creating_it_again_changes_nothing(root: Path) -> None:
    cache = Cache(root / "deep" / "cache")
    cache.create()
    cache.create()
    entry = cache.entry(ENTRY_NAME)
    assert not entry.exists()
    assert entry.state is EntryState.EMPTY
    entry.create()
    entry.create()
    assert entry.state is EntryState.EMPTY
    assert cache.entries() == []


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "A", "-a", "a-", "x" * 64, "a\n", "a_b", "a\0"])
def test_a_name_that_could_be_another_path_is_rejected(root: Path, name: str) -> None:
    with pytest.raises(InvalidPlan, match="is not a valid name of a cache entry"):
        Cache(root).entry(name)


def test_only_entries_that_are_not_empty_are_listed_including_damaged_ones(root: Path) -> None:
    cache = Cache(root)
    published_entry(root)
    for name in ("r-partial", "r-empty", "r-damaged", "r-strange"):
        cache.entry(name).create()
    write_partial(cache.entry("r-partial"), MADE)
    cache.entry("r-damaged").manifest_path.write_bytes(b"garbage")
    cache.entry("r-strange").manifest_path.mkdir()
    (root / "stranger").mkdir()
    (root / "file").touch()
    (root / "r-link").symlink_to(root / ENTRY_NAME)
    assert [(entry.name, entry.state) for entry in cache.entries()] == [
        (ENTRY_NAME, EntryState.READY),
        ("r-damaged", EntryState.DAMAGED),
        ("r-partial", EntryState.PARTIAL),
        ("r-strange", EntryState.DAMAGED),
    ]


def test_a_missing_cache_has_no_entries(root: Path) -> None:
    assert Cache(root / "no").entries() == []


def test_a_root_that_is_a_file_is_an_error(root: Path) -> None:
    (root / "file").touch()
    with pytest.raises(CacheNotWritable, match=r"The cache directory .*file can't be created: File exists"):
        Cache(root / "file").create()
    with pytest.raises(CacheNotWritable, match="can't be created: Not a directory"):
        Cache(root / "file" / "below").create()
    with pytest.raises(CacheNotWritable, match="can't be read: Not a directory"):
        Cache(root / "file").entries()
    with pytest.raises(CacheNotWritable):
        Entry(root / "file").create()


@pytest.mark.usefixtures("requires_root")
def test_a_root_without_permission_is_an_error(memory: Path) -> None:
    memory.chmod(0o755)

    def work() -> None:
        with pytest.raises(CacheNotWritable, match=r"can't be created: Permission denied\."):
            Cache(memory / "cache").create()
        with pytest.raises(CacheNotWritable, match=r"can't be created: Permission denied\."):
            Cache(memory).entry(ENTRY_NAME).create()

    assert run_in_child(work, uid=UNPRIVILEGED_UID) == 0


@pytest.mark.usefixtures("requires_root")
def test_an_entry_without_read_permission_is_damaged_not_an_error(memory: Path) -> None:
    entry = published_entry(memory)
    entry.private_dir.chmod(0o700)

    def work() -> None:
        finding = entry.read_status()
        assert finding.state is EntryState.DAMAGED
        assert "Permission denied" in finding.problem
        assert [found.name for found in Cache(memory).entries()] == [ENTRY_NAME]

    assert run_in_child(work, uid=UNPRIVILEGED_UID) == 0


@pytest.mark.parametrize("damage", ["shortened", "lengthened", "missing", "link", "folder"])
def test_a_file_that_changed_after_publishing_is_named(root: Path, damage: str) -> None:
    entry = published_entry(root)
    victim = entry.model_dir / SHARD
    if damage in {"shortened", "lengthened"}:
        victim.chmod(0o644)
        os.truncate(victim, 10 if damage == "shortened" else 10_000)
    else:
        data = victim.read_bytes()
        victim.unlink()
        if damage == "link":
            (root / "elsewhere").write_bytes(data)
            victim.symlink_to(root / "elsewhere")
        elif damage == "folder":
            victim.mkdir()
    finding = entry.read_status()
    assert finding.state is EntryState.DAMAGED
    assert str(victim) in finding.problem
    manifest = entry.read_manifest()
    assert manifest is not None
    with pytest.raises(CacheDamaged, match=SHARD):
        entry.check_files(manifest)


def test_a_missing_tensor_table_is_damage(root: Path) -> None:
    entry = published_entry(root)
    (entry.private_dir / "tensors.json").unlink()
    assert entry.state is EntryState.DAMAGED
    with pytest.raises(CacheDamaged, match=r"tensors\.json is missing"):
        entry.read_published()


def test_a_published_entry_is_read_with_its_tensors(root: Path) -> None:
    published = published_entry(root).read_published()
    assert published is not None
    assert published.table == MADE.table
    assert published.manifest.revision == ENTRY_NAME
    assert Cache(root).entry("r-none").read_published() is None


def test_a_manifest_of_impossible_size_is_not_read(root: Path) -> None:
    entry = published_entry(root)
    os.truncate(entry.manifest_path, 1 << 40)
    with pytest.raises(CacheDamaged, match="1,099,511,627,776 bytes"):
        entry.read_manifest()


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_put_in_place_of_a_private_file_is_not_followed_and_not_waited_for(
    root: Path, put: Callable[[Path], None]
) -> None:
    entry = published_entry(root)
    files = [entry.private_dir / "tensors.json", entry.manifest_path, entry.private_dir / RANGES_NAME]
    partial = create_partial(entry)
    files += [partial.journal_path, failure_path(entry)]
    for file in files:
        file.unlink(missing_ok=True)
        put(file)
    assert entry.state is EntryState.DAMAGED
    with pytest.raises(CacheDamaged, match=r"manifest\.json can't be read"):
        entry.read_published()
    with pytest.raises(CacheNotWritable, match="journal can't be read"):
        read_journal(partial.journal_path)
    assert read_entry_sources(entry.path) is None
    assert read_failure(failure_path(entry)) is None
    assert [found.state for found in Cache(root).entries()] == [EntryState.DAMAGED]


def test_an_entry_is_found_by_its_directory_or_its_model(root: Path) -> None:
    entry = published_entry(root)
    for path in (entry.path, entry.model_dir):
        found = Entry.from_path(path)
        assert found is not None
        assert found.path == entry.path
    assert Entry.from_path(entry.model_dir / "tokenizer") is None
    assert Entry.from_path(root) is None


def test_each_load_has_a_directory_of_its_own_and_the_one_with_the_longest_journal_is_continued(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    write_partial(entry, MADE)
    begun = partial_of(entry)
    other = create_partial(entry)
    assert list(other.model_dir.iterdir()) == []
    assert [partial.path for partial in find_partials(entry)] == [begun.path, other.path]
    assert commit.recover(entry) is EntryState.PARTIAL
    continued = take_over(entry, partial_of(entry))
    assert not begun.path.exists()
    assert (continued.model_dir / SHARD).exists()
    assert continued.journal_path.exists()


def test_recovery_leaves_directories_alone_that_are_newer_than_those_it_gets(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    write_partial(entry, MADE)
    known = find_partials(entry)
    create_partial(entry)
    commit.recover(entry, known)
    assert len(find_partials(entry)) == 2


def test_the_last_write_of_a_load_is_measured_against_the_last_use(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    assert seconds_since_last_write(entry) == float("inf")
    write_partial(entry, MADE)
    newest = max(path.lstat().st_mtime for path in [entry.partial_dir, *entry.partial_dir.rglob("*")])
    os.utime(entry.use_lock_path, (newest + 90, newest + 90))
    assert seconds_since_last_write(entry) == pytest.approx(90)


def test_recovering_an_entry_that_does_not_exist_does_nothing(root: Path) -> None:
    assert commit.recover(Cache(root).entry("r-none")) is EntryState.EMPTY
    assert commit.clear(Cache(root).entry("r-none")) == 0
    assert list(root.iterdir()) == []


def test_recovery_removes_temporary_files(root: Path) -> None:
    entry = published_entry(root)
    (entry.private_dir / "manifest.json.tmp").write_bytes(b"half")
    (entry.private_dir / "tensors-0123456789ab.json").write_bytes(b"old")
    (entry.private_dir / "trash").mkdir()
    assert commit.recover(entry) is EntryState.READY
    left = sorted(path.name for path in entry.private_dir.iterdir() if path != entry.partial_dir)
    assert left == ["load.lock", "manifest.json", "tensors.json", "use.lock"]


@pytest.mark.usefixtures("requires_root")
def test_a_cache_directory_that_another_user_has_made_where_any_user_can_is_refused(memory: Path) -> None:
    root = memory / "cache"
    assert run_in_child(root.mkdir, uid=UNPRIVILEGED_UID) == 0
    with pytest.raises(CacheNotWritable, match=f"belongs to user {UNPRIVILEGED_UID}, who has made it"):
        Cache(root).create()
    assert run_in_child(Cache(root).create, uid=UNPRIVILEGED_UID) == 0
    memory.chmod(0o755)
    Cache(root).create()
