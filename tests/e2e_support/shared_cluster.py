"""One cluster for two pytest processes of `make test`: the first starts it, the other runs tests on it meanwhile.

Pods spend most of a test waiting for the kubelet, which looks at its containers once a second.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster

OWNER, FOLLOWER = "node", "pods"
"""The groups of ``hack/env/run_tests.py`` that start the cluster, and that use it."""
_FILE = "cluster.json"
_TIMEOUT_SECONDS = 3600
"""Enough to build Kubernetes and the images on a new machine, or to run the follower's tests."""

_folder = Path(os.environ.get("TEST_GROUPS_FOLDER", ""))
_group = os.environ.get("TEST_GROUP", "")


class NoSharedCluster(Exception):
    """The owner of the cluster has ended, or takes too long."""


def is_follower() -> bool:
    """Whether this process uses the cluster of another."""
    return _group == FOLLOWER


def share(e2e: E2ECluster) -> None:
    """Lets the follower use it, if there is one."""
    if _group != OWNER:
        return
    content = {"cluster": e2e.cluster.folder, "images": asdict(e2e.images), "model_files": asdict(e2e.model_files)}
    part = _folder / f".{_FILE}"
    part.write_text(json.dumps(content, default=str))
    part.replace(_folder / _FILE)


def wait_for_owner() -> None:
    """Waits until the owner shares its cluster.

    Raises:
        NoSharedCluster: It has none.
    """
    _wait_for(_folder / _FILE, unless=OWNER)


def join(folder: Path) -> E2ECluster:
    """Returns the owner's cluster; ``folder`` is for files of this process."""
    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.images import Images
    from e2e_support.model_files import ModelFiles
    from local_cluster.cluster import attach

    content: dict[str, Any] = json.loads((_folder / _FILE).read_text())
    archives = tuple(map(Path, content["images"].pop("archives")))
    e2e = E2ECluster(attach(Path(content["cluster"])), folder, Images(**content["images"], archives=archives))
    e2e.release.assume({})
    files = content["model_files"]
    paths: dict[str, Any] = {
        model: {name: Path(path) for name, path in files.pop(model).items()} for model in ("small", "large", "llama")
    }
    e2e.model_files = ModelFiles(**paths, **files)
    return e2e


def wait_for_follower() -> None:
    """Waits until the follower has ended, if there is one."""
    if _group == OWNER:
        _wait_for(_folder / f"{FOLLOWER}.ended")


def _wait_for(path: Path, unless: str = "") -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not path.exists():
        if unless and (_folder / f"{unless}.ended").exists():
            raise NoSharedCluster(f"The group {unless} has ended without a cluster.")
        if time.monotonic() > deadline:
            raise NoSharedCluster(f"{path.name} did not appear within {_TIMEOUT_SECONDS} s.")
        time.sleep(0.1)
