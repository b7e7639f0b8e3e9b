"""Concurrent loads, removals and uses of an entry, some of them killed: lock holders see a complete model."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

from support.cache_entries import ENTRY_NAME, assert_complete, make_sample, publish, visible_files, write_partial
from support.child_processes import ChildProcess, run_in_child
from tonnage.cache import Cache, EntryState, commit
from tonnage.cache.eviction import evict
from tonnage.errors import CacheInUse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.child_processes import SendLine
    from tonnage.cache import Entry

MADE = make_sample(ranks=3, tensor_bytes=20_000)
ROUNDS = 120


def load(entry: Entry) -> None:
    """Loads with all locks, like a loader."""
    entry.create()
    with entry.acquire_use_lock():
        if entry.state is not EntryState.READY:
            with entry.acquire_load_lock():
                if commit.recover(entry) is not EntryState.READY:
                    write_partial(entry, MADE)
                    publish(entry, MADE)
        assert entry.state is EntryState.READY
        assert visible_files(entry) == MADE.files


def load_and_tidy(entry: Entry) -> None:
    """Loads, and removes what a loader that was killed after publishing left."""
    load(entry)
    with entry.acquire_load_lock():
        commit.recover(entry)


def load_forever(entry: Entry) -> Callable[[SendLine], None]:
    def work(send_line: SendLine) -> None:
        send_line("going")
        while True:
            load(entry)
            try:
                evict(entry)
            except CacheInUse:
                continue

    return work


def test_kills_at_random_moments_never_show_a_partial_model(memory: Path) -> None:
    entry = Cache(memory).entry(ENTRY_NAME)
    chance = random.Random(11)
    children = [ChildProcess(load_forever(entry)) for _ in range(3)]
    for _ in range(ROUNDS):
        position = chance.randrange(len(children))
        assert children[position].read_line() == "going"
        time.sleep(chance.uniform(0, 0.01))  # the moment of the kill is what is random here
        assert children[position].kill() == -signal.SIGKILL
        children[position] = ChildProcess(load_forever(entry))
    for child in children:
        child.kill()
    assert run_in_child(lambda: load_and_tidy(entry)) == 0
    assert_complete(entry, MADE)


def test_loads_that_start_together_load_once(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()

    def work(send_line: SendLine) -> None:
        with entry.acquire_use_lock(), entry.acquire_load_lock():
            if commit.recover(entry) is EntryState.READY:
                send_line("hit")
                return
            write_partial(entry, MADE)
            publish(entry, MADE)
            send_line("loaded")

    children = [ChildProcess(work) for _ in range(6)]
    assert sorted(child.read_line() for child in children) == ["hit"] * 5 + ["loaded"]
    assert [child.wait() for child in children] == [0] * 6
    assert_complete(entry, MADE)
