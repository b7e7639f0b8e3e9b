"""The full look at the API server, which makes up for lost watch events and writes nothing where none was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support.harness import ControllerThread, admin_client_config, make_installation
from operator_support.metrics import count
from support.waiting import eventually
from tonnage_operator.controller import app
from tonnage_operator.controller.memo import ControllerMemo

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness


@pytest.fixture(autouse=True)
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the controller look every half second, so that the tests don't wait for a minute."""
    assert app._RESYNC_INTERVAL <= 60.0
    monkeypatch.setattr(app, "_FIRST_RESYNC", 0.5)
    monkeypatch.setattr(app, "_RESYNC_INTERVAL", 0.5)


def test_without_a_single_event_everything_is_loaded_all_the_same(
    control_plane: ControlPlane,
    operator_namespace: str,
    harness: OperatorHarness,
    fake_loaders: FakeLoaders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del operator_namespace, fake_loaders
    monkeypatch.setattr(ControllerMemo, "apply", lambda *_: None)
    with ControllerThread(admin_client_config(control_plane), make_installation()):
        harness.add_nodes("a", "b")
        harness.create()
        harness.wait_for_condition("Warm", timeout=40)
        harness.delete()
        eventually(harness.is_gone, timeout=40)


def test_looks_at_an_unchanged_cluster_write_nothing(
    control_plane: ControlPlane, operator_namespace: str, harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    del operator_namespace, fake_loaders
    with ControllerThread(admin_client_config(control_plane), make_installation()) as controller:
        harness.add_nodes("a", "b")
        harness.create()
        harness.create({"suspend": True, "placement": {"prewarm": "None"}}, name="other")
        harness.wait_for_condition("Warm")
        harness.wait_for_condition("Resolved", "False", "Suspended", name="other")
        eventually(lambda: not harness.jobs() and controller.call_in_loop(lambda: controller.app.idle))
        reconciles = controller.app.metrics.reconciles
        writes, before = controller.count_writes(), count(reconciles)
        eventually(lambda: count(reconciles) >= before + 20)
        assert controller.count_writes() == writes
