"""The annotation that starts the next attempt of what failed, on a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_support.fake_kubelet import Termination
from operator_support.harness import ControllerThread, admin_client_config, make_installation
from operator_support.objects import failed_report
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

BACKOFF = 600.0
"""Seconds until an attempt that nothing starts: longer than the test."""


def test_a_new_value_of_the_annotation_starts_the_next_attempt_at_once(
    control_plane: ControlPlane, operator_namespace: str, harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    del operator_namespace
    installation = make_installation(retryBase=BACKOFF, retryCap=BACKOFF)
    (node,) = harness.add_nodes("a")
    fake_loaders.resolve_failure = Termination(failed_report("AccessDenied"), exit_code=10)
    fake_loaders.load_failures[node] = Termination(failed_report("RetriesExhausted"), exit_code=33)
    with ControllerThread(admin_client_config(control_plane), installation):
        harness.create()
        harness.wait_for_condition("Resolved", "False", "AccessDenied")
        harness.wait_for_condition("Progressing", "False", "Backoff")
        fake_loaders.resolve_failure = None
        control_plane.kubectl("annotate", "mw", "-n", harness.namespace, "llama", f"{names.RETRY}=1")
        harness.wait_for_condition("Resolved", "True")
        harness.wait_for_condition("Degraded", "True", "NodeLoadFailed")
        fake_loaders.load_failures.clear()
        control_plane.kubectl("annotate", "mw", "-n", harness.namespace, "llama", f"{names.RETRY}=2", "--overwrite")
        harness.wait_for_condition("Warm")
