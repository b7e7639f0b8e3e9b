"""``kubectl tonnage`` as users run it: found by the real kubectl, with the rights of the roles view and edit."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from local_cluster import credentials
from operator_support.fake_kubelet import Termination
from operator_support.pods import create_pod, create_resolved_model, pod_template
from support.repository import ROOT
from support.waiting import eventually
from tonnage import contract
from tonnage.errors import Reason
from tonnage_operator.api import names

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import ControllerThread, OperatorHarness
    from operator_support.webhook_thread import WebhookThread

GUIDE = (ROOT / "docs" / "guides" / "kubectl.md").read_text()
_ROLES = ROOT / "charts" / "tonnage" / "templates" / "access" / "people.yaml"


@pytest.fixture(scope="module")
def people(control_plane: ControlPlane) -> None:
    """What the chart adds to the roles ``view`` and ``edit``, waited for until the aggregation is done."""
    for role, text in zip(("view", "edit"), _ROLES.read_text().split("\n---\n"), strict=True):
        rules = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "", text[text.index("\nrules:") :]))["rules"]
        labels = {f"rbac.authorization.k8s.io/aggregate-to-{each}": "true" for each in {role, "edit"}}
        body = {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": f"tonnage-{role}", "labels": labels}, "rules": rules,
        }  # fmt: skip
        control_plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/edit"
    eventually(lambda: "deletecollection" in str([each for each in control_plane.request("GET", path)["rules"]
                                                  if "tonnage.dev" in each.get("apiGroups", ())]))  # fmt: skip


class Plugin:
    """A user with a role in the test's namespace, whose kubectl has the plugin."""

    def __init__(self, harness: OperatorHarness, folder: Path) -> None:
        self._harness = harness
        self._folder = folder
        plane, self._namespace = harness.plane, harness.namespace
        plane.kubectl("create", "serviceaccount", "person", "-n", self._namespace)
        token = plane.kubectl("create", "token", "person", "-n", self._namespace).stdout.strip()
        self.kubeconfig = folder / "kubeconfig"
        credentials.write_kubeconfig(self.kubeconfig, url=plane.url, ca_file=plane.ca_file, token=token)
        for name, call in (
            ("kubectl-tonnage", "main()"),
            ("kubectl_complete-tonnage", "main(['__complete', *sys.argv[1:]])"),
        ):
            script = folder / name
            start = f"#!{sys.executable}\nimport sys\nfrom tonnage_operator.kubectl.main import main\n"
            script.write_text(f"{start}sys.exit({call})\n")
            script.chmod(0o755)

    def grant(self, role: str) -> None:
        account = f"--serviceaccount={self._namespace}:person"
        self._harness.plane.kubectl(
            "create", "rolebinding", f"person-{role}", f"--clusterrole={role}", account, "-n", self._namespace
        )

    def command(self, *words: str, namespaced: bool = True) -> list[str]:
        inside = ["-n", self._namespace] if namespaced else []
        return [str(self._harness.plane.programs["kubectl"]), "tonnage", *words, *inside]

    @property
    def environment(self) -> dict[str, str]:
        paths = os.pathsep.join([str(self._folder), "/usr/bin", "/bin"])
        python = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "loader")])
        return {"PATH": paths, "PYTHONPATH": python, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self._folder)}

    def __call__(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words, **more), env=self.environment, check=False, capture_output=True, text=True, timeout=50
        )

    def in_terminal(self, *words: str) -> str:
        """Returns what the command writes to a terminal."""
        reading, writing = pty.openpty()
        with subprocess.Popen(self.command(*words), env=self.environment, stdout=writing, stdin=writing) as process:
            os.close(writing)
            written = b""
            while True:
                try:
                    block = os.read(reading, 65536)
                except OSError:  # the end of a terminal
                    break
                if not block:
                    break
                written += block
            os.close(reading)
            process.wait(timeout=50)
        return written.decode()


@pytest.fixture
def plugin(people: None, harness: OperatorHarness, tmp_path: Path) -> Plugin:
    """A user with the role ``view``."""
    del people
    made = Plugin(harness, tmp_path)
    made.grant("view")
    return made


def failed(reason: Reason, message: str) -> Termination:
    report = contract.Report(outcome=contract.Outcome.FAILED, reason=reason, message=message, remedy="Allow it.")
    return Termination(report, exit_code=10, reason="Error")


@pytest.mark.timeout(240)
def test_a_viewer_follows_a_model_from_its_load_over_a_failure_and_an_editor_warms_it(
    plugin: Plugin, harness: OperatorHarness, controller: ControllerThread, fake_loaders: FakeLoaders
) -> None:
    del controller
    empty = plugin("status")
    assert (empty.returncode, "There are no ModelWeights in namespace" in empty.stdout) == (0, True), empty.stderr
    fake_loaders.block_loads = True
    one, other = harness.add_nodes("a", "b")
    harness.create()
    harness.wait_for_condition("Progressing", "True", "Loading")
    table = plugin("status")
    assert re.search(r"^llama +False +0/2 .* PartiallyWarm ", table.stdout, re.MULTILINE), table
    detail = plugin("status", "llama")
    assert detail.returncode == 1
    assert "0 of 2 warm" in detail.stdout
    assert "━" not in detail.stdout
    assert "─── " in plugin.in_terminal("status", "llama")
    found = json.loads(plugin("status", "-o", "json").stdout)["items"]
    assert [(each["name"], each["reason"]) for each in found] == [("llama", "PartiallyWarm")]

    fake_loaders.load_failures = {node: failed(Reason.ACCESS_DENIED, "s3://b/x: denied.") for node in (one, other)}
    fake_loaders.block_loads = False
    harness.wait_for_condition("Degraded", "True", "NodeLoadFailed")
    why = plugin("why", "mw/llama")
    assert why.returncode == 1
    assert why.stdout.startswith("AccessDenied: ")
    assert "→ Allow s3:GetObject" in why.stdout
    assert f"{one} " in plugin("status", "llama").stdout

    refused = plugin("warm", "llama", "--nodes", "1")
    assert refused.returncode == 3
    assert 'cannot patch resource "modelweights"' in refused.stderr
    assert "ClusterRole view or edit" in refused.stderr
    nodes = plugin("nodes", namespaced=False)
    assert (nodes.returncode, 'cannot list resource "nodecaches"' in nodes.stderr) == (3, True)

    fake_loaders.load_failures = {}
    plugin.grant("edit")
    warmed = plugin("warm", "llama", "--nodes", "1", "--watch")
    assert warmed.returncode == 0, warmed
    assert harness.get()["spec"]["placement"]["prewarm"] == "Count"
    assert "model " in warmed.stdout
    fine = plugin("why", "mw/llama")
    assert (fine.returncode, fine.stdout[:6]) == (0, "Warm: ")
    history = plugin("history", "llama")
    assert re.search(r"^1 +r-[0-9a-f]{32} +in use ", history.stdout, re.MULTILINE), history
    harness.plane.kubectl("create", "clusterrolebinding", f"{harness.namespace}-person", "--clusterrole=tonnage-view",
                          f"--serviceaccount={harness.namespace}:person")  # fmt: skip
    listed = plugin("nodes", namespaced=False)
    assert re.search(rf"^({one}|{other}) +Memory .* NodeReady$", listed.stdout, re.MULTILINE), listed
    assert "Ready" in plugin("nodes", one, namespaced=False).stdout + plugin("nodes", other, namespaced=False).stdout
    completed = subprocess.run(
        [plugin.command()[0], "__complete", "tonnage", "status", "-n", harness.namespace, ""],
        env=plugin.environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "llama" in completed.stdout.splitlines()

    harness.plane.kubectl("delete", "rolebinding", "person-view", "-n", harness.namespace)
    run_the_commands_of_the_guide(plugin)


def run_the_commands_of_the_guide(plugin: Plugin) -> None:
    """Runs them for the model of the test."""
    for line in re.findall(r"^\$ kubectl tonnage (.*)$", GUIDE, re.MULTILINE):
        words = (
            line.replace("llama-70b", "llama").replace("-n serving", "").replace("vllm-7d9c5-x2x9p", "mw/llama").split()
        )
        alone = {"-A", "nodes", "completion"}.intersection(words)
        done = plugin(*words, namespaced=not alone)
        assert done.returncode == 0, (line, done)


def set_loader(harness: OperatorHarness, name: str, state: dict[str, Any], **more: Any) -> None:
    """Sets the status of a pod's loader, as a kubelet would."""
    loader = {"name": names.LOADER_CONTAINER, "ready": False, "restartCount": 2, "image": "i", "imageID": "", **more}
    status = {"phase": "Pending", "initContainerStatuses": [{**loader, "state": state}]}
    path = f"/api/v1/namespaces/{harness.namespace}/pods/{name}/status"
    harness.plane.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")


@pytest.mark.timeout(240)
def test_a_viewer_learns_why_a_pod_waits_has_failed_or_was_never_created(
    plugin: Plugin, harness: OperatorHarness, webhook: WebhookThread
) -> None:
    del webhook
    missing = plugin("why", "nothing-there")
    assert (missing.returncode, 'pods "nothing-there" not found' in missing.stderr) == (3, True)

    template = pod_template({names.MODEL: "absent"})
    body = {
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "vllm", "namespace": harness.namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": template},
    }  # fmt: skip
    harness.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    eventually(lambda: plugin("why", "vllm").returncode == 1)
    denied = plugin("why", "vllm")
    assert denied.stdout.startswith("PodNotCreated: The pods of ReplicaSet")
    assert "absent" in denied.stdout
    harness.plane.kubectl("delete", "replicaset", "vllm", "-n", harness.namespace)

    create_resolved_model(harness)
    pod = create_pod(harness)["metadata"]["name"]
    eventually(lambda: plugin("why", pod).stdout.startswith("LoaderUnschedulable"))
    unplaced = plugin("why", pod)
    assert "nodes available" in unplaced.stdout

    node = harness.add_nodes("a")[0]
    eventually(
        lambda: harness.plane.request("GET", f"/api/v1/namespaces/{harness.namespace}/pods/{pod}")["spec"].get(
            "nodeName"
        )
    )
    set_loader(harness, pod, {"waiting": {"reason": "ContainerCreating"}})
    starting = plugin("why", pod)
    assert starting.stdout.startswith("Container")
    assert 'cannot get resource "nodecaches"' in starting.stdout
    report = contract.Report(
        outcome=contract.Outcome.FAILED, reason=Reason.TLS_VERIFICATION_FAILED, message="No\x1b[2J CA."
    )
    ended = {"exitCode": 14, "reason": "Error", "message": contract.encode_report(report).decode()}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    set_loader(harness, pod, waiting, lastState={"terminated": ended})
    broken = plugin("why", f"pod/{pod}")
    assert broken.returncode == 1
    assert broken.stdout.startswith(
        f"TLSVerificationFailed: The loader of pod {harness.namespace}/{pod} on {node} failed"
    )
    assert "\x1b" not in broken.stdout
    assert "→ Set caBundle" in broken.stdout
    as_json = json.loads(plugin("why", pod, "-o", "json").stdout)
    assert (as_json["reason"], as_json["fine"]) == ("TLSVerificationFailed", False)

    plain = create_pod(harness, {})["metadata"]["name"]
    assert plugin("why", plain).returncode == 0


def test_without_a_usable_cluster_it_names_what_to_set(plugin: Plugin, tmp_path: Path) -> None:
    absent = plugin("status", "--kubeconfig", str(tmp_path / "absent"))
    assert (absent.returncode, "no usable kubeconfig" in absent.stderr) == (3, True)
    credentials.write_kubeconfig(tmp_path / "closed", url="https://127.0.0.1:1", ca_file=tmp_path / "ca", token="t")
    closed = plugin("status", "--kubeconfig", str(tmp_path / "closed"))
    assert closed.returncode == 3
    assert "Traceback" not in closed.stderr
    help_text = plugin("--help", namespaced=False).stdout
    assert "kubectl tonnage why" in help_text
