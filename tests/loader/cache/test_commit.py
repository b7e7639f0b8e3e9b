"""A published entry is complete or absent, wherever the publishing process is killed."""

from __future__ import annotations

import functools
import os
import zlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.cache_entries import (
    ENTRY_NAME,
    RECORDS,
    assert_complete,
    assert_empty_or_complete,
    make_sample,
    partial_of,
    publish,
    published_entry,
    visible_files,
    write_partial,
)
from support.child_processes import UNPRIVILEGED_UID, kill_at_operation, kill_self, run_in_child
from tonnage.cache import Cache, EntryState, commit
from tonnage.cache.filesystem import file_identity
from tonnage.cache.journal import read_journal
from tonnage.cache.partial import create_partial, require_writable, take_over
from tonnage.cache.verify import verify_entry
from tonnage.errors import CacheDamaged, CacheInUse, CacheNotWritable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tonnage.cache import Entry

BEFORE = ("modes", "synced", "table", "model", "manifest-written")
AFTER = ("manifest", "partial-removed", "done")
WHOLE = make_sample()
FIRST_RANK = make_sample(ranks=1)
ADDED = {"model-rank-1-part-0.safetensors"}


def prepared(root: Path) -> Entry:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    return entry


def filled(root: Path) -> Entry:
    entry = prepared(root)
    write_partial(entry, WHOLE)
    return entry


def with_one_rank(root: Path) -> Entry:
    """An entry with rank 0 published and rank 1 ready to publish."""
    entry = published_entry(root, FIRST_RANK)
    write_partial(entry, WHOLE, only=ADDED)
    return entry


def publish_until(entry: Entry, wanted: str) -> int:
    return run_in_child(lambda: publish(entry, WHOLE, checkpoint=lambda step: kill_self() if step == wanted else None))


def journal_records(entry: Entry) -> list[bytes]:
    journal = read_journal(partial_of(entry).journal_path)
    assert journal is not None
    return journal.records


def test_publishing_goes_through_these_steps(root: Path) -> None:
    steps: list[str] = []
    publish(filled(root), WHOLE, checkpoint=steps.append)
    assert steps == [*BEFORE, *AFTER]


def test_a_published_entry_is_complete_and_readable_by_all_users(root: Path) -> None:
    entry = published_entry(root)
    assert_complete(entry, WHOLE)
    for folder in (entry.path, entry.model_dir, entry.private_dir, entry.model_dir / "tokenizer"):
        assert folder.stat().st_mode & 0o777 == 0o755
    assert entry.load_lock_path.stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("step", BEFORE)
def test_killed_before_the_commit_the_entry_can_be_resumed(root: Path, step: str) -> None:
    entry = filled(root)
    assert publish_until(entry, step) == -9
    assert_empty_or_complete(entry, WHOLE.files)
    assert entry.read_manifest() is None

    assert commit.recover(entry) is EntryState.PARTIAL

    assert visible_files(entry) == {}
    assert journal_records(entry) == RECORDS
    for path, data in WHOLE.files.items():
        assert (partial_of(entry).model_dir / path).read_bytes() == data
    publish(entry, WHOLE)
    assert_complete(entry, WHOLE)


@pytest.mark.parametrize("step", AFTER)
def test_killed_after_the_commit_the_entry_is_ready_and_recovery_removes_leftovers(root: Path, step: str) -> None:
    entry = filled(root)
    assert publish_until(entry, step) == -9
    assert entry.state is EntryState.READY
    assert visible_files(entry) == WHOLE.files
    assert commit.recover(entry) is EntryState.READY
    assert_complete(entry, WHOLE)


@pytest.mark.parametrize("step", [*BEFORE, *AFTER, *(f"file {path}" for path in ADDED)])
def test_killed_while_adding_a_rank_the_other_stays_ready_and_the_addition_can_be_resumed(
    root: Path, step: str
) -> None:
    entry = with_one_rank(root)
    assert publish_until(entry, step) == -9
    assert entry.state is EntryState.READY
    assert verify_entry(entry).tensors in {2, 4}

    assert commit.recover(entry) is EntryState.READY

    if step in AFTER:
        assert_complete(entry, WHOLE)
        return
    assert visible_files(entry) == FIRST_RANK.files
    assert journal_records(entry) == RECORDS
    assert {path: (partial_of(entry).model_dir / path).read_bytes() for path in ADDED} == {
        path: WHOLE.files[path] for path in ADDED
    }
    publish(entry, WHOLE)
    assert_complete(entry, WHOLE)


@pytest.mark.parametrize("start", [filled, with_one_rank])
def test_killed_before_any_file_operation_of_publishing_no_partial_model_is_visible(
    memory: Path, start: Callable[[Path], Entry]
) -> None:
    number = 0
    while True:
        entry = start(memory)
        before = visible_files(entry)
        killed = kill_at_operation(functools.partial(publish, entry, WHOLE), number)
        assert_empty_or_complete(entry, before, WHOLE.files)
        if commit.recover(entry) is not EntryState.READY or visible_files(entry) != WHOLE.files:
            assert visible_files(entry) == before
            publish(entry, WHOLE)
        assert_complete(entry, WHOLE)
        commit.clear(entry)
        if not killed:
            break
        number += 1
    assert number > 20


@pytest.mark.parametrize("start", [filled, with_one_rank])
@pytest.mark.parametrize("step", ["table", "model", "manifest-written", "manifest"])
def test_a_recovery_that_is_killed_succeeds_the_next_time(
    memory: Path, start: Callable[[Path], Entry], step: str
) -> None:
    number = 0
    killed = True
    while killed:
        entry = start(memory)
        before = visible_files(entry)
        assert publish_until(entry, step) == -9
        killed = kill_at_operation(functools.partial(commit.recover, entry), number)
        commit.recover(entry)
        if step in BEFORE:
            assert visible_files(entry) == before
            assert journal_records(entry) == RECORDS
            publish(entry, WHOLE)
        assert_complete(entry, WHOLE)
        commit.clear(entry)
        number += 1
    assert number > 4


def test_killed_before_any_file_operation_of_clearing_the_model_is_complete_or_gone(memory: Path) -> None:
    number = 0
    killed = True
    while killed:
        entry = published_entry(memory)
        killed = kill_at_operation(functools.partial(commit.clear, entry), number)
        assert_empty_or_complete(entry, WHOLE.files)
        commit.recover(entry)
        assert_empty_or_complete(entry, WHOLE.files)
        commit.clear(entry)
        assert entry.state is EntryState.EMPTY
        number += 1
    assert number > 5


def test_clearing_keeps_directories_and_locks_and_returns_the_bytes_freed(root: Path) -> None:
    entry = published_entry(root)
    entry.acquire_use_lock().release()
    inodes = {
        path: path.stat().st_ino for path in (entry.path, entry.private_dir, entry.load_lock_path, entry.use_lock_path)
    }
    assert commit.clear(entry) == WHOLE.manifest.bytes
    assert {path: path.stat().st_ino for path in inodes} == inodes
    assert sorted(path.name for path in entry.private_dir.iterdir()) == ["load.lock", "use.lock"]
    assert list(entry.model_dir.iterdir()) == []
    assert entry.state is EntryState.EMPTY


def test_a_mapped_file_outlives_the_clearing(root: Path) -> None:
    entry = published_entry(root)
    path, data = next(iter(WHOLE.files.items()))
    with (entry.model_dir / path).open("rb") as file:
        commit.clear(entry)
        assert file.read() == data


def test_files_not_in_the_manifest_are_not_published(root: Path) -> None:
    entry = filled(root)
    (partial_of(entry).model_dir / "stranger.bin").write_bytes(b"x")
    publish(entry, WHOLE)
    assert_complete(entry, WHOLE)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_file_that_differs_from_the_manifest_is_rejected_before_anything_is_visible(root: Path, damage: str) -> None:
    entry = filled(root)
    victim = partial_of(entry).model_dir / "tokenizer/vocab.txt"
    if damage == "missing":
        victim.unlink()
    else:
        os.truncate(victim, 299)
    with pytest.raises(CacheDamaged, match=r"tokenizer/vocab\.txt"):
        publish(entry, WHOLE)
    assert visible_files(entry) == {}
    assert entry.state is EntryState.PARTIAL


def test_a_link_in_the_partial_directory_is_rejected(root: Path) -> None:
    entry = filled(root)
    (partial_of(entry).model_dir / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(CacheDamaged, match="passwd is neither a file nor a directory"):
        publish(entry, WHOLE)


def test_files_without_a_manifest_are_those_of_another_loader_and_are_not_replaced(root: Path) -> None:
    entry = filled(root)
    (entry.model_dir / "left.bin").write_bytes(b"x")
    with pytest.raises(CacheInUse, match="Another loader"):
        publish(entry, WHOLE)


def test_a_damaged_entry_is_repaired_by_loading_it_again(root: Path) -> None:
    entry = published_entry(root)
    victim = entry.model_dir / "tokenizer/vocab.txt"
    victim.unlink()
    assert commit.recover(entry) is EntryState.DAMAGED
    write_partial(entry, WHOLE)
    publish(entry, WHOLE)
    assert_complete(entry, WHOLE)


def test_an_unreadable_manifest_counts_as_none(root: Path) -> None:
    entry = published_entry(root)
    entry.manifest_path.write_bytes(b"\xff{garbage")
    assert entry.state is EntryState.DAMAGED
    assert commit.recover(entry) is EntryState.EMPTY
    assert visible_files(entry) == {}


@pytest.mark.usefixtures("requires_root")
def test_another_user_can_use_but_not_change_an_entry(memory: Path) -> None:
    entry = published_entry(memory)

    def look() -> None:
        entry.create()
        with entry.acquire_use_lock():
            assert entry.state is EntryState.READY
            assert visible_files(entry) == WHOLE.files
            with pytest.raises(CacheNotWritable):
                commit.clear(entry)
            with pytest.raises(CacheNotWritable):
                create_partial(entry)

    assert run_in_child(look, uid=UNPRIVILEGED_UID) == 0
    assert_complete(entry, WHOLE)


@pytest.mark.usefixtures("requires_root")
def test_a_user_without_privileges_resumes_files_that_were_made_read_only(memory: Path) -> None:
    entry = Cache(memory).entry(ENTRY_NAME)

    def begin() -> None:
        os.umask(0o077)
        entry.create()
        write_partial(entry, WHOLE)
        publish(entry, WHOLE, checkpoint=lambda step: kill_self() if step == "model" else None)

    def resume() -> None:
        commit.recover(entry)
        partial = take_over(entry, partial_of(entry))
        for path, data in WHOLE.files.items():
            (partial.model_dir / path).write_bytes(data)
        publish(entry, WHOLE)

    assert run_in_child(begin, uid=UNPRIVILEGED_UID) == -9
    assert run_in_child(resume, uid=UNPRIVILEGED_UID) == 0
    assert_complete(entry, WHOLE)
    assert run_in_child(functools.partial(commit.clear, entry), uid=UNPRIVILEGED_UID) == 0


def test_a_file_that_another_process_has_put_in_place_is_not_published(root: Path) -> None:
    entry = filled(root)
    partial = partial_of(entry)
    made = {path: identity for path in WHOLE.files if (identity := file_identity(partial.model_dir / path))}
    victim = partial.model_dir / "tokenizer/vocab.txt"
    victim.rename(root / "elsewhere")  # so that its inode is not used again
    victim.write_bytes((root / "elsewhere").read_bytes())
    with pytest.raises(CacheDamaged, match=r"'tokenizer/vocab\.txt' is not the file that this load has written"):
        commit.publish(entry, partial, WHOLE.manifest, WHOLE.table, made=made)
    assert visible_files(entry) == {}


def test_bytes_outside_of_tensors_that_differ_from_what_was_received_are_not_published(root: Path) -> None:
    entry = filled(root)
    files = tuple(
        msgspec.structs.replace(file, rest_crc32=zlib.crc32(b"received")) if file.kind == "companion" else file
        for file in WHOLE.manifest.files
    )
    manifest = msgspec.structs.replace(WHOLE.manifest, files=files)
    with pytest.raises(CacheDamaged, match="was changed while it was loaded"):
        commit.publish(entry, partial_of(entry), manifest, WHOLE.table)
    assert visible_files(entry) == {}


def test_where_locks_lock_nothing_the_second_of_two_publishers_changes_nothing(root: Path) -> None:
    entry = prepared(root)
    write_partial(entry, WHOLE)
    first = partial_of(entry)
    second = create_partial(entry)
    for path, data in WHOLE.files.items():
        (second.model_dir / path).parent.mkdir(exist_ok=True)
        (second.model_dir / path).write_bytes(data)
    commit.publish(entry, first, WHOLE.manifest, WHOLE.table)
    before = {path: file_identity(entry.model_dir / path) for path in WHOLE.files}
    with pytest.raises(CacheInUse, match="Another loader has published"):
        commit.publish(entry, second, WHOLE.manifest, WHOLE.table)
    assert {path: file_identity(entry.model_dir / path) for path in WHOLE.files} == before
    assert verify_entry(entry).tensors == 4


@pytest.mark.parametrize("moment", ["modes", "synced", "table"])
def test_where_locks_lock_nothing_a_publication_meanwhile_ends_the_slower_one(root: Path, moment: str) -> None:
    entry = prepared(root)
    write_partial(entry, WHOLE)
    first = partial_of(entry)
    second = create_partial(entry)
    for path, data in WHOLE.files.items():
        (second.model_dir / path).parent.mkdir(exist_ok=True)
        (second.model_dir / path).write_bytes(data)

    def publish_the_other(step: str) -> None:
        if step == moment:
            commit.publish(entry, first, WHOLE.manifest, WHOLE.table)

    with pytest.raises(CacheInUse, match="Another loader has published"):
        commit.publish(entry, second, WHOLE.manifest, WHOLE.table, on_step=publish_the_other)
    assert visible_files(entry) == WHOLE.files
    assert verify_entry(entry).tensors == 4


def test_a_model_that_is_removed_while_it_is_published_leaves_no_manifest(root: Path) -> None:
    entry = filled(root)

    def remove(step: str) -> None:
        if step == "manifest-written":
            entry.model_dir.rename(root / "elsewhere")

    with pytest.raises(CacheInUse, match="has removed"):
        publish(entry, WHOLE, checkpoint=remove)
    assert entry.read_manifest() is None


def test_a_manifest_that_another_loader_removes_before_its_rename_means_that_the_cache_is_in_use(root: Path) -> None:
    entry = filled(root)

    def recover(step: str) -> None:
        if step == "manifest-written":
            for temporary in entry.private_dir.rglob("*.tmp"):
                temporary.unlink()

    with pytest.raises(CacheInUse, match=r"removed files of .* that this one was writing"):
        publish(entry, WHOLE, checkpoint=recover)
    assert entry.read_manifest() is None


@pytest.mark.usefixtures("requires_root")
def test_a_load_that_another_user_has_begun_is_refused_with_the_owners_number(memory: Path) -> None:
    entry = Cache(memory).entry(ENTRY_NAME)
    other = UNPRIVILEGED_UID - 1

    def begin() -> None:
        entry.create()
        write_partial(entry, WHOLE)

    def resume() -> None:
        with pytest.raises(CacheNotWritable, match=f"belongs to user {UNPRIVILEGED_UID}, .* runs as user {other}"):
            require_writable(entry)

    assert run_in_child(begin, uid=UNPRIVILEGED_UID) == 0
    assert run_in_child(resume, uid=other) == 0
    assert run_in_child(lambda: require_writable(entry), uid=UNPRIVILEGED_UID) == 0
