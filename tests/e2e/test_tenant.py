"""A tenant with the role ``edit`` in its namespace tries what a security review found, beside a victim that goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from e2e_support.helm_release import NAMESPACE
from e2e_support.kube_client import ApiError, KubeClient
from e2e_support.namespace import Namespace
from e2e_support.pods import PYTHON, Pod, server_pod
from support.waiting import eventually
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Model

Object = dict[str, Any]

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"
GUARDED = {"tonnage.dev/policy": "enforce"}
PASSWORD = "hunter2-of-the-database"
LOADER, HOLDER = names.LOADER_CONTAINER, names.HOLDER_CONTAINER

SEND_REVIEWS = """
import json, socket, ssl, sys, urllib.error, urllib.request

context = ssl._create_unverified_context()
stalled = [socket.create_connection((sys.argv[1], 443), timeout=5) for _ in range(200)]
pod = {"metadata": {"name": "x", "annotations": {"tonnage.dev/model": sys.argv[2]}}, "spec": {"containers": []}}
request = {"uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": sys.argv[3], "object": pod}
for path in ("/inject", "/consent", "/inject/" + 64 * "0"):
    data = json.dumps({"request": request}).encode()
    try:
        with urllib.request.urlopen("https://" + sys.argv[1] + path, data, 10, context=context) as answer:
            print(path[:10], answer.status, answer.read().decode(), flush=True)
    except urllib.error.HTTPError as error:
        print(path[:10], error.code, error.read().decode(), flush=True)
print("asked", flush=True)
"""


@dataclass
class Scene:
    """The victim with a warm model and a running pod, and the tenant with its own client."""

    e2e: E2ECluster
    victim: Namespace
    model: Model
    pod: Pod
    space: Namespace
    api: KubeClient

    def create(self, body: Object) -> Object:
        """Creates an object in the tenant's namespace, with the tenant's rights."""
        body["metadata"]["namespace"] = self.space.name
        return self.api.create(body)

    def refusal(self, body: Object) -> str:
        """Returns why the tenant may not create an object; empty if it may."""
        body["metadata"]["namespace"] = self.space.name
        try:
            self.api.create(body, dryRun="All")
        except ApiError as error:
            return str(error)
        return ""

    def restarts(self) -> list[int]:
        """Returns how often each container of the operator has restarted."""
        pods = [each for component in ("controller", "webhook") for each in self.e2e.release.pods(component)]
        return [each["restartCount"] for pod in pods for each in pod["status"]["containerStatuses"]]


def account(e2e: E2ECluster, namespace: str, name: str, role: Object) -> KubeClient:
    """Creates a ServiceAccount with a role in its namespace, and returns a client with its token."""
    metadata = {"name": name, "namespace": namespace}
    e2e.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", **role}
    binding = {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}
    e2e.api.request("POST", f"{RBAC}/{namespace}/rolebindings", binding)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    token = e2e.api.request("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    return KubeClient(e2e.cluster.kubeconfig, token=token)


pytestmark = pytest.mark.all_options


@pytest.fixture(scope="module")
def scene(e2e: E2ECluster) -> Iterator[Scene]:
    victim = Namespace.create(e2e, "victim", labels=GUARDED)
    model = victim.create_model(spec={"placement": {"prewarm": "AllMatching"}}, wait=False)
    model.wait_for_condition("Warm")
    pod = victim.create_pod()
    pod.wait_ready()
    space = Namespace.create(e2e, "evil", labels=GUARDED)
    api = account(e2e, space.name, "tenant", {"kind": "ClusterRole", "name": "edit"})
    made = Scene(e2e, victim, model, pod, space, api)
    eventually(lambda: made.refusal(plain(hostIPC=True)), timeout=60)
    before = made.restarts()
    yield made
    after = made.restarts()
    victim.delete()
    space.delete()
    assert after == before, "the operator has restarted"


def plain(name: str = "attempt", **spec: Any) -> Object:
    container = {"name": "server", "image": "none", "imagePullPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], **spec}}


def job(scene: Scene, name: str, role: str, **annotations: str) -> Object:
    """Returns a Job that looks like the operator's about the victim's object, but for its signature."""
    labels = {names.MANAGED_BY: names.MANAGER, names.ROLE: role, names.MODEL_UID: scene.model.get()["metadata"]["uid"]}
    template = {"metadata": {"labels": labels}, "spec": {**plain()["spec"], "restartPolicy": "Never"}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"suspend": True, "template": template},
    }


def ignored(scene: Scene, name: str) -> str:
    """Returns the message of the event ``Ignored`` on an object of the tenant, as the tenant sees it."""
    found = scene.api.list("Event", scene.space.name)
    messages = [each["message"] for each in found if each["involvedObject"]["name"] == name]
    return next((each for each in messages if "ignores" in each), "")


def test_annotations_that_cant_be_read_are_ignored_and_named_to_their_owner(scene: Scene) -> None:
    nested = plain("nested")
    nested["metadata"]["labels"] = {names.ROLE: "x"}
    nested["metadata"]["annotations"] = {names.ENTRIES: '[{"zz":' + "[" * 20_000 + "]" * 20_000 + "}]"}
    scene.create(nested)
    scene.create(job(scene, "attempt", names.ROLE_LOAD, **{names.ATTEMPT: "abc"}))
    assert "can't be read" in eventually(lambda: ignored(scene, "attempt"), timeout=30)


def test_jobs_about_an_object_of_another_namespace_decide_nothing(scene: Scene) -> None:
    about = {names.MODEL_REF: f"{scene.victim.name}/{scene.model.name}", names.ATTEMPT: "99"}
    scene.create(job(scene, "resolve", names.ROLE_RESOLVE, **about, **{names.SOURCE_HASH: "x"}))
    for number in range(4):
        place = {names.NODE: scene.e2e.node, names.MEDIUM: "Memory", names.CACHE_KEY: scene.model.revision}
        scene.create(job(scene, f"load-{number}", names.ROLE_LOAD, **about, **place))
    assert "signature" in eventually(lambda: ignored(scene, "resolve"), timeout=30)


def test_entries_that_a_pod_invents_reach_no_record_and_no_job(scene: Scene) -> None:
    keys = [*(f"r-{number:032x}" for number in range(1001)), "../../etc", f"{scene.victim.name}/{scene.model.revision}"]
    held = [{"container": LOADER, "namespace": "victim", "name": "llama", "uid": "u", "revision": "r-1", "key": each,
             "bytes": 10**30} for each in keys]  # fmt: skip
    pod = plain("invented", nodeName=scene.e2e.node)
    pod["metadata"]["labels"] = {names.ROLE: names.ROLE_INJECTED}
    pod["metadata"]["annotations"] = {names.ENTRIES: json.dumps(held), names.INJECTED: "1"}
    scene.create(pod)
    assert "did not admit it" in eventually(lambda: ignored(scene, "invented"), timeout=30)
    scene.api.delete("Pod", "invented", scene.space.name, grace_period=0)
    entries = scene.e2e.api.get("NodeCache", scene.e2e.node)["status"]["entries"]
    assert not [each for each in entries if each["name"] in keys[:-1]]
    assert ".." not in json.dumps(scene.e2e.api.list("Job", NAMESPACE))


def test_a_secret_that_is_no_list_of_urls_is_not_repeated(scene: Scene) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"password": PASSWORD}}
    scene.create(secret)
    source = {"http": {"urlsFrom": {"name": "db", "key": "password"}}}
    scene.create({"apiVersion": names.API_VERSION, "kind": names.MODEL_WEIGHTS_KIND, "metadata": {"name": "urls"},
                  "spec": {"source": source}})  # fmt: skip
    scene.api.wait_for(
        "ModelWeights", "urls", scene.space.name, lambda body: "failed" in str(body.get("status")) or "False" in
        str((body.get("status") or {}).get("conditions")), timeout=90,
    )  # fmt: skip
    eventually(lambda: "line 1" in json.dumps(scene.api.get("ModelWeights", "urls", scene.space.name)), timeout=60)
    shown = [scene.api.get("ModelWeights", "urls", scene.space.name), *scene.api.list("Event", scene.space.name)]
    assert PASSWORD not in json.dumps(shown)
    assert "hunter2" not in json.dumps([each["status"] for each in scene.api.list("Pod", scene.space.name)])


def test_an_author_without_a_right_to_a_secret_cant_have_loaders_use_it(scene: Scene) -> None:
    role = {"metadata": {"name": "author"}, "rules": [
        {"apiGroups": ["tonnage.dev"], "resources": ["modelweights"], "verbs": ["create"]}]}  # fmt: skip
    scene.e2e.api.request("POST", f"{RBAC}/{scene.space.name}/roles", role)
    author = account(scene.e2e, scene.space.name, "author", {"kind": "Role", "name": "author"})
    spec = {"source": {"s3": {"bucket": "models", "prefix": "x/"}}, "credentials": {"secretRef": {"name": "s3-reader"}}}
    body = {"apiVersion": names.API_VERSION, "kind": names.MODEL_WEIGHTS_KIND, "spec": spec,
            "metadata": {"name": "borrowed", "namespace": scene.space.name}}  # fmt: skip
    with pytest.raises(ApiError, match="may not use secrets/s3-reader"):
        author.create(body)


def test_a_model_of_another_namespace_is_as_if_it_did_not_exist(scene: Scene) -> None:
    pod = plain()
    for name in (scene.model.name, "absent"):
        pod["metadata"]["annotations"] = {names.MODEL: f"{scene.victim.name}/{name}"}
        assert f"ModelWeights {scene.victim.name}/{name} does not exist, or" in scene.refusal(pod)


def test_a_pod_gets_no_answer_to_reviews_and_its_stalled_connections_delay_no_pod(scene: Scene) -> None:
    address = scene.e2e.api.get("Service", "tonnage-webhook", NAMESPACE)["spec"]["clusterIP"]
    body = server_pod("asks", scene.space.name, scene.e2e.images.loader, annotations={}, script=SEND_REVIEWS)
    container = body["spec"]["containers"][0]
    container["command"] += [address, f"{scene.victim.name}/{scene.model.name}", scene.victim.name]
    container["command"][0] = PYTHON
    body["spec"]["restartPolicy"] = "Never"
    scene.create(body)
    pod = Pod(scene.e2e, "asks", scene.space.name)
    pod.wait_for(lambda found: found["status"]["phase"] in {"Succeeded", "Failed"}, description="its end")
    lines = pod.logs().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("/")] == ["403", "403", "403"], lines
    assert "asked" in lines
    assert scene.e2e.bucket not in pod.logs()


def host_path(path: str, **mount: Any) -> Object:
    pod = plain(volumes=[{"name": "own", "hostPath": {"path": path}}])
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "own", "mountPath": "/host", **mount}]
    return pod


def handwritten(scene: Scene, path: str, **container: Any) -> Object:
    """Returns a pod with a loader that the tenant wrote itself, for an entry at ``path``."""
    entry = path.rpartition("/")[2]
    plan = {"schema_version": 1, "sources": [{"kind": "http", "urls": ["http://evil/x.tensors"]}], "entry": entry,
            "expected_digest": f"sha256:{entry[2:]}{32 * '0'}"}  # fmt: skip
    loader = {
        "name": LOADER,
        "image": scene.e2e.images.loader,
        "command": ["tonnage"],
        "args": ["load", "--cache", "/cache"],
        "env": [{"name": "TONNAGE_PLAN", "value": json.dumps(plan, separators=(",", ":"))}],
        "volumeMounts": [{"name": "own", "mountPath": f"/cache/{entry}"}],
        **container,
    }
    return plain(volumes=[{"name": "own", "hostPath": {"path": path}}], initContainers=[loader])


def privileged(_: Scene) -> Object:
    pod = plain()
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    return pod


PODS: dict[str, tuple[Callable[[Scene], Object], str]] = {
    "the node's /dev/shm": (lambda _: plain(hostIPC=True), "namespaces and ports of the host"),
    "the node's processes": (lambda _: plain(hostPID=True), "namespaces and ports of the host"),
    "a privileged container": (privileged, "beyond baseline"),
    "the whole cache": (lambda _: host_path("/dev/shm/tonnage"), "Host paths other than"),
    "the victim's entry, read-only": (
        lambda scene: host_path(f"/dev/shm/tonnage/victim/{scene.model.revision}", subPath="model", readOnly=True),
        "Host paths other than",
    ),
    "the victim's entry, in a handwritten loader": (
        lambda scene: handwritten(scene, f"/dev/shm/tonnage/victim/{scene.model.revision}"),
        "Host paths other than",
    ),
    "a handwritten loader with a shell": (
        lambda scene: handwritten(scene, f"/dev/shm/tonnage/evil/r-{32 * '1'}", command=["sh"]),
        "runs Tonnage's command and nothing else",
    ),
    "a handwritten loader with a handler": (
        lambda scene: handwritten(
            scene,
            f"/dev/shm/tonnage/evil/r-{32 * '1'}",
            lifecycle={"postStart": {"exec": {"command": ["sh"]}}},
            restartPolicy="Always",
        ),
        "no lifecycle handlers",
    ),
    "a handwritten loader with a library of its own": (
        lambda scene: handwritten(
            scene,
            f"/dev/shm/tonnage/evil/r-{32 * '1'}",
            env=[{"name": "TONNAGE_PLAN", "value": "{}"}, {"name": "LD_PRELOAD", "value": "/x.so"}],
        ),
        "environment variables",
    ),
    "a handwritten loader of another entry than its plan's": (
        lambda scene: handwritten(
            scene,
            f"/dev/shm/tonnage/evil/r-{32 * '1'}",
            env=[{"name": "TONNAGE_PLAN", "value": '{"entry":"r-2","expected_digest":"sha256:2"}'}],
        ),
        "plan of a loader names the entry",
    ),
}


@pytest.mark.parametrize("case", PODS)
def test_the_policies_deny(scene: Scene, case: str) -> None:
    build, message = PODS[case]
    assert message in scene.refusal(build(scene))


def test_a_handwritten_loader_of_the_tenants_own_entry_is_what_remains(scene: Scene) -> None:
    assert scene.refusal(handwritten(scene, f"/dev/shm/tonnage/evil/r-{32 * '1'}")) == ""


@pytest.mark.parametrize("verb", ["exec", "attach"])
def test_a_shell_in_a_holder_is_denied_even_in_the_tenants_own_pod(scene: Scene, verb: str) -> None:
    if scene.api.get_or_none("ModelWeights", "llama", scene.space.name) is None:
        scene.space.create_model()
        scene.space.create_pod("own").wait_ready()
    path = f"/api/v1/namespaces/{scene.space.name}/pods/own/{verb}"
    with pytest.raises(ApiError) as caught:
        scene.api.request("POST", path, container=HOLDER, command="sh", stdin="true")
    assert "denied" in str(caught.value)
    assert "loader" in str(caught.value)


def test_the_victim_went_on_meanwhile(scene: Scene) -> None:
    """Runs last: its model is warm, of the same revision, and pods start from it."""
    revision = scene.model.revision
    scene.model.wait_for_condition("Warm")
    assert scene.model.revision == revision
    assert sorted(scene.model.visible_files()) == sorted(scene.pod.exec("ls", "/models/llama").split())
    pod = scene.victim.create_pod()
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.HIT
    assert scene.pod.restart_count("server") == 0
    model = scene.victim.create_model("later")
    model.wait_for_condition("Resolved")
