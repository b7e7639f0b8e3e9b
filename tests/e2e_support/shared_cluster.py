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

_TIMEOUT_SECONDS = 3600
"""Enough to build Kubernetes and the images on a new machine, or to run the follower's tests."""


class NoSharedCluster(Exception):
    """The owner of the cluster has ended, or takes too long."""


def is_follower() -> bool:
    """Whether this process uses the cluster of another."""
    return _role() == "follower"


def share(e2e: E2ECluster) -> None:
    """Lets the follower use it, if there is one."""
    if _role() != "owner":
        return
    content = {"cluster": e2e.cluster.folder, "images": asdict(e2e.images), "model_files": asdict(e2e.model_files)}
    part = _file().with_suffix(".part")
    part.write_text(json.dumps(content, default=str))
    part.replace(_file())


def wait_for_owner() -> None:
    """Waits until the owner shares its cluster.

    Raises:
        NoSharedCluster: It has none.
    """
    _wait_for(_file(), unless=_other_ended())


def join(folder: Path) -> E2ECluster:
    """Returns the owner's cluster; ``folder`` is for files of this process."""
    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.images import Images
    from e2e_support.model_files import ModelFiles
    from local_cluster.cluster import attach

    content: dict[str, Any] = json.loads(_file().read_text())
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
    if _role() == "owner":
        _wait_for(_other_ended())


# The three variables are set by hack/env/run_tests.py.
def _role() -> str:
    return os.environ.get("SHARED_CLUSTER_ROLE", "")


def _file() -> Path:
    return Path(os.environ["SHARED_CLUSTER_FILE"])


def _other_ended() -> Path:
    """Returns the path of a file that exists when the other process has ended."""
    return Path(os.environ["SHARED_CLUSTER_OTHER_ENDED"])


def _wait_for(path: Path, unless: Path | None = None) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not path.exists():
        if unless and unless.exists():
            raise NoSharedCluster(f"The owner has ended without a cluster: there is {unless.name}, but no {path.name}.")
        if time.monotonic() > deadline:
            raise NoSharedCluster(f"{path.name} did not appear within {_TIMEOUT_SECONDS} s.")
        time.sleep(0.1)
