"""Nodes that are born with a startup taint, on a real API server with the real scheduler.

The gate runs with its own account, the role of the chart, and the chart's policy.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import urllib.error
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from chart_support.helm import Helm, find_helm
from operator_support import objects
from operator_support.fake_kubelet import Termination
from operator_support.harness import (
    ControllerThread,
    GateThread,
    admin_client_config,
    make_installation,
    static_client_config,
)
from operator_support.pods import create_pod, create_resolved_model
from operator_support.rbac import granted_permissions, used_permissions
from operator_support.webhook_thread import WebhookThread
from support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.credentials import ClientConfig

pytestmark = pytest.mark.timeout(180)
"""Seconds, with the start of the control plane, two controllers and the policies."""

Body = dict[str, Any]

KEY = "tonnage.dev/not-warm"
AUTOSCALER_KEY = "startup-taint.cluster-autoscaler.kubernetes.io/tonnage"
TAINT = {"key": KEY, "effect": "NoSchedule"}
AUTOSCALER_TAINT = {"key": AUTOSCALER_KEY, "effect": "NoExecute", "value": "yes"}
FOREIGN_TAINT = {"key": "example.com/maintenance", "effect": "NoSchedule"}
READINESS_KEY = "readiness.k8s.io/weights-warm"
GATE: Body = {"enabled": True, "taints": [KEY, AUTOSCALER_KEY]}
GATED = {"placement": {"gate": {"timeout": "10m"}}}
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/tonnage-system/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}


class GateAccount:
    """The gate's account on an API server, with what the chart gives it."""

    def __init__(self, plane: ControlPlane, helm: Helm, mode: str) -> None:
        self.plane = plane
        self.name = f"tonnage-gate-{mode.lower()}"
        values = {"gate": {**GATE, "mode": mode, "serviceAccount": {"name": self.name}}, "fullnameOverride": self.name}
        rendered = helm.template(values)
        items = [
            each
            for each in rendered
            if each["kind"] in PATHS and each["metadata"].get("labels", {}).get(COMPONENT, "").startswith("gate")
        ]
        assert {each["kind"] for each in items} == set(PATHS)
        for each in items:
            plane.request("POST", PATHS[each["kind"]], each)
        path = f"{PATHS['ServiceAccount']}/{self.name}/token"
        self.token = plane.request("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
        self._tls = ssl.create_default_context(cafile=str(plane.ca_file))

    def client_config(self) -> ClientConfig:
        """Returns the credentials of the account."""
        return static_client_config(self.plane.url, ca_file=self.plane.ca_file, token=self.token)

    def send(self, method: str, path: str, body: Body | None = None, *, kind: str = "merge-patch") -> str:
        """Sends a request as the account; returns the refusal, which is empty after a success."""
        content_type = f"application/{kind}+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            f"{self.plane.url}/api/v1/nodes{path}",
            data=json.dumps(body or {}).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
        )
        try:
            with urllib.request.urlopen(request, timeout=20, context=self._tls):
                return ""
        except urllib.error.HTTPError as error:
            with error:
                return str(json.loads(error.read())["message"])


COMPONENT = "app.kubernetes.io/component"


@pytest.fixture(scope="module")
def chart_helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    return Helm(find_helm(), tmp_path_factory.mktemp("helm"))


def _make_account(plane: ControlPlane, helm: Helm, mode: str) -> GateAccount:
    """Creates the account, and waits until its policy applies: the API server needs a moment to compile it."""
    made = GateAccount(plane, helm, mode)
    plane.request("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "probe"}})
    change: Body = {"metadata": {"labels": {"a": "b"}}} if mode == "Taint" else {"status": {"phase": "Terminated"}}
    path = f"/probe{'' if mode == 'Taint' else '/status'}?dryRun=All"
    eventually(lambda: "denied request: The gate" in made.send("PATCH", path, change))
    plane.request("DELETE", "/api/v1/nodes/probe")
    return made


@pytest.fixture(scope="module")
def account(control_plane: ControlPlane, operator_namespace: str, chart_helm: Helm) -> GateAccount:
    """The account of a gate that removes taints."""
    del operator_namespace
    return _make_account(control_plane, chart_helm, "Taint")


@pytest.fixture(scope="module")
def gated_installation() -> Installation:
    """The installation of controller and webhook; the gate of most tests leaves one of its taints alone."""
    return make_installation(gate={**GATE, "taints": [*GATE["taints"], READINESS_KEY]})


@pytest.fixture(scope="module")
def gated_controller(
    control_plane: ControlPlane, operator_namespace: str, gated_installation: Installation
) -> Iterator[ControllerThread]:
    """A running controller."""
    del operator_namespace
    with ControllerThread(admin_client_config(control_plane), gated_installation) as running:
        yield running


@pytest.fixture(scope="module")
def gate(account: GateAccount) -> Iterator[GateThread]:
    """A running gate with the rights of the account."""
    with GateThread(account.client_config(), make_installation(gate=GATE)) as running:
        yield running


def _taints(harness: OperatorHarness, node: str) -> set[str]:
    spec = harness.plane.request("GET", f"/api/v1/nodes/{node}")["spec"]
    return {each["key"] for each in spec.get("taints") or ()}


def _events(harness: OperatorHarness, name: str, namespace: str = "default") -> dict[str, list[str]]:
    """Returns the messages of an object's events by reason."""
    items = harness.plane.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
    found: dict[str, list[str]] = {}
    for each in items:
        if each["involvedObject"]["name"] == name:
            found.setdefault(each["reason"], []).append(each["message"])
    return found


def _serving_pod(harness: OperatorHarness, name: str = "server") -> Body:
    """Creates a pod for the test's nodes that knows nothing of Tonnage."""
    spec = {"nodeSelector": {"test-namespace": harness.namespace}, "containers": [{"name": "c", "image": "i"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    made: Body = harness.plane.request("POST", f"/api/v1/namespaces/{harness.namespace}/pods", body)
    return made


def _pod(harness: OperatorHarness, name: str = "server") -> Body:
    found: Body = harness.plane.request("GET", f"/api/v1/namespaces/{harness.namespace}/pods/{name}")
    return found


@pytest.mark.usefixtures("gated_controller", "gate")
def test_a_node_takes_pods_only_when_all_models_that_match_it_are_warm(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    fake_loaders.block_loads = True
    tolerated = {"placement": {"tolerations": [{"key": FOREIGN_TAINT["key"], "operator": "Exists"}]}}
    for name, medium in (("first", "Memory"), ("second", "Disk")):
        harness.create({**objects.deep_merge(GATED, tolerated), "cache": {"medium": medium}}, name=name)
    (node,) = harness.add_nodes("new", taints=[TAINT, AUTOSCALER_TAINT, FOREIGN_TAINT])
    _serving_pod(harness)
    # The real scheduler puts the load pods on the tainted node, and the serving pod nowhere.
    loading = eventually(lambda: harness.loading_pod_name(node))
    assert loading
    eventually(lambda: "Unschedulable" in json.dumps(_pod(harness)["status"]))
    (message, *_) = eventually(lambda: _events(harness, node).get("GateWaiting")) or [""]
    assert f"{harness.namespace}/first" in message
    assert f"{harness.namespace}/second" in message
    assert _taints(harness, node) == {KEY, AUTOSCALER_KEY, FOREIGN_TAINT["key"]}
    fake_loaders.block_loads = False
    eventually(lambda: _taints(harness, node) == {FOREIGN_TAINT["key"]}, timeout=25)
    for name in ("first", "second"):
        assert harness.condition("Warm", name)[0] == "True"
    assert len(_events(harness, node)["GateOpened"]) == 2  # one for each taint
    harness.patch_node(node, {"spec": {"taints": None}})
    eventually(lambda: _pod(harness)["spec"].get("nodeName") == node)


@pytest.mark.usefixtures("gated_controller", "gate")
def test_after_the_timeout_the_taint_goes_and_events_name_the_models_that_are_not_warm(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    name = f"{harness.namespace}-new"
    fake_loaders.load_failures[name] = Termination(objects.failed_report("AccessDenied", "no"), exit_code=2)
    harness.create({"placement": {"gate": {"timeout": "4s"}}})
    harness.create({"suspend": True, "placement": {"gate": {"timeout": "20m"}}}, name="suspended")
    harness.add_nodes("old")
    harness.wait_for_condition("Resolved", timeout=40)
    (node,) = harness.add_nodes("new", taints=[TAINT])
    eventually(lambda: not _taints(harness, node), timeout=25)
    (message,) = _events(harness, node)["GateTimedOut"]
    assert message.startswith(f"Removing the taint {KEY} because the time is over. Not warm here: ")
    assert f"{harness.namespace}/llama (" in message
    assert "suspended" not in message
    (about_model,) = _events(harness, "llama", harness.namespace)["GateTimedOut"]
    assert about_model.startswith(f"Node {node} takes pods although the model isn't warm there after 4s: ")


@pytest.mark.usefixtures("gated_controller", "fake_loaders")
def test_two_gates_a_restart_and_what_vanishes_in_between_change_nothing(
    harness: OperatorHarness, account: GateAccount, fake_loaders: FakeLoaders
) -> None:
    installation = make_installation(gate=GATE)
    fake_loaders.block_loads = True
    with GateThread(account.client_config(), installation):
        harness.create(GATED)
        first, second = harness.add_nodes("first", "second", taints=[TAINT])
        eventually(lambda: _events(harness, first).get("GateWaiting"))
    harness.delete_node(second)  # while no gate runs
    with (
        GateThread(account.client_config(), installation) as one,
        GateThread(account.client_config(), installation) as other,
    ):
        # A node of the same name comes, on which nothing is loaded.
        harness.add_nodes("second", taints=[TAINT])
        eventually(lambda: len(_events(harness, second).get("GateWaiting", ())) == 2)
        harness.create({**GATED, "cache": {"layout": "Tensorizer"}}, name="late")
        fake_loaders.block_loads = False
        eventually(lambda: not _taints(harness, first) and not _taints(harness, second), timeout=25)
        for node in (first, second):
            assert harness.condition("Warm", "llama")[0] == "True"
            assert "GateTimedOut" not in _events(harness, node)
        # The taint comes again: the models are warm, so it goes.
        harness.patch_node(first, {"spec": {"taints": [TAINT]}})
        eventually(lambda: not _taints(harness, first))
        # A deleted model holds no node.
        fake_loaders.block_loads = True
        harness.create({**GATED, "cache": {"medium": "Disk"}}, name="gone")
        (third,) = harness.add_nodes("third", taints=[TAINT])
        eventually(lambda: f"{harness.namespace}/gone" in str(_events(harness, third).get("GateWaiting")))
        harness.delete("gone")
        fake_loaders.block_loads = False
        eventually(lambda: not _taints(harness, third), timeout=25)
        for each in (one, other):
            each.raise_error()
    assert used_permissions(harness.plane, account.name) == granted_permissions("gate")


def _denied_attempts(node: str) -> dict[str, tuple[str, str, Body]]:
    """Returns what the gate's account tries and may not do: method, path and body."""
    new = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{node}-made"}}

    def patch(body: Body) -> tuple[str, str, Body]:
        return "PATCH", f"/{node}", body

    return {
        "a label": patch({"metadata": {"labels": {"pool": "gpu"}}}),
        "an annotation": patch({"metadata": {"annotations": {"a": "b"}}}),
        "a finalizer": patch({"metadata": {"finalizers": ["example.com/a"]}}),
        "an owner": patch(
            {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "y"}]}}
        ),
        "a cordon": patch({"spec": {"unschedulable": True}}),
        "a provider ID": patch({"spec": {"providerID": "cloud://1"}}),
        "a pod range": patch({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}),
        "another taint's removal": patch({"spec": {"taints": [TAINT]}}),
        "the removal of all taints": patch({"spec": {"taints": None}}),
        "a new taint": patch({"spec": {"taints": [TAINT, FOREIGN_TAINT, {"key": "a", "effect": "NoExecute"}]}}),
        "another effect": patch({"spec": {"taints": [{**TAINT, "effect": "NoExecute"}, FOREIGN_TAINT]}}),
        "another value": patch({"spec": {"taints": [{**TAINT, "value": "x"}, FOREIGN_TAINT]}}),
        "its own taint a second time": patch(
            {"spec": {"taints": [TAINT, {**TAINT, "effect": "NoExecute"}, FOREIGN_TAINT]}}
        ),
        "another taint's effect": patch({"spec": {"taints": [{**FOREIGN_TAINT, "effect": "PreferNoSchedule"}]}}),
        "the removal with a label": patch({"metadata": {"labels": {"a": "b"}}, "spec": {"taints": [FOREIGN_TAINT]}}),
        "the status": ("PATCH", f"/{node}/status", {"status": {"phase": "Terminated"}}),
        "its deletion": ("DELETE", f"/{node}", {}),
        "another node": ("POST", "", new),
    }


@pytest.mark.parametrize("rights", ["the chart's role", "all rights"])
def test_the_gate_can_remove_its_taints_and_change_nothing_else(
    harness: OperatorHarness, account: GateAccount, rights: str
) -> None:
    tolerated = {"placement": {"tolerations": [{"key": FOREIGN_TAINT["key"], "operator": "Exists"}]}}
    harness.create(objects.deep_merge(GATED, tolerated))  # the running gate waits for it
    (node,) = harness.add_nodes("guarded", taints=[TAINT, FOREIGN_TAINT])
    with contextlib.ExitStack() as stack:
        if rights == "all rights":  # the account is bound to more than the chart does
            subject = f"--serviceaccount=tonnage-system:{account.name}"
            harness.plane.kubectl("create", "clusterrolebinding", "too-much", "--clusterrole=cluster-admin", subject)
            stack.callback(harness.plane.kubectl, "delete", "clusterrolebinding", "too-much")
        for what, attempt in _denied_attempts(node).items():
            refusal = account.send(*attempt)
            assert "denied request: The gate" in refusal or "cannot" in refusal, (what, refusal)
        assert _taints(harness, node) == {KEY, FOREIGN_TAINT["key"]}
        allowed = {"spec": {"taints": [FOREIGN_TAINT]}}
        assert not account.send("PATCH", f"/{node}", allowed)
    assert _taints(harness, node) == {FOREIGN_TAINT["key"]}
    # The policy is about the gate alone.
    harness.patch_node(node, {"metadata": {"labels": {"a": "b"}}, "spec": {"taints": None}})


def _condition(harness: OperatorHarness, node: str) -> tuple[str, str]:
    """Returns status and reason of the gate's condition."""
    body = harness.plane.request("GET", f"/api/v1/nodes/{node}")
    return objects.get_condition(body, "tonnage.dev/WeightsWarm")[:2]


@pytest.mark.usefixtures("gated_controller")
def test_as_a_condition_the_gate_writes_that_and_can_change_nothing_else(
    harness: OperatorHarness, fake_loaders: FakeLoaders, chart_helm: Helm
) -> None:
    fake_loaders.block_loads = True
    harness.create(GATED)
    account = _make_account(harness.plane, chart_helm, "Condition")
    installation = make_installation(gate={**GATE, "taints": [READINESS_KEY], "mode": "Condition"})
    with GateThread(account.client_config(), installation):
        (node,) = harness.add_nodes("new", taints=[{"key": READINESS_KEY, "effect": "NoSchedule"}])
        eventually(lambda: _condition(harness, node) == ("False", "GateWaiting"))
        fake_loaders.block_loads = False
        eventually(lambda: _condition(harness, node) == ("True", "GateOpened"), timeout=25)
    assert _taints(harness, node) == {READINESS_KEY}, "the Node Readiness Controller removes it"
    conditions = harness.plane.request("GET", f"/api/v1/nodes/{node}")["status"]["conditions"]
    assert {each["type"] for each in conditions} == {"Ready", "tonnage.dev/WeightsWarm"}
    of_timeouts = {("", "events", "create")}
    assert used_permissions(harness.plane, account.name) | of_timeouts == granted_permissions("gate-condition")
    subject = f"--serviceaccount=tonnage-system:{account.name}"
    harness.plane.kubectl("create", "clusterrolebinding", "too-much", "--clusterrole=cluster-admin", subject)

    try:
        for change in (
            {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
            {"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}},
            {"status": {"conditions": [{"type": "example.com/Other", "status": "True"}]}},
            {"status": {"capacity": {"cpu": "1000"}}},
            {"status": {"allocatable": {"cpu": "1"}}},
            {"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]}},
            {"status": {"nodeInfo": {"bootID": "other"}}},
            {"status": {"phase": "Terminated"}},
            {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Terminated"}},
        ):
            refusal = account.send("PATCH", f"/{node}/status", change, kind="strategic-merge-patch")
            assert "denied request: The gate" in refusal, (change, refusal)
        for attempt in (("PATCH", f"/{node}", {"spec": {"taints": None}}), ("DELETE", f"/{node}", {})):
            assert "denied request: The gate" in account.send(*attempt)
        allowed = {"status": {"conditions": [{"type": "tonnage.dev/WeightsWarm", "status": "False"}]}}
        assert not account.send("PATCH", f"/{node}/status", allowed, kind="strategic-merge-patch")
    finally:
        harness.plane.kubectl("delete", "clusterrolebinding", "too-much")


REQUIRED = {"placement": {"scheduling": "Require", "gate": {"timeout": "10m"}}}
SCHEDULING = "-scheduling"
LARGE = [{"name": "server", "image": "vllm", "resources": {"requests": {"cpu": "40"}}}]
"""Of a node's 64 CPUs."""


@pytest.fixture
def gated_webhook(
    control_plane: ControlPlane, gated_installation: Installation, tmp_path: Path
) -> Iterator[WebhookThread]:
    """A running webhook."""
    with WebhookThread(admin_client_config(control_plane), gated_installation, tmp_path) as running:
        running.register(control_plane)
        yield running
        running.unregister(control_plane)


def _node_of(harness: OperatorHarness, pod: Body) -> str:
    found: str = _pod(harness, pod["metadata"]["name"])["spec"].get("nodeName", "")
    return found


def _denial(harness: OperatorHarness) -> str:
    """Returns the message with which a pod is denied now; empty if it is admitted."""
    try:
        create_pod(harness, query="?dryRun=All")
    except urllib.error.HTTPError as error:
        with error:
            return str(json.loads(error.read())["message"])
    return ""


def _wait_until_unschedulable(harness: OperatorHarness, pod: Body) -> None:
    eventually(lambda: "Unschedulable" in json.dumps(_pod(harness, pod["metadata"]["name"])["status"]))


def _wait_message(harness: OperatorHarness, pod: Body) -> str:
    """Returns the operator's newest event on a pod."""
    found = _events(harness, pod["metadata"]["name"], harness.namespace).get("WaitingForWarmNode")
    return found[-1] if found else ""


@pytest.mark.usefixtures("gated_controller", "gate", "gated_webhook")
def test_pods_that_require_warm_nodes_get_a_new_node_where_the_warm_ones_are_full(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    harness.create(REQUIRED)
    (old,) = harness.add_nodes("old")
    harness.wait_for_condition("Warm")
    harness.wait_for_condition("Gated", "True", "Gated")
    eventually(lambda: not _denial(harness))
    first = create_pod(harness, containers=LARGE)
    eventually(lambda: _node_of(harness, first) == old)
    waiting = create_pod(harness, containers=LARGE)
    # What earlier releases made of it: a pod that only a node of this name can take.
    named = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [old]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [named]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    stuck = create_pod(harness, {}, containers=LARGE, affinity=affinity)
    for pod in (waiting, stuck):
        _wait_until_unschedulable(harness, pod)
    assert f"The nodes that are warm for {harness.namespace}/llama don't take this pod." in eventually(
        lambda: _wait_message(harness, waiting)
    )
    fake_loaders.block_loads = True
    # An autoscaler tries a node of the pool's template: its labels, another name, and no startup taint.
    (template,) = harness.add_nodes("template")
    eventually(lambda: _node_of(harness, waiting) == template)
    # A pod that is created now may not run there: nothing is loaded, and there is no taint.
    fresh = create_pod(harness, containers=LARGE)
    _wait_until_unschedulable(harness, fresh)
    # The node that it adds has the taint, and takes the pod once it is warm.
    (new,) = harness.add_nodes("new", taints=[TAINT])
    eventually(lambda: _events(harness, new).get("GateWaiting"))
    later = create_pod(harness, containers=LARGE)
    assert new in eventually(lambda: _wait_message(harness, later))
    assert {_node_of(harness, each) for each in (fresh, later, stuck)} == {""}
    fake_loaders.block_loads = False
    eventually(lambda: new in {_node_of(harness, fresh), _node_of(harness, later)}, timeout=30)
    assert "GateOpened" in _events(harness, new)
    assert not _node_of(harness, stuck)


@pytest.mark.usefixtures("gated_controller", "gate", "gated_webhook")
def test_pods_wait_for_the_first_node_of_an_empty_pool_and_are_denied_while_a_node_becomes_the_first_warm_one(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    create_resolved_model(harness, {"placement": {**REQUIRED["placement"], "prewarm": "AllMatching"}})
    pod = create_pod(harness)
    _wait_until_unschedulable(harness, pod)
    assert "It waits for room, or for a node that is added." in eventually(lambda: _wait_message(harness, pod))
    fake_loaders.block_loads = True
    harness.add_nodes("cold")
    assert "No node is warm for" in eventually(lambda: _denial(harness))
    fake_loaders.block_loads = False
    eventually(lambda: not _denial(harness), timeout=30)


def test_an_author_is_warned_of_pods_that_may_start_on_cold_nodes_and_of_a_gate_without_effect(
    harness: OperatorHarness, chart_helm: Helm
) -> None:
    plane = harness.plane
    tls = ssl.create_default_context(cafile=str(plane.ca_file))

    def warnings(placement: Body) -> str:
        spec = {"source": objects.SOURCE, "placement": {"prewarm": "AllMatching", **placement}}
        body = objects.modelweights_manifest(spec, name="warned", namespace=harness.namespace)
        del body["metadata"]["uid"], body["status"]
        request = urllib.request.Request(
            f"{plane.url}{harness.object_path('').rstrip('/')}?dryRun=All",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {plane.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20, context=tls) as response:
            return " ".join(response.headers.get_all("Warning") or ())

    def _is_warned(expected: str) -> bool:
        return expected in warnings({"gate": {"taints": ["example.com/a"]}})

    for gate, expected in ((GATE, "names a taint that nothing removes"), ({}, "has no effect")):
        rendered = [
            each for each in chart_helm.template({"gate": gate}) if each["metadata"]["name"].endswith(SCHEDULING)
        ]
        assert len(rendered) == 2
        for each in rendered:
            plane.request("POST", PATHS[each["kind"]], each)
        eventually(partial(_is_warned, expected))
        required = warnings({"scheduling": "Require"})
        assert "scheduling is Require, and nothing keeps pods from nodes that join later" in required
        assert bool(warnings(REQUIRED["placement"])) == (not gate)
        assert not warnings({})
        for each in rendered:
            plane.request("DELETE", f"{PATHS[each['kind']]}/{each['metadata']['name']}")
