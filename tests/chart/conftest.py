"""Fixtures of the chart's tests: Helm, and an API server for the session that only Helm installs into."""

from __future__ import annotations

import contextlib
import urllib.error
from typing import TYPE_CHECKING

import pytest

from chart_support import third_party_crds
from chart_support.helm import NAMESPACE, Helm, find_helm
from operator_support.control_plane import ControlPlane, DependencyUnavailable, find_programs, skip_or_fail
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chart_support.helm import Object

_HELM = pytest.StashKey["Path"]()
_THIRD_PARTY_CRDS = pytest.StashKey[list["Path"]]()
_PROGRAMS = pytest.StashKey[dict[str, "Path"]]()
_MISSING = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds missing programs before the first test, since a cold build takes longer than a test's time limit."""
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    stash = session.config.stash
    if session.config.option.collectonly or "helm" not in names or _HELM in stash:
        return
    try:
        stash[_HELM] = find_helm()
        if "plane" in names:
            stash[_PROGRAMS] = find_programs()
        if "third_party_crd_files" in names:
            stash[_THIRD_PARTY_CRDS] = third_party_crds.download_crd_files()
    except DependencyUnavailable as error:
        stash[_MISSING] = str(error)


@pytest.fixture(scope="session")
def helm(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    if missing := pytestconfig.stash.get(_MISSING, ""):
        skip_or_fail(missing)
    return Helm(pytestconfig.stash[_HELM], tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def third_party_crd_files(helm: Helm, pytestconfig: pytest.Config) -> list[Path]:
    """Files with CRDs of other operators."""
    del helm
    return pytestconfig.stash[_THIRD_PARTY_CRDS]


@pytest.fixture(scope="session")
def plane(helm: Helm, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane without nodes and without CRDs."""
    del helm
    made = ControlPlane(tmp_path_factory.mktemp("chart-plane"), pytestconfig.stash[_PROGRAMS])
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def helm_with_cluster(helm: Helm, plane: ControlPlane) -> Iterator[Helm]:
    """Helm with the session's control plane, which is reset afterwards."""
    found = Helm(helm.binary, helm.home, plane.kubeconfig)
    yield found
    reset_cluster(found, plane)


def reset_cluster(helm: Helm, plane: ControlPlane) -> None:
    """Removes the release, what is left in its namespace, and the CRDs.

    Raises:
        AssertionError: The test left objects.
    """
    helm.uninstall("--no-hooks", "--ignore-not-found")
    for path in ("apis/batch/v1/namespaces/{}/jobs", "api/v1/namespaces/{}/pods", "api/v1/namespaces/{}/secrets"):
        plane.request("DELETE", f"/{path.format(NAMESPACE)}?propagationPolicy=Background&gracePeriodSeconds=0")
    for crd in _find_crds(plane):
        with contextlib.suppress(urllib.error.HTTPError):  # it is not served yet, or is being deleted
            found = plane.request("GET", f"/apis/tonnage.dev/v1alpha1/{crd['spec']['names']['plural']}")["items"]
            assert not found, f"a test left {found}"
        plane.request("DELETE", f"{_CRDS}/{crd['metadata']['name']}")
    eventually(lambda: not _find_crds(plane))


_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def _find_crds(plane: ControlPlane) -> list[Object]:
    found: list[Object] = plane.request("GET", _CRDS)["items"]
    return [each for each in found if each["spec"]["group"] == "tonnage.dev"]
