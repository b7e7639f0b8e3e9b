"""Fixtures of the e2e tests: one real node with Tonnage for the session, one namespace for each test."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from e2e_support import diagnostics, images, shared_cluster
from e2e_support.e2e_cluster import E2ECluster, ensure_prerequisites, start_e2e_cluster
from e2e_support.helm_release import ALL_OPTIONS
from e2e_support.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from e2e_support.helm_release import Values

_IMAGES = pytest.StashKey[images.Images]()
_MISSING = pytest.StashKey[str]()
_E2E = pytest.StashKey[E2ECluster]()
_VALUES = pytest.StashKey["Values"]()
_KUBELET = {
    "featureGates": {"KubeletCrashLoopBackOffMax": True},
    "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
}
"""Containers that have ended are started again within a second, in place of 10, 20 and 40."""
_PREFIX = "pods" if shared_cluster.is_follower() else "e2e"
"""What the names of namespaces begin with."""
_NUMBERS = itertools.count(1)
_IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
_ALONE = ["disturbs", "all_options", "own_release"]
"""Markers of tests that no other process may notice, in the order in which they run: after all others."""
_TIME_LIMIT = 240
MAX_PREPARED = 20
"""How many namespaces are prepared. To prepare more would take longer than it saves."""


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers."""
    config.addinivalue_line("markers", "e2e: on a real node, with the real image and chart")
    config.addinivalue_line("markers", "prepared: the namespace's first ``create_model()`` returns a resolved model")
    config.addinivalue_line("markers", "disturbs: kills or stops what other tests of the node need")
    config.addinivalue_line("markers", "all_options: with the chart's options that default to off")
    config.addinivalue_line("markers", "own_release: installs other values, or nothing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need the cluster, sets their time limit, and moves them to the end.

    The cluster runs until the session ends, and would slow down all tests that come later. Tests with the same values
    of the chart follow each other, since each upgrade takes ten seconds.
    """
    cluster_items = [item for item in items if _needs_cluster(item)]
    for item in cluster_items:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.timeout(_TIME_LIMIT))
    cluster_items.sort(key=lambda item: [_has(item, name) for name in reversed(_ALONE)])
    items[:] = [*(item for item in items if not _needs_cluster(item)), *cluster_items]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Lets the follower of the cluster end before a test that it would notice. This doesn't count for time limits."""
    if any(_has(item, name) for name in _ALONE):
        shared_cluster.wait_for_follower()
    return (yield)


def _has(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is not None


def _values(item: pytest.Item) -> Values | None:
    """Returns the values that a test expects, besides those of all; None if it installs the release itself."""
    if _has(item, "own_release"):
        return None
    return ALL_OPTIONS if _has(item, "all_options") else {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Installs the values that a test expects, before the fixtures that it shares with others."""
    if not _needs_cluster(item) or (values := _values(item)) is None:
        return
    item.config.stash[_VALUES] = values
    if running := item.config.stash.get(_E2E, None):
        running.release.install(values)


def _needs_cluster(item: pytest.Item) -> bool:
    return "e2e" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds images and programs before the first test, since this takes longer than a test's time limit.

    A follower waits until the owner of the cluster has done so.
    """
    wanted = any(map(_needs_cluster, session.items))
    if not wanted or session.config.option.collectonly or _IN_PARALLEL:
        return
    from local_cluster.errors import MissingRequirements

    try:
        if shared_cluster.is_follower():
            shared_cluster.wait_for_owner()
            return
        ensure_prerequisites()
        session.config.stash[_IMAGES] = images.build_images()
    except (MissingRequirements, images.ImageBuildUnavailable, shared_cluster.NoSharedCluster) as error:
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
    folder = tmp_path_factory.mktemp("e2e")
    if shared_cluster.is_follower():
        joined = pytestconfig.stash[_E2E] = shared_cluster.join(folder)
        yield joined
        return
    built, values = pytestconfig.stash[_IMAGES], pytestconfig.stash.get(_VALUES, None)
    with start_e2e_cluster(folder, built, values=values, kubelet=_KUBELET) as running:
        pytestconfig.stash[_E2E] = running
        shared_cluster.share(running)
        yield running
        shared_cluster.wait_for_follower()


@pytest.fixture(scope="session")
def prepared_namespaces(e2e: E2ECluster, request: pytest.FixtureRequest) -> list[Namespace]:
    """Namespaces with a resolved model each, prepared together since each takes Kubernetes seconds."""
    wanted = sum(_has(item, "prepared") for item in request.session.items)
    namespaces = [Namespace.create(e2e, f"{_PREFIX}-{next(_NUMBERS)}") for _ in range(min(wanted, MAX_PREPARED))]
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
        made.append(Namespace.create(e2e, f"{_PREFIX}-{next(_NUMBERS)}", **more))
        return made[-1]

    yield make
    for namespace in made:
        namespace.delete()


@pytest.fixture
def namespace(
    prepared_namespaces: list[Namespace], make_namespace: Callable[..., Namespace], request: pytest.FixtureRequest
) -> Namespace:
    """The test's namespace."""
    if not prepared_namespaces or not _has(request.node, "prepared"):
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
