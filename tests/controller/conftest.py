"""Fixtures of the operator's tests: one control plane per session, one namespace per test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from operator_support.control_plane import ControlPlane, DependencyUnavailable, find_programs, skip_or_fail
from support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PROGRAMS = pytest.StashKey[dict[str, "Path"]]()
_MISSING = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the control plane's programs before the first test: a cold build takes longer than a test's time limit."""
    wanted = any("control_plane" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly or _PROGRAMS in session.config.stash:
        return
    try:
        session.config.stash[_PROGRAMS] = find_programs()
    except DependencyUnavailable as error:
        session.config.stash[_MISSING] = str(error)


@pytest.fixture(scope="session")
def control_plane(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane with Tonnage's CRDs."""
    if missing := pytestconfig.stash.get(_MISSING, ""):
        skip_or_fail(missing)
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), pytestconfig.stash[_PROGRAMS])
    try:
        plane.start()
        plane.install_crds(ROOT / "crds")
        yield plane
    finally:
        plane.stop()


_NUMBERS = itertools.count(1)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new namespace. Its workloads are deleted after the test, or their pods would run on the nodes of later tests.

    The namespace itself stays, because the control plane is removed as a whole.
    """
    name = f"test-{next(_NUMBERS)}"
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    control_plane.request("POST", "/api/v1/namespaces", body)
    yield name
    for kinds in ("apps/v1/{}/deployments", "apps/v1/{}/statefulsets", "apps/v1/{}/daemonsets", "batch/v1/{}/jobs"):
        path = kinds.format(f"namespaces/{name}")
        control_plane.request("DELETE", f"/apis/{path}?propagationPolicy=Background")
    control_plane.request("DELETE", f"/api/v1/namespaces/{name}/pods?gracePeriodSeconds=0")
