"""One real node a session, with Tonnage installed by its chart; one namespace a test."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from cluster_support import dump, images
from cluster_support.site import Site, prepare, start_site
from cluster_support.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_IMAGES = pytest.StashKey[images.Images]()
_LACKING = pytest.StashKey[str]()
_SITE = pytest.StashKey[Site]()
_NUMBERS = itertools.count(1)
_IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
_TIME_LIMIT = 240
MOST_STOCKED = 20
"""Namespaces that are made ahead; more would take as long as they save."""


def pytest_configure(config: pytest.Config) -> None:
    """Names the marker."""
    config.addinivalue_line("markers", "e2e: on a real node, with the real image and chart")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs the node, gives it more time than a test has as a rule, and has it come last.

    The cluster lives to the end of the session, and would otherwise take processors from all others meanwhile.
    """
    ours = [item for item in items if _needs_node(item)]
    for item in ours:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.timeout(_TIME_LIMIT))
    items[:] = [*(item for item in items if not _needs_node(item)), *ours]


def _needs_node(item: pytest.Item) -> bool:
    return "site" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds images and programs before the first test, since that outlasts a test's time limit."""
    wanted = any(map(_needs_node, session.items))
    if not wanted or session.config.option.collectonly or _IN_PARALLEL:
        return
    from local_cluster.errors import MissingRequirements

    try:
        prepare()
        session.config.stash[_IMAGES] = images.build_images()
    except (MissingRequirements, images.Lacking) as error:
        session.config.stash[_LACKING] = str(error)


@pytest.fixture(scope="session")
def site(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The running cluster."""
    if _IN_PARALLEL:
        pytest.skip("Several processes would each start a cluster: run `make e2e`, or make test without -n.")
    if lacking := pytestconfig.stash.get(_LACKING, ""):
        if os.environ.get("CI") == "true":
            pytest.fail(f"No cluster: {lacking}")
        pytest.skip(f"No cluster: {lacking}")
    with start_site(tmp_path_factory.mktemp("site"), pytestconfig.stash[_IMAGES]) as running:
        pytestconfig.stash[_SITE] = running
        yield running


@pytest.fixture(scope="session")
def stocked(site: Site, request: pytest.FixtureRequest) -> list[Workspace]:
    """Namespaces with a resolved model each. They are made at once, since Kubernetes takes seconds for any of them."""
    wanted = sum("space" in getattr(item, "fixturenames", ()) for item in request.session.items)
    spaces = [Workspace.make(site, f"e2e-{next(_NUMBERS)}") for _ in range(min(wanted, MOST_STOCKED))]
    for space in spaces:
        space.start_stocking()
    for space in spaces:
        assert space.stock
        space.stock.until("Ready", within=120)
    return spaces


@pytest.fixture
def make_space(site: Site, request: pytest.FixtureRequest) -> Iterator[Callable[..., Workspace]]:
    """Makes namespaces, which go at the end."""
    made = request.node.spaces = list[Workspace]()

    def make(**more: dict[str, str]) -> Workspace:
        made.append(Workspace.make(site, f"e2e-{next(_NUMBERS)}", **more))
        return made[-1]

    yield make
    for space in made:
        space.leave()


@pytest.fixture
def space(stocked: list[Workspace], make_space: Callable[..., Workspace], request: pytest.FixtureRequest) -> Workspace:
    """The test's namespace."""
    if not stocked:
        return make_space()
    request.node.spaces.append(stocked.pop())
    taken: Workspace = request.node.spaces[-1]
    return taken


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds what the cluster says to the report of a test that failed."""
    report = yield
    if report.when in {"setup", "call"} and report.failed and (running := item.config.stash.get(_SITE, None)):
        for space in getattr(item, "spaces", ()):
            report.sections.append((f"cluster, namespace {space.namespace}", dump.gather(running, space.namespace)))
    del call
    return report
