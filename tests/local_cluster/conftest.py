"""A real cluster for the session, and an image of a small program for its pods."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from local_cluster import images, programs
from local_cluster.cluster import prepare, start
from local_cluster.errors import MissingRequirements
from local_cluster_support.namespace import IMAGE, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local_cluster.cluster import Cluster

_MISSING = pytest.StashKey[str]()
_NUMBERS = itertools.count(1)
_TIME_LIMIT = 180
"""Seconds; enough to start a cluster on a busy machine."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the programs before the first test, since a cold build takes longer than a test's time limit."""
    wanted = [item for item in session.items if "cluster_prerequisites" in getattr(item, "fixturenames", ())]
    for item in wanted:
        item.add_marker(pytest.mark.timeout(_TIME_LIMIT))
    if not wanted or session.config.option.collectonly:
        return
    try:
        prepare()
        programs.find_or_build(["probe"])
    except MissingRequirements as error:
        session.config.stash[_MISSING] = str(error)


@pytest.fixture(scope="session")
def cluster_prerequisites(pytestconfig: pytest.Config) -> None:
    """Skips the test (in CI: fails it) if the host can't run a cluster."""
    if missing := pytestconfig.stash.get(_MISSING, ""):
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def probe_image(cluster_prerequisites: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The docker-archive of ``IMAGE``, which serves and fetches by HTTP."""
    archive = tmp_path_factory.mktemp("images") / "probe.tar"
    images.write_image(archive, programs.find_or_build(["probe"])["probe"], IMAGE)
    return archive


@pytest.fixture(scope="session")
def cluster(probe_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests that leave it unchanged."""
    with start(tmp_path_factory.mktemp("cluster")) as running:
        running.import_image(probe_image)
        yield running


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A new namespace for the test."""
    with Namespace.create(cluster, f"test-{next(_NUMBERS)}") as made:
        yield made
