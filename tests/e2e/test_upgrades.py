"""Upgrades and uninstalls of the chart while pods run."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from e2e_support import helm_release
from e2e_support.kube_client import ApiError
from operator_support.background_thread import BackgroundThread
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace
    from e2e_support.pods import Pod


@pytest.fixture
def previous_chart(tmp_path: Path) -> Path:
    """A chart of an earlier version: this one with another version number, until there is a release."""
    folder = tmp_path / "tonnage"
    shutil.copytree(helm_release.CHART, folder)
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "0.0.1"}))
    return folder


class DryRunPodCreator(BackgroundThread):
    """Creates pods as dry runs until the end of the ``with`` block, and records rejections."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__()
        self._namespace = namespace
        self.attempts = 0
        self.rejections: list[str] = []

    def run(self) -> None:
        while not self.stop_requested.wait(0.1):
            self.attempts += 1
            try:
                self._namespace.create_pod(f"dry-run-{self.attempts}", query={"dryRun": "All"})
            except ApiError as error:
                self.rejections.append(str(error))


@pytest.mark.prepared
@pytest.mark.own_release
def test_an_upgrade_disturbs_no_pod_and_rejects_none(
    namespace: Namespace, e2e: E2ECluster, previous_chart: Path
) -> None:
    # Also changed settings, so that all of the operator's pods are replaced.
    old = {"podAnnotations": {"e2e": "old"}}
    e2e.release.install({"controller": old, "webhook": old}, chart=previous_chart)
    model = namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    before, certificates = pod.get(), secrets(e2e)
    served = e2e.storage.bytes_served(e2e.bucket, f"{model.prefix}model.tensors")
    with DryRunPodCreator(namespace) as creator:
        e2e.release.install()
    assert creator.attempts > 5
    assert not creator.rejections
    assert [each["chart"].endswith("-0.0.1") for each in e2e.release.history()[-2:]] == [True, False]
    assert secrets(e2e) == certificates, "an upgrade must keep certificates"
    after = pod.get()
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
    later = namespace.create_pod()
    later.wait_ready()
    assert later.last_report().outcome is Outcome.HIT
    assert e2e.storage.bytes_served(e2e.bucket, f"{model.prefix}model.tensors") == served


def secrets(e2e: E2ECluster) -> dict[str, Any]:
    """Returns the data of the release's TLS Secrets by name."""
    found = e2e.api.list("Secret", helm_release.NAMESPACE)
    return {each["metadata"]["name"]: each["data"] for each in found if each["type"] == "kubernetes.io/tls"}


def test_helm_test_passes(e2e: E2ECluster) -> None:
    assert "Phase:          Succeeded" in e2e.release.run_tests()


@pytest.mark.prepared
@pytest.mark.own_release
def test_an_uninstall_keeps_or_wipes_objects_and_entries_by_its_policy(
    namespace: Namespace, prepared_namespaces: list[Namespace], e2e: E2ECluster
) -> None:
    while prepared_namespaces:  # other tests can't use wiped namespaces
        prepared_namespaces.pop().delete()
    model = namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    server, entry, shown = pod.pids("server"), model.entry_path(), model.visible_files()

    e2e.release.uninstall()
    assert e2e.api.get_or_none("ModelWeights", model.name, model.namespace)
    assert model.visible_files() == shown
    plain = namespace.create_pod("plain")  # not injected, and not blocked
    assert names.INJECTED not in plain.get()["metadata"]["annotations"]

    e2e.release.install({"uninstall": {"policy": "Wipe"}})
    model.wait_for_condition("Ready")
    later = namespace.create_pod()
    later.wait_ready()
    assert later.last_report().outcome is Outcome.HIT
    assert pod.pids("server") == server
    delete_and_wait(pod, later, plain)

    assert model.visible_files() == shown
    e2e.release.uninstall()
    assert not e2e.api.list("ModelWeights")
    assert not list(entry.glob("model/*"))
    assert not [path for path in entry.rglob("*") if path.is_file() and path.stat().st_size > 4096]


def delete_and_wait(*pods: Pod) -> None:
    """Deletes pods and waits until they no longer exist."""
    for pod in pods:
        pod.e2e.api.delete("Pod", pod.name, pod.namespace)
    for pod in pods:
        pod.e2e.api.wait_deleted("Pod", pod.name, pod.namespace)
