"""A load that another user has begun."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.child_processes import UNPRIVILEGED_UID, run_in_child
from support.load_harness import SLOW_LIMITS
from tonnage.errors import CacheNotWritable, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.load_harness import LoadHarness

OTHER_UID = UNPRIVILEGED_UID - 1
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")


@pytest.fixture
def shared(harness: LoadHarness) -> Iterator[LoadHarness]:
    """A cache that all users can enter and write to."""
    folder = Path(tempfile.mkdtemp(prefix="tonnage-test-", dir="/dev/shm"))
    folder.chmod(0o777)
    harness.cache = folder
    yield harness
    shutil.rmtree(folder)


def begin(harness: LoadHarness, *, owner: int) -> None:
    """Leaves an unfinished load that belongs to ``owner``."""
    enough = len(harness.tensors_file) * 2 // 3
    with pytest.raises(Interrupted):
        harness.load(canceled=lambda: harness.server.bytes_sent > enough, limits=SLOW_LIMITS)
    for path in harness.cache.rglob("*"):
        os.chown(path, owner, owner)


def test_the_error_names_the_user_whose_files_are_in_the_way(shared: LoadHarness) -> None:
    def resume() -> None:
        with pytest.raises(CacheNotWritable, match=f"belongs to user {UNPRIVILEGED_UID}, .* runs as user {OTHER_UID}"):
            shared.load()

    begin(shared, owner=UNPRIVILEGED_UID)
    assert run_in_child(resume, uid=OTHER_UID) == 0


def test_root_resumes_the_load_of_another_user(shared: LoadHarness) -> None:
    begin(shared, owner=UNPRIVILEGED_UID)
    report = shared.load()
    assert report.resumed_bytes > 0
    shared.assert_loaded(report)
