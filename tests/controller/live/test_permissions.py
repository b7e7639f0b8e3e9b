"""Each process with exactly its role: no request is forbidden, and every permission is used."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

import pytest
import yaml

from operator_support import controllers
from operator_support.harness import WITH_PEERS, ControllerThread, make_installation, static_client_config
from operator_support.pods import create_resolved_model
from operator_support.rbac import granted_permissions, used_permissions
from operator_support.webhook_thread import WebhookThread
from support.repository import ROOT
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.controller.uninstall import release_all
from tonnage_operator.kube.credentials import ClientConfig

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness
    from tonnage_operator.kube.credentials import ClientConfig


def _account_client_config(plane: ControlPlane, name: str) -> ClientConfig:
    """Creates a service account ``role-<name>`` with exactly the role."""
    account, namespace = f"role-{name}", "tonnage-system"
    plane.kubectl("create", "serviceaccount", account, "-n", namespace)
    plane.kubectl("apply", "-f", str(ROOT / "operator" / "rbac" / f"{name}.yaml"))
    plane.kubectl(
        "create",
        "clusterrolebinding",
        account,
        f"--clusterrole=tonnage-{name}",
        f"--serviceaccount={namespace}:{account}",
    )
    return static_client_config(plane.url, ca_file=plane.ca_file, token=plane.create_token(account))


def test_roles_have_no_wildcards_and_no_secrets_but_the_peers() -> None:
    for path in (ROOT / "operator" / "rbac").iterdir():
        granted = granted_permissions(path.stem)
        assert not any("*" in part for rule in granted for part in rule)
        assert path.stem == "peers" or not any(resource.startswith("secrets") for _, resource, _ in granted)
    role = yaml.safe_load((ROOT / "operator" / "rbac" / "peers.yaml").read_text())
    assert role["kind"] == "Role"
    assert [(rule["resources"], rule["resourceNames"]) for rule in role["rules"]] == [(["secrets"], ["tonnage-peers"])]


@pytest.mark.usefixtures("peers_secret")
def test_the_controller_needs_its_role_and_nothing_else(
    harness: OperatorHarness, fake_loaders: FakeLoaders, operator_namespace: str
) -> None:
    access = _account_client_config(harness.plane, "controller")
    harness.plane.kubectl("apply", "-f", str(ROOT / "operator" / "rbac" / "peers.yaml"))
    account = f"--serviceaccount={operator_namespace}:role-controller"
    harness.plane.kubectl("create", "rolebinding", "peers", "--role=tonnage-peers", account, "-n", operator_namespace)
    with ControllerThread(access, make_installation(**WITH_PEERS)) as running:
        harness.add_nodes("a", "b")
        harness.create()
        harness.wait_for_condition("Warm")
        # The events of a Job without a pod are read.
        harness.create({"credentials": {"serviceAccountName": "missing"}}, name="other")
        harness.wait_for_condition("Resolved", "False", "PodNotCreated", name="other", timeout=40)
        harness.delete("other")
        # A node is read again before its Jobs are deleted.
        fake_loaders.block_loads = True
        (gone,) = harness.add_nodes("c")
        eventually(lambda: bool(harness.loading_pod_name(gone)))
        harness.delete_node(gone)
        eventually(lambda: not harness.jobs(names.ROLE_LOAD))
        # Every token is reviewed. This one is invalid.
        url = f"http://127.0.0.1:{running.app.port}/v1/reports"
        request = urllib.request.Request(url, data=b"{}", headers={"Authorization": "Bearer x"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        with caught.value as answer:
            assert answer.code == 401
        harness.delete()
        eventually(harness.is_gone, timeout=25)
    assert used_permissions(harness.plane, "role-controller") == granted_permissions(
        "controller"
    ) | granted_permissions("peers")
    # kopf ignores a selector that is set under a wrong key, and then lists and parses every pod of the cluster.
    requests = [urllib.parse.urlsplit(each["requestURI"]) for each in harness.plane.audit_events("role-controller")]
    queries = {
        (kind, urllib.parse.parse_qs(request.query).get("labelSelector", [""])[0])
        for request in requests
        for kind in ("jobs", "pods")
        if request.path.endswith(f"/v1/{kind}") and "watch=" in request.query
    }
    assert queries == {("jobs", f"{names.MANAGED_BY}={names.MANAGER}"), ("pods", names.ROLE)}


def test_the_webhook_needs_its_role_and_nothing_else(
    harness: OperatorHarness, operator_namespace: str, tmp_path: Path
) -> None:
    del operator_namespace
    access = _account_client_config(harness.plane, "webhook")
    harness.create({"access": {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"a": "b"}}}}})
    with WebhookThread(access, make_installation(), tmp_path) as webhook:
        webhook.register(harness.plane)
        with contextlib.ExitStack() as stack:
            stack.callback(webhook.unregister, harness.plane)
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p", "annotations": {names.MODEL: f"{harness.namespace}/llama"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            }
            with pytest.raises(urllib.error.HTTPError) as caught:
                harness.plane.request("POST", "/api/v1/namespaces/default/pods", pod)
            with caught.value as answer:
                assert "may not use it" in json.loads(answer.read())["message"]
            create_resolved_model(harness, name="resolved")
            grouped = copy.deepcopy(pod)
            grouped["metadata"] = {
                **controllers.ray_pod("ray", "uid", "head"),
                "annotations": {names.MODEL: "resolved"},
            }
            harness.plane.request("POST", f"/api/v1/namespaces/{harness.namespace}/pods", grouped)
            webhook.register_consent(harness.plane)
            stack.callback(webhook.unregister_consent, harness.plane)
            harness.create({"credentials": {"serviceAccountName": "default"}}, name="other")
    assert used_permissions(harness.plane, "role-webhook") == granted_permissions("webhook")


async def _release(access: ClientConfig) -> int:
    return await release_all(access)


def test_released_objects_can_be_deleted_without_an_operator(
    harness: OperatorHarness, fake_loaders: FakeLoaders, operator_namespace: str
) -> None:
    del operator_namespace, fake_loaders
    access = _account_client_config(harness.plane, "release")
    body = harness.create()
    harness.plane.request(
        "PATCH",
        harness.object_path(),
        {"metadata": {"finalizers": [names.FINALIZER]}},
        content_type="application/merge-patch+json",
    )
    harness.delete()
    assert not harness.is_gone()
    harness.keep_group_revision()
    assert asyncio.run(_release(access)) >= 1
    assert not harness.group_revisions()
    eventually(harness.is_gone)
    assert used_permissions(harness.plane, "role-release") == granted_permissions("release")
    assert body
