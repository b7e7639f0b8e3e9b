"""Install, upgrade, uninstall and install again, on a real API server."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import time
import urllib.error
from typing import TYPE_CHECKING

import pytest
import yaml

from chart_support.helm import CHART, NAMESPACE, Helm, HelmError, Object
from chart_support.hook_runner import HookRunner
from operator_support.fake_kubelet import FakeKubelet, FakeLoaders
from operator_support.harness import ControllerThread, OperatorHarness, make_installation, static_client_config
from operator_support.rbac import granted_permissions, used_permissions
from support.markdown import code_blocks
from support.repository import ROOT
from support.waiting import eventually
from tonnage_operator import __version__
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

MERGE = "application/merge-patch+json"
_NUMBERS = itertools.count(1)
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modelweights.tonnage.dev"


@pytest.fixture
def hook_runner(plane: ControlPlane, tmp_path: Path) -> Iterator[HookRunner]:
    """Runs the pods of hooks."""
    with HookRunner(plane, tmp_path) as runner:
        yield runner


@pytest.fixture
def harness(helm_with_cluster: Helm, plane: ControlPlane) -> Iterator[OperatorHarness]:
    """A harness for a new namespace. Its objects are removed before the chart's CRDs."""
    del helm_with_cluster
    name = f"models-{next(_NUMBERS)}"
    plane.kubectl("create", "namespace", name)
    yield (made := OperatorHarness(plane, name))
    plane.kubectl("delete", "nodes", "-l", f"test-namespace={name}", "--wait=false")
    if plane.kubectl("get", "crd/modelweights.tonnage.dev", "--ignore-not-found").stdout:
        for each in plane.request("GET", made.object_path("").rstrip("/"))["items"]:
            free = {"metadata": {"finalizers": None}}
            plane.request("PATCH", made.object_path(each["metadata"]["name"]), free, content_type=MERGE)
        plane.kubectl("delete", "mw", "--all", "-n", name)
        plane.kubectl("delete", "nodecaches", "--all")


def _has_finalizer(harness: OperatorHarness, name: str = "llama") -> bool:
    return names.FINALIZER in (harness.get(name)["metadata"].get("finalizers") or ())


def _create_with_finalizer(harness: OperatorHarness) -> None:
    """Creates an object with a finalizer, as a killed controller leaves it."""
    eventually(lambda: _crds_served(harness.plane))
    harness.create()
    harness.plane.request(
        "PATCH",
        harness.object_path(),
        {"metadata": {"finalizers": [names.FINALIZER]}},
        content_type=MERGE,
    )


def _crds_served(plane: ControlPlane) -> bool:
    try:
        plane.request("GET", "/apis/tonnage.dev/v1alpha1/modelweights")
    except urllib.error.HTTPError as error:
        error.close()
        return False
    return True


def _controller(plane: ControlPlane) -> ControllerThread:
    """Returns a controller with exactly the permissions that the chart grants."""
    token = plane.create_token("tonnage-controller")
    return ControllerThread(static_client_config(plane.url, ca_file=plane.ca_file, token=token), make_installation())


@pytest.fixture
def older_chart(helm: Helm, tmp_path: Path) -> Path:
    """A packaged chart of an older version: this one with an older CRD, until there is a release."""
    copy = tmp_path / "tonnage"
    shutil.copytree(CHART, copy)
    path = copy / "files" / "crds" / "modelweights.yaml"
    crd = yaml.safe_load(path.read_text())
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["suspend"]
    path.write_text(yaml.safe_dump(crd))
    helm.run("package", copy, "--version", "0.0.9", "--app-version", "0.0.9", "--destination", tmp_path)
    return tmp_path / "tonnage-0.0.9.tgz"


def test_an_upgrade_from_an_older_version_updates_crds_and_keeps_all_objects(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, older_chart: Path
) -> None:
    def fields() -> Object:
        schema: Object = plane.request("GET", CRD)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        found: Object = schema["properties"]["spec"]["properties"]
        return found

    helm_with_cluster.install(chart=older_chart)
    assert "suspend" not in fields()
    _create_with_finalizer(harness)
    before = harness.get()["metadata"]
    helm_with_cluster.install()
    assert "suspend" in fields()
    assert harness.get()["metadata"] == before
    assert plane.request("GET", CRD)["metadata"]["labels"]["app.kubernetes.io/version"] == __version__
    deployments = plane.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")["items"]
    images = {each["spec"]["template"]["spec"]["containers"][0]["image"] for each in deployments}
    assert images == {f"localhost/tonnage-operator:{__version__}"}


def test_an_upgrade_that_changes_nothing_restarts_nothing(helm_with_cluster: Helm, plane: ControlPlane) -> None:
    def generations() -> list[int]:
        items = plane.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")["items"]
        return [each["metadata"]["generation"] for each in items]

    helm_with_cluster.install()
    before = generations()
    helm_with_cluster.install()
    assert generations() == before == [1, 1]


def test_only_annotated_pods_wait_for_a_webhook_that_is_down(helm_with_cluster: Helm, plane: ControlPlane) -> None:
    helm_with_cluster.install()
    plane.kubectl("create", "namespace", "left-alone")
    plane.kubectl("label", "namespace", "left-alone", "tonnage.dev/inject=false")

    def create(namespace: str, annotations: dict[str, str]) -> Object:
        metadata = {"generateName": "p-", "annotations": annotations}
        spec = {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        created: Object = plane.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
        return created

    def refused() -> bool:
        try:
            create("default", {names.MODEL: "llama"})
        except urllib.error.HTTPError as error:
            with error:
                return 'failed calling webhook "inject.tonnage.dev"' in json.loads(error.read())["message"]
        return False

    for namespace in ("default", "kube-system", "left-alone", NAMESPACE):
        plane.kubectl("create", "serviceaccount", "default", "-n", namespace, check=False)
    eventually(refused)
    assert create("default", {"some": "thing"})
    for namespace in ("kube-system", "left-alone", NAMESPACE):
        assert create(namespace, {names.MODEL: "llama"})


def test_without_a_controller_an_uninstall_removes_finalizers_and_deleting_never_hangs(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    helm_with_cluster.install()
    _create_with_finalizer(harness)
    harness.keep_group_revision()
    started = time.monotonic()
    helm_with_cluster.uninstall()
    assert not harness.group_revisions()
    assert time.monotonic() - started < 25
    assert hook_runner.finished == [("release", 0, "Removed the finalizer of 1 ModelWeights.\n")]
    assert used_permissions(plane, "tonnage-release") == granted_permissions("release")
    assert not _has_finalizer(harness)
    rest = plane.kubectl("get", "all,secrets,configmaps,serviceaccounts", "-n", NAMESPACE, "-o", "name").stdout.split()
    assert not [each for each in rest if "tonnage" in each]
    for kind in ("clusterroles", "clusterrolebindings", "mutatingwebhookconfigurations"):
        assert "tonnage" not in plane.kubectl("get", kind, "-o", "name").stdout
    harness.delete()
    assert harness.is_gone()


def test_a_running_controller_does_not_add_finalizers_again(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    helm_with_cluster.install()
    _create_with_finalizer(harness)
    with _controller(plane) as running:
        eventually(lambda: running.app.idle)
        helm_with_cluster.uninstall()
        assert [code for _, code, _ in hook_runner.finished] == [0]
        assert not _has_finalizer(harness)
        harness.delete()
        assert harness.is_gone()


def test_a_later_install_keeps_objects_and_crds(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    helm_with_cluster.install()
    _create_with_finalizer(harness)
    uid = plane.request("GET", CRD)["metadata"]["uid"]
    helm_with_cluster.uninstall()
    assert hook_runner.finished
    helm_with_cluster.install()
    assert plane.request("GET", CRD)["metadata"]["uid"] == uid
    assert harness.get()["spec"]
    with _controller(plane):
        eventually(lambda: _has_finalizer(harness))


def test_crds_are_uninstalled_with_the_chart_if_keep_is_false(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    helm_with_cluster.install({"crds": {"keep": False}})
    _create_with_finalizer(harness)
    helm_with_cluster.uninstall()
    assert hook_runner.finished
    eventually(lambda: not plane.kubectl("get", "crd/modelweights.tonnage.dev", "--ignore-not-found").stdout)


def test_a_wipe_evicts_all_entries_and_deletes_all_objects(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    helm_with_cluster.install({"uninstall": {"policy": "Wipe", "wipeSeconds": 20}, "crds": {"keep": False}})
    eventually(lambda: _crds_served(plane))
    (node,) = harness.add_nodes("a")
    with FakeKubelet(plane, FakeLoaders()), _controller(plane):
        harness.create()
        for name in ("kept", "orphaned"):
            harness.create({"source": {"s3": {"bucket": name}}, "cache": {"retention": "Evictable"}}, name=name)
        for name in ("llama", "kept", "orphaned"):
            harness.wait_for_condition("Warm", name=name)
        harness.delete("orphaned")
        eventually(lambda: harness.is_gone("orphaned"))
        assert len(harness.entry_states(node)) == 3
        harness.keep_group_revision()
        helm_with_cluster.uninstall()
    assert [(arguments, code) for arguments, code, _ in hook_runner.finished] == [
        ("wipe --within=20", 0),
        ("release", 0),
    ]
    assert "all ready nodes are empty" in hook_runner.finished[0][2]
    assert used_permissions(plane, "tonnage-wipe") == granted_permissions("wipe")
    eventually(lambda: not plane.kubectl("get", "crd/modelweights.tonnage.dev", "--ignore-not-found").stdout)


def test_a_wipe_that_cannot_finish_reports_what_is_left_and_keeps_the_release(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    helm_with_cluster.install({"uninstall": {"policy": "Wipe", "wipeSeconds": 3}})
    _create_with_finalizer(harness)
    with pytest.raises(HelmError, match="job tonnage-wipe failed: BackoffLimitExceeded"):
        helm_with_cluster.uninstall()
    ((_, code, output),) = hook_runner.finished
    assert code == 1
    assert f"Remaining: ModelWeights {harness.namespace}/llama is being deleted." in output
    assert plane.kubectl("get", "deployment/tonnage-controller", "-n", NAMESPACE, "-o", "name").stdout
    bound = plane.kubectl("get", "clusterrolebinding/tonnage-controller", "-o", "jsonpath={.subjects[*].name}").stdout
    assert bound == "tonnage-controller"


def test_an_uninstall_whose_hook_never_runs_ends_with_an_error(
    helm_with_cluster: Helm, harness: OperatorHarness
) -> None:
    helm_with_cluster.install()
    _create_with_finalizer(harness)
    started = time.monotonic()
    with pytest.raises(HelmError, match=r"timed out|pre-delete"):
        helm_with_cluster.uninstall("--timeout", "4s")
    assert time.monotonic() - started < 20
    helm_with_cluster.uninstall("--no-hooks")


def test_without_the_hook_an_uninstall_runs_nothing(helm_with_cluster: Helm, harness: OperatorHarness) -> None:
    helm_with_cluster.install({"uninstall": {"hook": False}})
    _create_with_finalizer(harness)
    helm_with_cluster.uninstall()
    assert _has_finalizer(harness)


def _signing_keys(plane: ControlPlane) -> dict[str, str]:
    secret = json.loads(plane.kubectl("get", "secret", "tonnage-signing", "-n", "tonnage-system", "-o", "json").stdout)
    data: dict[str, str] = secret["data"]
    return data


@pytest.mark.timeout(180)  # seven releases, one after the other
def test_the_documented_commands_have_the_documented_effect(
    helm_with_cluster: Helm, plane: ControlPlane, harness: OperatorHarness, hook_runner: HookRunner
) -> None:
    page = ROOT / "docs" / "guides" / "helm.md"
    text = "\n".join(block.text for block in code_blocks(page) if block.language == "console")
    commands = [shlex.split(line)[2:] for line in text.replace("\\\n", " ").splitlines() if line.startswith("$ helm ")]
    commands = [command for command in commands if command[0] != "test"]  # `helm test` needs a node: see tests/e2e
    assert [command[0] for command in commands] == [
        "install", "upgrade", "upgrade", "uninstall", "upgrade", "uninstall",
    ]  # fmt: skip

    def run(command: list[str]) -> None:
        helm_with_cluster.run(*[str(CHART) if word == "charts/tonnage" else word for word in command])

    install, rotate, upgrade, uninstall, prepare, wipe = commands
    run(install)
    before = _signing_keys(plane)
    run(rotate)
    assert _signing_keys(plane)["previous"] == before["current"] != _signing_keys(plane)["current"]
    _create_with_finalizer(harness)
    run(upgrade)
    run(uninstall)
    assert not _has_finalizer(harness)
    run(install)
    run(prepare)
    with FakeKubelet(plane, FakeLoaders()), _controller(plane):
        run(wipe)
    assert [arguments.split()[0] for arguments, _, _ in hook_runner.finished] == ["release", "wipe", "release"]
    eventually(lambda: not plane.kubectl("get", "crd/modelweights.tonnage.dev", "--ignore-not-found").stdout)
