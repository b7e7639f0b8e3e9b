"""Upgrades and uninstalls of the chart, with pods that run meanwhile."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
import yaml

from e2e_support import helm_release
from e2e_support.kube_client import ApiError
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace
    from e2e_support.pods import Pod


@pytest.fixture
def reinstall_after(e2e: E2ECluster) -> Iterator[None]:
    """Sees to it that Tonnage is installed as other tests expect it."""
    yield
    e2e.release.install()


@pytest.fixture
def previous_chart(tmp_path: Path) -> Path:
    """The chart as it was before. There is no earlier release yet, so it is this one under an earlier version."""
    folder = tmp_path / "tonnage"
    shutil.copytree(helm_release.CHART, folder)
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "0.0.1"}))
    return folder


class DryRunPodCreator:
    """Asks the webhook for pods (dry runs) until it is told to stop, and keeps what was refused."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.attempts = 0
        self.rejections: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.attempts += 1
            try:
                self._namespace.create_pod(f"asked-{self.attempts}", query={"dryRun": "All"})
            except ApiError as error:
                self.rejections.append(str(error))


@pytest.mark.usefixtures("reinstall_after")
def test_an_upgrade_disturbs_no_pod_and_refuses_none(
    namespace: Namespace, e2e: E2ECluster, previous_chart: Path
) -> None:
    # Other settings, too, so that all of the operator's pods are replaced.
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
    assert secrets(e2e) == certificates, "certificates are kept over an upgrade"
    after = pod.get()
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
    later = namespace.create_pod()
    later.wait_ready()
    assert later.last_report().outcome is Outcome.HIT
    assert e2e.storage.bytes_served(e2e.bucket, f"{model.prefix}model.tensors") == served


def secrets(e2e: E2ECluster) -> dict[str, Any]:
    """Returns what the release's TLS Secrets hold."""
    found = e2e.api.list("Secret", helm_release.NAMESPACE)
    return {each["metadata"]["name"]: each["data"] for each in found if each["type"] == "kubernetes.io/tls"}


def test_the_charts_own_test_passes(e2e: E2ECluster) -> None:
    assert "Phase:          Succeeded" in e2e.release.run_tests()


@pytest.mark.usefixtures("reinstall_after")
def test_an_uninstall_keeps_or_wipes_objects_and_bytes_by_its_policy(
    namespace: Namespace, prepared_namespaces: list[Namespace], e2e: E2ECluster
) -> None:
    while prepared_namespaces:  # what is wiped is no good for other tests
        prepared_namespaces.pop().delete()
    model = namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    server, entry, shown = pod.pids("server"), model.entry_path(), model.visible_files()

    e2e.release.uninstall()
    assert e2e.api.get_or_none("ModelWeights", model.name, model.namespace)
    assert model.visible_files() == shown
    plain = namespace.create_pod("plain")  # nobody injects now, and nobody is kept from starting
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
    """Ends pods and waits for it."""
    for pod in pods:
        pod.e2e.api.delete("Pod", pod.name, pod.namespace)
    for pod in pods:
        pod.e2e.api.wait_deleted("Pod", pod.name, pod.namespace)
