"""Fixtures of the e2e tests: one real node with Tonnage for the session, one namespace for each test."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from e2e_support import diagnostics, images
from e2e_support.e2e_cluster import E2ECluster, ensure_prerequisites, start_e2e_cluster
from e2e_support.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_IMAGES = pytest.StashKey[images.Images]()
_MISSING = pytest.StashKey[str]()
_E2E = pytest.StashKey[E2ECluster]()
_NUMBERS = itertools.count(1)
_IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
_TIME_LIMIT = 240
MAX_PREPARED = 20
"""How many namespaces are prepared. To prepare more would take longer than it saves."""


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line("markers", "e2e: on a real node, with the real image and chart")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need the cluster, sets their time limit, and moves them to the end.

    The cluster runs until the session ends, and would slow down all tests that come later.
    """
    cluster_items = [item for item in items if _needs_cluster(item)]
    for item in cluster_items:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.timeout(_TIME_LIMIT))
    items[:] = [*(item for item in items if not _needs_cluster(item)), *cluster_items]


def _needs_cluster(item: pytest.Item) -> bool:
    return "e2e" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds images and programs before the first test, since this takes longer than a test's time limit."""
    wanted = any(map(_needs_cluster, session.items))
    if not wanted or session.config.option.collectonly or _IN_PARALLEL:
        return
    from local_cluster.errors import MissingRequirements

    try:
        ensure_prerequisites()
        session.config.stash[_IMAGES] = images.build_images()
    except (MissingRequirements, images.ImageBuildUnavailable) as error:
        session.config.stash[_MISSING] = str(error)


@pytest.fixture(scope="session")
def e2e(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[E2ECluster]:
    """The running cluster."""
    if _IN_PARALLEL:
        pytest.skip("Each xdist worker would start a cluster: run `make e2e`, or make test without -n.")
    if missing := pytestconfig.stash.get(_MISSING, ""):
        if os.environ.get("CI") == "true":
            pytest.fail(f"No cluster: {missing}")
        pytest.skip(f"No cluster: {missing}")
    with start_e2e_cluster(tmp_path_factory.mktemp("e2e"), pytestconfig.stash[_IMAGES]) as running:
        pytestconfig.stash[_E2E] = running
        yield running


@pytest.fixture(scope="session")
def prepared_namespaces(e2e: E2ECluster, request: pytest.FixtureRequest) -> list[Namespace]:
    """Namespaces with a resolved model each, prepared together since each takes Kubernetes seconds."""
    wanted = sum("namespace" in getattr(item, "fixturenames", ()) for item in request.session.items)
    namespaces = [Namespace.create(e2e, f"e2e-{next(_NUMBERS)}") for _ in range(min(wanted, MAX_PREPARED))]
    for namespace in namespaces:
        namespace.prepare_model()
    for namespace in namespaces:
        assert namespace.prepared_model
        namespace.prepared_model.wait_for_condition("Ready", timeout=120)
    return namespaces


@pytest.fixture
def make_namespace(e2e: E2ECluster, request: pytest.FixtureRequest) -> Iterator[Callable[..., Namespace]]:
    """Creates namespaces, which are deleted after the test."""
    made = request.node.namespaces = list[Namespace]()

    def make(**more: dict[str, str]) -> Namespace:
        made.append(Namespace.create(e2e, f"e2e-{next(_NUMBERS)}", **more))
        return made[-1]

    yield make
    for namespace in made:
        namespace.delete()


@pytest.fixture
def namespace(
    prepared_namespaces: list[Namespace], make_namespace: Callable[..., Namespace], request: pytest.FixtureRequest
) -> Namespace:
    """The test's namespace."""
    if not prepared_namespaces:
        return make_namespace()
    request.node.namespaces.append(prepared_namespaces.pop())
    taken: Namespace = request.node.namespaces[-1]
    return taken


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the cluster's objects and logs to the report of a failed test."""
    report = yield
    if report.when in {"setup", "call"} and report.failed and (running := item.config.stash.get(_E2E, None)):
        for namespace in getattr(item, "namespaces", ()):
            report.sections.append(
                (f"cluster, namespace {namespace.name}", diagnostics.collect(running, namespace.name))
            )
    del call
    return report
