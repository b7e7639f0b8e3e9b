"""Locks between real processes."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from support.cache_entries import published_entry
from support.child_processes import UNPRIVILEGED_UID, ChildProcess, run_in_child
from tonnage.cache import Cache, FileLock, LockHolder, LockMode, commit, find_lock_holders
from tonnage.cache.eviction import evict
from tonnage.cache.lock_holders import command_name, describe_lock_holders, parse_locks
from tonnage.errors import CacheDamaged, CacheInUse, CacheNotWritable, InternalError, Interrupted, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.child_processes import SendLine


def hold_lock(path: Path, kind: LockMode) -> Callable[[SendLine], None]:
    """Returns a child's function: acquires the lock, reports it, and holds it until it is killed."""

    def work(send_line: SendLine) -> None:
        lock = FileLock(path)
        lock.acquire(kind)
        send_line("held")
        time.sleep(60)

    return work


def test_any_number_may_share_a_lock_but_not_with_an_exclusive_one(root: Path) -> None:
    path = root / "lock"
    with ChildProcess(hold_lock(path, LockMode.SHARED)) as one, ChildProcess(hold_lock(path, LockMode.SHARED)) as two:
        assert (one.read_line(), two.read_line()) == ("held", "held")
        with FileLock(path) as mine:
            assert mine.try_acquire(LockMode.SHARED)
        with FileLock(path) as mine:
            assert not mine.try_acquire(LockMode.EXCLUSIVE)
            one.kill()
            assert not mine.try_acquire(LockMode.EXCLUSIVE)
            two.kill()
            assert mine.try_acquire(LockMode.EXCLUSIVE)
            with FileLock(path) as another:
                assert not another.try_acquire(LockMode.SHARED)


def test_a_lock_ends_with_its_process(root: Path) -> None:
    with ChildProcess(hold_lock(root / "lock", LockMode.EXCLUSIVE)) as child, FileLock(root / "lock") as mine:
        child.read_line()
        assert not mine.try_acquire(LockMode.EXCLUSIVE)
        child.kill()
        assert mine.try_acquire(LockMode.EXCLUSIVE)


def test_a_waiter_gets_the_lock_when_the_lock_holder_ends(root: Path) -> None:
    waits = []
    with ChildProcess(hold_lock(root / "lock", LockMode.EXCLUSIVE)) as child, FileLock(root / "lock") as mine:
        child.read_line()
        mine.acquire(LockMode.SHARED, on_wait=lambda: waits.append(child.kill()))
        assert mine.mode is LockMode.SHARED
    assert waits == [-9]


def test_waiting_ends_at_the_deadline_and_names_the_holder(root: Path) -> None:
    path = root / "lock"
    with ChildProcess(hold_lock(path, LockMode.EXCLUSIVE)) as child, FileLock(path) as mine:
        child.read_line()
        began = time.monotonic()
        with pytest.raises(Timeout, match=rf"lock, which is held by pid {child.pid} \(.+\)\."):
            mine.acquire(LockMode.EXCLUSIVE, deadline=began + 0.1)
        assert 0.1 <= time.monotonic() - began < 2
        assert mine.mode is None


def test_waiting_ends_when_it_is_canceled(root: Path) -> None:
    asked = 0

    def canceled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with ChildProcess(hold_lock(root / "lock", LockMode.EXCLUSIVE)) as child, FileLock(root / "lock") as mine:
        child.read_line()
        with pytest.raises(Interrupted, match="waiting for"):
            mine.acquire(LockMode.EXCLUSIVE, canceled=canceled)
    assert asked == 3


def test_a_deadline_that_passed_still_takes_a_free_lock(root: Path) -> None:
    with FileLock(root / "lock") as mine:
        mine.acquire(LockMode.EXCLUSIVE, deadline=time.monotonic() - 1)
        assert mine.mode is LockMode.EXCLUSIVE


def test_a_held_lock_is_not_converted(root: Path) -> None:
    with FileLock(root / "lock") as mine:
        assert mine.try_acquire(LockMode.SHARED)
        assert mine.try_acquire(LockMode.SHARED)
        with pytest.raises(InternalError, match="held in mode shared"):
            mine.try_acquire(LockMode.EXCLUSIVE)
        assert mine.mode is LockMode.SHARED
    with pytest.raises(InternalError, match="is not held"):
        mine.fileno()


def test_a_lock_file_that_was_replaced_is_not_mistaken_for_the_new_one(root: Path) -> None:
    path = root / "lock"
    old = FileLock(path)
    assert old.try_acquire(LockMode.EXCLUSIVE)
    path.unlink()
    with FileLock(path) as new, FileLock(path) as third:
        assert new.try_acquire(LockMode.EXCLUSIVE)
        assert not third.try_acquire(LockMode.EXCLUSIVE)
    old.release()


def test_a_lock_file_can_be_used_by_all_users_regardless_of_the_umask(root: Path) -> None:
    before = os.umask(0o077)
    try:
        with FileLock(root / "lock") as mine:
            mine.try_acquire(LockMode.SHARED)
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "lock").stat().st_mode) == 0o666


@pytest.mark.usefixtures("requires_root")
def test_another_user_shares_the_lock_even_with_read_permission_only(memory: Path) -> None:
    path = memory / "lock"
    for mode in (0o666, 0o444):
        path.touch()
        path.chmod(mode)

        def work() -> None:
            with FileLock(path) as mine:
                assert mine.try_acquire(LockMode.SHARED)
                mine.touch()

        assert run_in_child(work, uid=UNPRIVILEGED_UID) == 0
    path.chmod(0o600)

    def refused() -> None:
        with pytest.raises(CacheNotWritable, match="Permission denied"):
            FileLock(path).try_acquire(LockMode.SHARED)

    assert run_in_child(refused, uid=UNPRIVILEGED_UID) == 0


def test_a_path_that_is_not_a_lock_file_is_rejected(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "link").symlink_to("target")
    for name in ("folder", "link"):
        with pytest.raises(CacheDamaged, match=f"{name} is not a lock file"):
            FileLock(root / name).try_acquire(LockMode.SHARED)
    with pytest.raises(CacheNotWritable, match="No such file"):
        FileLock(root / "no" / "lock").try_acquire(LockMode.SHARED)


def test_touching_sets_the_time_of_last_use(root: Path) -> None:
    path = root / "lock"
    path.touch()
    os.utime(path, (1000, 1000))
    with FileLock(path) as mine:
        mine.acquire(LockMode.SHARED)
        assert path.stat().st_mtime == 1000
        mine.touch()
    assert path.stat().st_mtime > 1000


def test_an_inherited_descriptor_keeps_the_lock_across_exec(root: Path) -> None:
    lock = FileLock(root / "lock")
    lock.acquire(LockMode.SHARED)
    descriptor = lock.fileno()
    program = [sys.executable, "-I", "-c", "print(input())"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor]) as child:
        lock.release()
        with FileLock(root / "lock") as mine:
            assert not mine.try_acquire(LockMode.EXCLUSIVE)
            child.communicate(b"end\n")
            assert mine.try_acquire(LockMode.EXCLUSIVE)


def test_descriptors_are_closed_on_exec(root: Path) -> None:
    with FileLock(root / "lock") as lock:
        lock.acquire(LockMode.SHARED)
        assert not os.get_inheritable(lock.fileno())


def test_holders_are_seen_with_their_mode(root: Path) -> None:
    path = root / "lock"
    assert find_lock_holders(path) == []
    with ChildProcess(hold_lock(path, LockMode.SHARED)) as one, ChildProcess(hold_lock(path, LockMode.SHARED)) as two:
        one.read_line(), two.read_line()
        found = find_lock_holders(path)
        assert [(holder.pid, holder.mode) for holder in found] == sorted((c.pid, "shared") for c in (one, two))
        assert all(holder.command for holder in found)
    with ChildProcess(hold_lock(path, LockMode.EXCLUSIVE)) as child:
        child.read_line()
        assert [(holder.pid, holder.mode) for holder in find_lock_holders(path)] == [(child.pid, "exclusive")]
    assert find_lock_holders(path) == []


def test_the_holder_of_a_range_lock_is_not_listed(root: Path) -> None:
    with (root / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert find_lock_holders(root / "lock") == []


def test_only_held_flocks_are_read_from_proc_locks() -> None:
    text = (
        "1: FLOCK  ADVISORY  WRITE 12 fe:0a:77 0 EOF\n"
        "1: -> FLOCK  ADVISORY  READ  13 fe:0a:77 0 EOF\n"
        "2: POSIX  ADVISORY  WRITE 14 fe:0a:77 0 EOF\n"
        "3: FLOCK  ADVISORY  READ 15 00:1b:9 0 EOF\n"
        "4: FLOCK  ADVISORY  READ x 00:1b:9 0 EOF\n5: FLOCK\n"
    )
    assert [(lock.mode, lock.pid, lock.device, lock.inode) for lock in parse_locks(text)] == [
        ("exclusive", 12, (0xFE, 0x0A), 77),
        ("shared", 15, (0, 0x1B), 9),
    ]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/usr/bin/tonnage", "load", "s3://bucket/secret"], "tonnage load"),
        (["/usr/bin/python3.11", "/usr/bin/tonnage", "load", "https://x/?X-Amz-Signature=1"], "tonnage load"),
        (["python", "-m", "tonnage", "rm", "r-1"], "tonnage rm"),
        (["python", "-m", "tonnage.cli.main", "load"], "tonnage load"),
        (["python3", "-I", "-S", "/x/site-packages/tonnage/cli/hold.py", "5"], "tonnage hold"),
        (["python3", "-X", "utf8", "-u", "/srv/serve.py", "--token", "hunter2"], "serve.py"),
        (["python3", "-m", "vllm.entrypoints", "--api-key", "hunter2"], "python3 -m vllm.entrypoints"),
        (["python3", "-c", "password = 'hunter2'"], "python3"),
        (["python3", "-cpassword"], "python3"),
        (["python3", "-", "hunter2"], "python3"),
        (["python3"], "python3"),
        (["/bin/mytool", "hunter2"], "mytool"),
        (["tonnage", "--token=hunter2"], "tonnage"),
        ([], ""),
    ],
)
def test_a_holder_is_described_by_its_program_without_secrets(arguments: list[str], name: str) -> None:
    assert command_name(arguments) == name


def test_holders_are_described_in_a_sentence() -> None:
    one, two = LockHolder(7, "tonnage hold", "shared"), LockHolder(9, "", "shared")
    assert describe_lock_holders([one]) == "pid 7 (tonnage hold)"
    assert (
        describe_lock_holders([one, two])
        == "pid 7 (tonnage hold) and pid 9 (ended, but a child process still holds the lock)"
    )
    assert describe_lock_holders([one] * 12).endswith("pid 7 (tonnage hold) and 2 more")
    assert "are not visible from here" in describe_lock_holders([])


def test_of_two_loaders_one_loads_and_the_other_finds_it_done(root: Path) -> None:
    entry = Cache(root).entry("r-1")
    entry.create()
    done = root / "done"

    def load(send_line: SendLine) -> None:
        with entry.acquire_use_lock(), entry.acquire_load_lock(deadline=time.monotonic() + 20):
            if not done.exists():
                time.sleep(0.05)
                with done.open("x") as file:
                    file.write("x")
                send_line("loaded")
            else:
                send_line("hit")

    children = [ChildProcess(load) for _ in range(4)]
    assert sorted(child.read_line() for child in children) == ["hit", "hit", "hit", "loaded"]
    assert [child.wait() for child in children] == [0] * 4


def test_a_removal_is_refused_while_the_entry_is_in_use(root: Path) -> None:
    entry = published_entry(root)

    def use(send_line: SendLine) -> None:
        entry.acquire_use_lock()
        send_line("held")
        time.sleep(60)

    with ChildProcess(use) as one, ChildProcess(use) as two:
        one.read_line(), two.read_line()
        for child in (one, two):
            with pytest.raises(CacheInUse, match=rf"pid {child.pid} \("):
                evict(entry)
            assert entry.state == "ready"
            child.kill()
    assert evict(entry) > 0


def test_a_user_during_a_removal_waits_and_finds_the_entry_empty(root: Path) -> None:
    entry = published_entry(root)
    may_go_on, go_on = os.pipe()

    def remove(send_line: SendLine) -> None:
        removal = entry.try_acquire_exclusive_use_lock()
        assert removal is not None
        with removal:
            send_line("removing")
            os.read(may_go_on, 1)
            commit.clear(entry)

    def come(send_line: SendLine) -> None:
        with entry.acquire_use_lock(on_wait=lambda: send_line("waiting")):
            send_line(entry.state)

    with ChildProcess(remove) as remover:
        assert remover.read_line() == "removing"
        with ChildProcess(come) as child:
            assert child.read_line() == "waiting"
            os.write(go_on, b"x")
            assert child.read_line() == "empty"
        assert remover.wait() == 0
    os.close(go_on)
    os.close(may_go_on)


def test_a_removal_is_refused_while_the_entry_is_loaded(root: Path) -> None:
    entry = published_entry(root)
    with entry.acquire_load_lock(), pytest.raises(CacheInUse, match=rf"being loaded by pid {os.getpid()}"):
        evict(entry)
