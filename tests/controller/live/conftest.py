"""Controller, webhook and fake kubelet for tests that can share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support.fake_kubelet import FakeKubelet, FakeLoaders
from operator_support.harness import ControllerThread, OperatorHarness, admin_client_config, make_installation
from operator_support.webhook_thread import WebhookThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support.control_plane import ControlPlane


@pytest.fixture
def harness(control_plane: ControlPlane, namespace: str) -> Iterator[OperatorHarness]:
    """A harness for the test's namespace; removes its objects and nodes afterwards."""
    made = OperatorHarness(control_plane, namespace)
    yield made
    made.cleanup()


@pytest.fixture
def fake_loaders(control_plane: ControlPlane) -> Iterator[FakeLoaders]:
    """What fake loaders do, with a running fake kubelet."""
    behavior = FakeLoaders()
    with FakeKubelet(control_plane, behavior):
        yield behavior


@pytest.fixture(scope="session")
def operator_namespace(control_plane: ControlPlane) -> str:
    """The operator's own namespace."""
    control_plane.kubectl("create", "namespace", "tonnage-system")
    return "tonnage-system"


@pytest.fixture
def peers_secret(control_plane: ControlPlane, operator_namespace: str) -> Iterator[str]:
    """The path of the peers' Secret, which is empty, as the chart creates it."""
    path = f"/api/v1/namespaces/{operator_namespace}/secrets"
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tonnage-peers"}}
    control_plane.request("POST", path, body)
    yield f"{path}/tonnage-peers"
    control_plane.request("DELETE", f"{path}/tonnage-peers")


@pytest.fixture(scope="module")
def controller(control_plane: ControlPlane, operator_namespace: str) -> Iterator[ControllerThread]:
    """A running controller, shared by the tests of a module."""
    del operator_namespace
    with ControllerThread(admin_client_config(control_plane), make_installation()) as running:
        yield running


@pytest.fixture(scope="module")
def webhook(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookThread]:
    """A running webhook, with its configuration on the API server."""
    with WebhookThread(
        admin_client_config(control_plane), make_installation(), tmp_path_factory.mktemp("webhook")
    ) as running:
        running.register(control_plane)
        yield running
        running.unregister(control_plane)
