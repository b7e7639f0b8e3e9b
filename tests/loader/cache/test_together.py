"""Loaders, removers and users of one entry at once, some of them killed: whoever has the lock sees a whole model."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

from support.cache_entries import NAME, assert_whole, fill, publish, sample, visible
from support.children import Child, in_child
from tonnage.cache import Cache, EntryState
from tonnage.cache.listing import evict
from tonnage.errors import CacheInUse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.children import Say
    from tonnage.cache import Entry

MADE = sample(ranks=3, tensor_bytes=20_000)
ROUNDS = 120


def load(entry: Entry) -> None:
    """What a loader does, with all its locks."""
    entry.create()
    with entry.acquire_use_lock():
        if entry.state is not EntryState.READY:
            with entry.acquire_load_lock():
                if entry.recover() is not EntryState.READY:
                    fill(entry, MADE)
                    publish(entry, MADE)
        assert entry.state is EntryState.READY
        assert visible(entry) == MADE.contents


def load_and_tidy(entry: Entry) -> None:
    """Loads; where somebody was killed after publishing, what he left goes with the next who takes the lock."""
    load(entry)
    with entry.acquire_load_lock():
        entry.recover()


def load_for_ever(entry: Entry) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        say("going")
        while True:
            load(entry)
            try:
                evict(entry)
            except CacheInUse:
                continue

    return work


def test_kills_at_random_moments_never_show_half_a_model(memory: Path) -> None:
    entry = Cache(memory).entry(NAME)
    chance = random.Random(11)
    children = [Child(load_for_ever(entry)) for _ in range(3)]
    for _ in range(ROUNDS):
        position = chance.randrange(len(children))
        assert children[position].hear() == "going"
        time.sleep(chance.uniform(0, 0.01))  # the moment of the kill is what is random here
        assert children[position].kill() == -signal.SIGKILL
        children[position] = Child(load_for_ever(entry))
    for child in children:
        child.kill()
    assert in_child(lambda: load_and_tidy(entry)) == 0
    assert_whole(entry, MADE)


def test_loads_that_start_together_load_once(root: Path) -> None:
    entry = Cache(root).entry(NAME)
    entry.create()

    def work(say: Say) -> None:
        with entry.acquire_use_lock(), entry.acquire_load_lock():
            if entry.recover() is EntryState.READY:
                say("hit")
                return
            fill(entry, MADE)
            publish(entry, MADE)
            say("loaded")

    children = [Child(work) for _ in range(6)]
    assert sorted(child.hear() for child in children) == ["hit"] * 5 + ["loaded"]
    assert [child.wait() for child in children] == [0] * 6
    assert_whole(entry, MADE)
