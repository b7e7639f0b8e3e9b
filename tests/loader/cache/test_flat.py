"""A folder of the user gets a model's files: no file of others is changed, wherever publishing is killed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cache_entries import make_sample, partial_of, publish, write_partial
from support.child_processes import kill_self, run_in_child
from tonnage.cache import Cache, EntryState, commit
from tonnage.cache.entry import Entry
from tonnage.cache.flat import Folder
from tonnage.cache.journal import read_journal
from tonnage.cache.partial import find_partials
from tonnage.cache.verify import verify_entry
from tonnage.contract import Verify
from tonnage.errors import CacheDamaged, NameCollision, TargetExists

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = make_sample()
BEFORE = ("names", "modes", "synced", "table", "file tokenizer/vocab.txt", "model", "manifest-written")
AFTER = ("manifest", "partial-removed", "done")
FOREIGN = {"notes.txt": b"mine", "tokenizer/other.txt": b"also mine"}


def with_foreign_files(root: Path) -> Entry:
    """A folder with files of others, and a load that is ready to publish."""
    entry = Folder(root / "models").entry("any")
    for name, data in FOREIGN.items():
        (entry.path / name).parent.mkdir(parents=True, exist_ok=True)
        (entry.path / name).write_bytes(data)
    (entry.path / "elsewhere").symlink_to("/etc")  # others may have what a cache never has
    entry.create()
    write_partial(entry, WHOLE)
    return entry


def files_in(entry: Entry) -> dict[str, bytes]:
    """Returns the contents of all files outside of Tonnage's own folder."""
    return {
        str(path.relative_to(entry.path)): path.read_bytes()
        for path in entry.path.rglob("*")
        if path.is_file() and ".tonnage" not in path.parts and not path.is_symlink()
    }


def test_a_folder_is_created_while_another_load_recovers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery removes temporary files. The second to create a folder has no lock yet."""
    entry = Folder(tmp_path).entry("any")
    rename = Path.rename

    def rename_after_recovery(self: Path, target: Path) -> Path:
        commit.recover(entry)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_recovery)
    entry.create()
    assert Entry.at(tmp_path).is_flat
    assert entry.own_names() == set()


def test_a_folder_that_another_load_has_filled_since_it_was_looked_for_keeps_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Folder(tmp_path).entry("any")
    entry.create()
    entry.record_names(["config.json"])
    monkeypatch.setattr(Path, "exists", lambda _: False)
    entry.create()
    assert entry.own_names() == {"config.json"}


def publish_until(entry: Entry, wanted: str) -> int:
    return run_in_child(lambda: publish(entry, WHOLE, checkpoint=lambda step: kill_self() if step == wanted else None))


def assert_loaded(entry: Entry) -> None:
    assert files_in(entry) == WHOLE.files | FOREIGN
    assert entry.state is EntryState.READY
    assert verify_entry(Entry.at(entry.path), level=Verify.CRC32, threads=1).verified is Verify.CRC32
    assert find_partials(entry) == []


@pytest.mark.parametrize("step", BEFORE)
def test_killed_before_the_commit_what_was_loaded_is_kept_for_the_next_load(root: Path, step: str) -> None:
    entry = with_foreign_files(root)
    assert publish_until(entry, step) == -9
    assert commit.recover(entry) is EntryState.PARTIAL
    assert files_in(entry) == FOREIGN
    assert read_journal(partial_of(entry).journal_path) is not None
    for path, data in WHOLE.files.items():
        assert (partial_of(entry).model_dir / path).read_bytes() == data
    publish(entry, WHOLE)
    assert_loaded(entry)


@pytest.mark.parametrize("step", AFTER)
def test_killed_after_the_commit_the_folder_is_complete(root: Path, step: str) -> None:
    entry = with_foreign_files(root)
    assert publish_until(entry, step) == -9
    assert entry.state is EntryState.READY
    assert commit.recover(entry) is EntryState.READY
    assert_loaded(entry)


def test_removing_leaves_the_files_of_others_and_their_folders(root: Path) -> None:
    entry = with_foreign_files(root)
    publish(entry, WHOLE)
    assert commit.clear(entry) == sum(map(len, WHOLE.files.values()))
    assert files_in(entry) == FOREIGN
    assert (entry.path / "elsewhere").is_symlink()
    assert entry.state is EntryState.EMPTY


def test_a_cache_beside_it_does_not_take_the_folder_for_an_entry(root: Path) -> None:
    entry = with_foreign_files(root)
    publish(entry, WHOLE)
    assert Cache(root).entries() == []
    assert Entry.from_path(entry.path) is not None


def make_directory_in_place(path: Path) -> None:
    (path / "model-rank-0-part-0.safetensors").mkdir()


def make_file_in_place(path: Path) -> None:
    (path / "model-rank-0-part-0.safetensors").write_bytes(b"of another program")


def make_link_in_place(path: Path) -> None:
    (path / "model-rank-0-part-0.safetensors").symlink_to("/etc/hostname")


def make_link_of_the_folder(path: Path) -> None:
    (path / "tokenizer" / "other.txt").unlink()
    (path / "tokenizer").rmdir()
    (path / "tokenizer").symlink_to("/tmp")


@pytest.mark.parametrize(
    "make", [make_directory_in_place, make_file_in_place, make_link_in_place, make_link_of_the_folder]
)
def test_what_others_have_in_the_place_of_a_file_is_not_replaced(root: Path, make: Callable[[Path], None]) -> None:
    entry = with_foreign_files(root)
    make(entry.path)
    before = files_in(entry)
    with pytest.raises(TargetExists, match=r"safetensors|tokenizer"):
        publish(entry, WHOLE)
    assert files_in(entry) == before
    assert entry.read_manifest() is None


@pytest.mark.parametrize(("make", "replaced"), [(make_file_in_place, True), (make_link_in_place, True)])
def test_overwriting_replaces_the_files_of_the_same_names_only(
    root: Path, make: Callable[[Path], None], *, replaced: bool
) -> None:
    entry = Folder(with_foreign_files(root).path, overwrites=replaced).entry("any")
    make(entry.path)
    publish(entry, WHOLE)
    assert_loaded(entry)


def test_overwriting_removes_no_directory(root: Path) -> None:
    entry = Folder(with_foreign_files(root).path, overwrites=True).entry("any")
    make_directory_in_place(entry.path)
    with pytest.raises(TargetExists, match="is a directory"):
        publish(entry, WHOLE)


def test_a_source_can_not_write_among_the_files_of_tonnage(root: Path) -> None:
    from tonnage.cache.flat import check_places

    with pytest.raises(NameCollision, match=r"\.tonnage/manifest\.json"):
        check_places(with_foreign_files(root), [".tonnage/manifest.json"])


@pytest.mark.parametrize("names", [b"", b"{", b'["../../etc/passwd"]', b'["/etc/passwd"]', b"[" * 100_000])
def test_names_that_were_changed_lead_out_of_no_folder(root: Path, names: bytes) -> None:
    entry = with_foreign_files(root)
    (entry.private_dir / "files.json").write_bytes(names)
    assert entry.own_names() == set()
    assert commit.recover(entry) is EntryState.PARTIAL
    commit.clear(entry)
    assert files_in(entry) == FOREIGN


def test_a_file_that_became_a_link_makes_the_folder_damaged(root: Path) -> None:
    entry = with_foreign_files(root)
    publish(entry, WHOLE)
    shard = entry.path / "model-rank-0-part-0.safetensors"
    shard.unlink()
    shard.symlink_to("/etc/hostname")
    assert entry.state is EntryState.DAMAGED
    with pytest.raises(CacheDamaged):
        entry.model_files()
