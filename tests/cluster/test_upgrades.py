"""Upgrades and uninstalls of the chart, with pods that run meanwhile."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
import yaml

from cluster_support import release
from cluster_support.api import Refused
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster_support.pods import Pod
    from cluster_support.site import Site
    from cluster_support.workspace import Workspace


@pytest.fixture
def installed_again(site: Site) -> Iterator[None]:
    """Sees to it that Tonnage is installed as other tests expect it."""
    yield
    site.release.install()


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The chart as it was before. There is no earlier release yet, so it is this one under an earlier version."""
    folder = tmp_path / "tonnage"
    shutil.copytree(release.CHART, folder)
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "0.0.1"}))
    return folder


class Asking:
    """Asks the webhook for pods (dry runs) until it is told to stop, and keeps what was refused."""

    def __init__(self, space: Workspace) -> None:
        self._space = space
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked = 0
        self.refused: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.asked += 1
            try:
                self._space.pod(f"asked-{self.asked}", query={"dryRun": "All"})
            except Refused as error:
                self.refused.append(str(error))


@pytest.mark.usefixtures("installed_again")
def test_an_upgrade_disturbs_no_pod_and_refuses_none(space: Workspace, site: Site, previous: Path) -> None:
    # Other settings, too, so that all of the operator's pods are replaced.
    old = {"podAnnotations": {"e2e": "old"}}
    site.release.install({"controller": old, "webhook": old}, chart=previous)
    model = space.model()
    pod = space.pod()
    pod.until_ready()
    before, certificates = pod.body(), secrets(site)
    served = site.storage.bytes_served(site.bucket, f"{model.prefix}model.tensors")
    with Asking(space) as asking:
        site.release.install()
    assert asking.asked > 5
    assert not asking.refused
    assert [each["chart"].endswith("-0.0.1") for each in site.release.history()[-2:]] == [True, False]
    assert secrets(site) == certificates, "certificates are kept over an upgrade"
    after = pod.body()
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
    later = space.pod()
    later.until_ready()
    assert later.report().outcome is Outcome.HIT
    assert site.storage.bytes_served(site.bucket, f"{model.prefix}model.tensors") == served


def secrets(site: Site) -> dict[str, Any]:
    """Returns what the release's TLS Secrets hold."""
    found = site.api.list("Secret", release.NAMESPACE)
    return {each["metadata"]["name"]: each["data"] for each in found if each["type"] == "kubernetes.io/tls"}


def test_the_charts_own_test_passes(site: Site) -> None:
    assert "Phase:          Succeeded" in site.release.test()


@pytest.mark.usefixtures("installed_again")
def test_an_uninstall_keeps_objects_and_bytes_or_wipes_them_as_it_is_told(
    space: Workspace, stocked: list[Workspace], site: Site
) -> None:
    while stocked:  # what is wiped is no good for other tests
        stocked.pop().leave()
    model = space.model()
    pod = space.pod()
    pod.until_ready()
    server, entry, shown = pod.pids("server"), model.entry(), model.visible()

    site.release.uninstall()
    assert site.api.find("ModelWeights", model.name, model.namespace)
    assert model.visible() == shown
    plain = space.pod("plain")  # nobody injects now, and nobody is kept from starting
    assert names.INJECTED not in plain.body()["metadata"]["annotations"]

    site.release.install({"uninstall": {"policy": "Wipe"}})
    model.until("Ready")
    later = space.pod()
    later.until_ready()
    assert later.report().outcome is Outcome.HIT
    assert pod.pids("server") == server
    finish(pod, later, plain)

    assert model.visible() == shown
    site.release.uninstall()
    assert not site.api.list("ModelWeights")
    assert not list(entry.glob("model/*"))
    assert not [path for path in entry.rglob("*") if path.is_file() and path.stat().st_size > 4096]


def finish(*pods: Pod) -> None:
    """Ends pods and waits for it."""
    for pod in pods:
        pod.site.api.delete("Pod", pod.name, pod.namespace)
    for pod in pods:
        pod.site.api.gone("Pod", pod.name, pod.namespace)
