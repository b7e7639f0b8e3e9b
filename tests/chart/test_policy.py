"""The chart's policies on a real API server: a tenant with the role ``edit`` tries each way around a loader."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from chart_support.helm import Helm, find_one
from operator_support import objects
from operator_support.injection import annotated_pod, resolved_modelweights
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.domain.admission import inject, injected_model
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.specs import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from operator_support.control_plane import ControlPlane

Pod = dict[str, Any]
TENANT = "tenant"
EXAMPLE = "r-3f9c2a71b0de"
CA_BUNDLE = "-----BEGIN CERTIFICATE-----\nbWFkZSBmb3IgYSB0ZXN0\n-----END CERTIFICATE-----\n"
ARTIFACTS = f"a-{'0' * 32}"


class Guarded:
    """A namespace to which the policies apply, and in which a tenant has the role ``edit``."""

    def __init__(self, helm: Helm, plane: ControlPlane, namespace: str, sharing: str) -> None:
        self.plane, self.namespace = plane, namespace
        values = {"policy": {"enabled": True}, "cache": {"sharing": sharing}, "loader": {"caBundle": CA_BUNDLE}}
        rendered = helm.template(values)
        text = find_one(rendered, "ConfigMap")["data"]["installation.yaml"]
        self.installation = Installation.model_validate(yaml.safe_load(text))
        policies = [each for each in rendered if each["kind"].startswith("ValidatingAdmissionPolicy")]
        self.policies = json.dumps({"apiVersion": "v1", "kind": "List", "items": policies})
        plane.kubectl("create", "namespace", namespace)
        plane.kubectl("label", "namespace", namespace, "tonnage.dev/policy=enforce")
        plane.kubectl("create", "rolebinding", TENANT, "--clusterrole=edit", f"--user={TENANT}", "-n", namespace)
        # The role edit does not have this subresource, but who debugs pods has.
        verbs, resource = "--verb=get,patch", "--resource=pods/ephemeralcontainers"
        plane.kubectl("create", "role", "debug", verbs, resource, "-n", namespace)
        plane.kubectl("create", "rolebinding", "debug", "--role=debug", f"--user={TENANT}", "-n", namespace)
        plane.kubectl("create", "serviceaccount", "default", "-n", namespace, check=False)

    def injected(self, annotations: dict[str, str] | None = None) -> Pod:
        """Returns a pod as the webhook injects it."""
        weights = resolved_modelweights({"credentials": {"secretRef": {"name": "s3"}}}, namespace=self.namespace)
        pod = annotated_pod({names.MODEL: "llama", **(annotations or {})})
        del pod["metadata"]["namespace"]
        request = parse_annotations(pod["metadata"]["annotations"], namespace=self.namespace)
        model = injected_model.resolve_injected_model(request.models[0], weights, ())
        return inject.inject(pod, (model,), request, self.installation)

    def of_job(self, *, load: bool) -> Pod:
        """Returns the pod of a load or resolve Job."""
        weights = resolved_modelweights(namespace=self.namespace)
        assert weights.status.resolved
        if load:
            node = parse_node(objects.node("n"))
            job = jobs.build_load_job(weights, weights.status.resolved, self.installation, node=node, attempt=1)
        else:
            job = jobs.build_resolve_job(weights, self.installation, round_="", attempt=1)
        template = job["spec"]["template"]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "generateName": "job-"},
            "spec": template["spec"],
        }

    def kubectl(self, *arguments: str, body: Pod | None = None) -> str:
        """Runs kubectl as the tenant; returns standard error, which is empty after a success."""
        done = self.plane.kubectl(
            *arguments, "-n", self.namespace, f"--as={TENANT}",
            stdin=json.dumps(body) if body else None, check=False,
        )  # fmt: skip
        return done.stderr if done.returncode else ""

    def rejection(self, pod: Pod) -> str:
        """Returns the message with which a pod is rejected; empty if it is admitted."""
        path = f"/api/v1/namespaces/{self.namespace}/pods?dryRun=All&fieldValidation=Strict"
        return self.plane.refusal("POST", path, pod, user=TENANT)


@pytest.fixture(scope="module", params=["Namespace", "Cluster"])
def guarded(helm: Helm, plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    made = Guarded(helm, plane, f"guarded-{request.param.lower()}", request.param)
    plane.kubectl("apply", "-f", "-", stdin=made.policies)
    privileged = copy.deepcopy(plain())
    privileged["spec"]["hostIPC"] = True
    eventually(lambda: made.rejection(privileged), timeout=30)
    yield made
    plane.kubectl("delete", "-f", "-", stdin=made.policies)
    # The next policies have the same names, and must not be taken for in force because these still are.
    eventually(lambda: not made.rejection(privileged), timeout=30)


def plain(**spec: Any) -> Pod:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "p-"},
        "spec": {"containers": [{"name": "server", "image": "vllm"}], **spec},
    }


def loader_of(pod: Pod) -> Pod:
    found: Pod = pod["spec"]["initContainers"][0]
    return found


def holder_of(pod: Pod) -> Pod:
    found: Pod = pod["spec"]["containers"][1]
    return found


def server_of(pod: Pod) -> Pod:
    found: Pod = pod["spec"]["containers"][0]
    return found


def host_volume(pod: Pod) -> Pod:
    found: Pod = next(each for each in pod["spec"]["volumes"] if "hostPath" in each)
    return found


def change_plan(pod: Pod, old: str, new: str) -> None:
    plan = next(each for each in loader_of(pod)["env"] if each["name"] == "TONNAGE_PLAN")
    assert old in plan["value"]
    plan["value"] = plan["value"].replace(old, new)


def mount(container: Pod, name: str, path: str, **more: Any) -> None:
    container.setdefault("volumeMounts", []).append({"name": name, "mountPath": path, **more})


def test_pods_that_tonnage_makes_are_admitted(guarded: Guarded) -> None:
    assert guarded.rejection(plain()) == ""
    assert guarded.rejection(guarded.injected()) == ""
    assert guarded.rejection(guarded.injected({names.FORM: "Init"})) == ""
    assert guarded.rejection(guarded.injected({names.ON_FAILURE: "continue"})) == ""
    assert guarded.rejection(guarded.injected({names.ARTIFACTS: "true", names.VLLM_PLUGIN: "true"})) == ""
    assert guarded.rejection(guarded.injected({names.WAIT: "Streaming"})) == ""
    assert guarded.rejection(guarded.of_job(load=True)) == ""
    assert guarded.rejection(guarded.of_job(load=False)) == ""


PLAIN_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "IPC namespace, where the node's /dev/shm is": ({"hostIPC": True}, "namespaces and ports of the host"),
    "PID namespace": ({"hostPID": True}, "namespaces and ports of the host"),
    "network namespace": ({"hostNetwork": True}, "namespaces and ports of the host"),
    "host path": ({"volumes": [{"name": "own", "hostPath": {"path": "/etc"}}]}, "Host paths other than"),
    "the whole cache": ({"volumes": [{"name": "own", "hostPath": {"path": "/dev/shm/tonnage/"}}]}, "Host paths other"),
    "an entry without a loader": (
        {"volumes": [{"name": "own", "hostPath": {"path": "/dev/shm/tonnage/NAMESPACE/r-3f9c2a71b0de"}}]},
        "only beside a loader",
    ),
    "artifacts without a loader": (
        {"volumes": [{"name": "own", "hostPath": {"path": f"/var/lib/tonnage/NAMESPACE/{ARTIFACTS}"}}]},
        "only beside a loader",
    ),
    "artifacts of another namespace": (
        {"volumes": [{"name": "own", "hostPath": {"path": f"/var/lib/tonnage/victim/{ARTIFACTS}"}}]},
        "Host paths other than",
    ),
    "artifacts in memory": (
        {"volumes": [{"name": "own", "hostPath": {"path": f"/dev/shm/tonnage/NAMESPACE/{ARTIFACTS}"}}]},
        "Host paths other than",
    ),
    "an entry of another namespace": (
        {"volumes": [{"name": "own", "hostPath": {"path": "/dev/shm/tonnage/victim/r-3f9c2a71b0de"}}]},
        "Host paths other than",
    ),
}


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_a_pod_without_a_loader_reaches_neither_node_nor_cache(guarded: Guarded, case: str) -> None:
    spec, message = PLAIN_CASES[case]
    pod = json.loads(json.dumps(plain(**spec)).replace("NAMESPACE", guarded.namespace))
    assert message in guarded.rejection(pod)


@pytest.mark.parametrize(
    "settings",
    [
        {"privileged": True},
        {"capabilities": {"add": ["SYS_ADMIN"]}},
        {"capabilities": {"add": ["SYS_PTRACE"]}},
        {"seccompProfile": {"type": "Unconfined"}},
        {"appArmorProfile": {"type": "Unconfined"}},
    ],
)
def test_a_container_has_no_more_rights_than_baseline(guarded: Guarded, settings: Pod) -> None:
    pod = plain()
    server_of(pod)["securityContext"] = settings
    assert "beyond baseline" in guarded.rejection(pod)


def test_a_container_port_of_the_host_is_denied(guarded: Guarded) -> None:
    pod = plain()
    server_of(pod)["ports"] = [{"containerPort": 80, "hostPort": 80}]
    assert "ports of the host" in guarded.rejection(pod)


def _share_processes(pod: Pod) -> None:
    pod["spec"]["shareProcessNamespace"] = True


def _post_start(pod: Pod) -> None:
    loader_of(pod)["restartPolicy"] = "Always"
    loader_of(pod)["lifecycle"] = {"postStart": {"exec": {"command": ["sh", "-c", "id"]}}}


def _liveness(pod: Pod) -> None:
    holder_of(pod)["livenessProbe"] = {"exec": {"command": ["sh", "-c", "id"]}}


def _startup(pod: Pod) -> None:
    holder_of(pod)["startupProbe"] = {"exec": {"command": ["sh", "-c", "id"]}}


def _beside_the_server(pod: Pod) -> None:
    loader_of(pod)["restartPolicy"] = "Always"


def _writing_holder(pod: Pod) -> None:
    (entry,) = [each for each in holder_of(pod)["volumeMounts"] if each["name"] == "tonnage-cache"]
    del entry["readOnly"]


def _other_holder(pod: Pod) -> None:
    holder_of(pod)["args"] = ["load", "--cache", "/cache"]


def _handler_of_the_holder(pod: Pod) -> None:
    holder_of(pod)["lifecycle"] = {"postStart": {"exec": {"command": ["sh", "-c", "id"]}}}


def _image(pod: Pod) -> None:
    loader_of(pod)["image"] = "shell"


def _command(pod: Pod) -> None:
    loader_of(pod)["command"] = ["sh"]


def _other_argument(pod: Pod) -> None:
    loader_of(pod)["args"] = ["load", "--cache", "/cache", "--endpoint-url", "http://evil"]


def _remove(pod: Pod) -> None:
    loader_of(pod)["args"] = ["rm", "--cache", "/cache", loader_of(pod)["volumeMounts"][2]["mountPath"][7:]]


def _variable(pod: Pod) -> None:
    loader_of(pod)["env"].append({"name": "LD_PRELOAD", "value": "/run/tonnage/evil.so"})


def _other_cas(pod: Pod) -> None:
    (ca,) = [each for each in loader_of(pod)["env"] if each["name"] == "TONNAGE_CA_PEM"]
    ca["value"] = ca["value"].replace("bWFkZ", "ZXZpb")


def _ca_from_a_config_map(pod: Pod) -> None:
    (ca,) = [each for each in loader_of(pod)["env"] if each["name"] == "TONNAGE_CA_PEM"]
    del ca["value"]
    ca["valueFrom"] = {"configMapKeyRef": {"name": "own", "key": "ca"}}


def _variables(pod: Pod) -> None:
    loader_of(pod)["envFrom"] = [{"configMapRef": {"name": "own"}}]


def _plan_from_a_config_map(pod: Pod) -> None:
    loader_of(pod)["env"][0] = {
        "name": "TONNAGE_PLAN",
        "valueFrom": {"configMapKeyRef": {"name": "own", "key": "plan"}},
    }


def _plan_without_digest(pod: Pod) -> None:
    change_plan(pod, '"expected_digest"', '"unknown"')


def _plan_of_another_entry(pod: Pod) -> None:
    change_plan(pod, '"entry":"r-', '"entry":"r-0')


def _plan_with_two_digests(pod: Pod) -> None:
    change_plan(pod, '"layout"', '"expected_digest":"sha256:0","layout"')


def _plan_with_escapes(pod: Pod) -> None:
    change_plan(pod, '"layout"', '"expected\\u005fdigest":"sha256:0","layout"')


def _other_mount(pod: Pod) -> None:
    pod["spec"]["volumes"].append({"name": "own", "emptyDir": {}})
    mount(loader_of(pod), "own", "/usr/local/bin")


def _other_entry(pod: Pod) -> None:
    folder = host_volume(pod)["hostPath"]["path"].rpartition("/")[0]
    pod["spec"]["volumes"].append({"name": "own", "hostPath": {"path": f"{folder}/{EXAMPLE}"}})
    mount(loader_of(pod), "own", f"/cache/{EXAMPLE}")


def _swapped_entry(pod: Pod) -> None:
    folder = host_volume(pod)["hostPath"]["path"].rpartition("/")[0]
    host_volume(pod)["hostPath"]["path"] = f"{folder}/{EXAMPLE}"


def _entry_of_another_namespace(pod: Pod) -> None:
    entry = host_volume(pod)["hostPath"]["path"].rpartition("/")[2]
    host_volume(pod)["hostPath"]["path"] = f"/dev/shm/tonnage/victim/{entry}"


def _writable_entry(pod: Pod) -> None:
    mount(server_of(pod), host_volume(pod)["name"], "/entry")


def _whole_entry(pod: Pod) -> None:
    mount(server_of(pod), host_volume(pod)["name"], "/entry", readOnly=True)


def _forged_status(pod: Pod) -> None:
    first = {"name": "first", "image": "shell", "volumeMounts": [{"name": "tonnage-run", "mountPath": "/run"}]}
    pod["spec"]["initContainers"].insert(0, first)
    pod["spec"]["initContainers"].reverse()


def artifacts_volume(pod: Pod) -> Pod:
    found: Pod = next(each for each in pod["spec"]["volumes"] if each["name"].startswith("tonnage-artifacts"))
    return found


def _artifacts_of_another_namespace(pod: Pod) -> None:
    name = artifacts_volume(pod)["hostPath"]["path"].rpartition("/")[2]
    artifacts_volume(pod)["hostPath"]["path"] = f"/var/lib/tonnage/victim/{name}"


def _artifacts_as_an_entry(pod: Pod) -> None:
    path = host_volume(pod)["hostPath"]["path"]
    artifacts_volume(pod)["hostPath"]["path"] = path


def _whole_artifacts(pod: Pod) -> None:
    mount(server_of(pod), artifacts_volume(pod)["name"], "/whole")


def _artifacts_elsewhere_in_the_loader(pod: Pod) -> None:
    mount(loader_of(pod), artifacts_volume(pod)["name"], "/usr/local/bin")


def _artifacts_in_the_holder(pod: Pod) -> None:
    mount(holder_of(pod), artifacts_volume(pod)["name"], "/cache/own")


ARTIFACTS_CASES: dict[Callable[[Pod], None], str] = {
    _artifacts_of_another_namespace: "Host paths other than",
    _artifacts_as_an_entry: "mounted read-only, and model/ or stream/ only",
    _whole_artifacts: "of artifacts, only files/ is mounted",
    _artifacts_elsewhere_in_the_loader: "mounts nothing but its entry",
    _artifacts_in_the_holder: "holder mounts everything read-only",
}


@pytest.mark.parametrize("change", ARTIFACTS_CASES, ids=lambda change: change.__name__.strip("_"))
def test_artifacts_lead_to_nothing_but_their_files(guarded: Guarded, change: Callable[[Pod], None]) -> None:
    pod = guarded.injected({names.ARTIFACTS: "true"})
    change(pod)
    assert ARTIFACTS_CASES[change] in guarded.rejection(pod)


def _without_startup_probe(pod: Pod) -> None:
    del loader_of(pod)["startupProbe"]


def _other_startup_probe(pod: Pod) -> None:
    loader_of(pod)["startupProbe"]["exec"]["command"] = ["true"]


def _other_readiness_probe(pod: Pod) -> None:
    loader_of(pod)["readinessProbe"]["exec"]["command"] = ["sh", "-c", "id"]


def _without_stream(pod: Pod) -> None:
    loader_of(pod)["args"].remove("--stream")


def _other_ready_file(pod: Pod) -> None:
    arguments = loader_of(pod)["args"]
    arguments[arguments.index("/run/tonnage/ready")] = "/run/tonnage/loaded"


STREAMING_CASES = (
    _without_startup_probe, _other_startup_probe, _other_readiness_probe, _without_stream, _other_ready_file,
)  # fmt: skip


@pytest.mark.parametrize("change", STREAMING_CASES, ids=lambda change: change.__name__.strip("_"))
def test_a_pod_starts_before_its_weights_are_loaded_only_when_its_loader_lets_it(
    guarded: Guarded, change: Callable[[Pod], None]
) -> None:
    pod = guarded.injected({names.WAIT: "Streaming"})
    change(pod)
    assert "or streams and lets them start" in guarded.rejection(pod)


LOADER_CASES: dict[Callable[[Pod], None], str] = {
    _share_processes: "can't share the processes",
    _post_start: "no lifecycle handlers",
    _liveness: "no lifecycle handlers",
    _startup: "no lifecycle handlers",
    _beside_the_server: "no lifecycle handlers",
    _writing_holder: "holder mounts everything read-only",
    _other_holder: "runs Tonnage's command and nothing else",
    _handler_of_the_holder: "no lifecycle handlers",
    _image: "runs Tonnage's command and nothing else",
    _command: "runs Tonnage's command and nothing else",
    _other_argument: "runs Tonnage's command and nothing else",
    _remove: "mounts one entry",
    _variable: "environment variables",
    _other_cas: "environment variables",
    _ca_from_a_config_map: "environment variables",
    _variables: "environment variables",
    _plan_from_a_config_map: "environment variables",
    _plan_without_digest: "plan of a loader",
    _plan_of_another_entry: "plan of a loader",
    _plan_with_two_digests: "plan of a loader",
    _plan_with_escapes: "plan of a loader",
    _other_mount: "nothing but its entry",
    _other_entry: "mounts one entry",
    _swapped_entry: "mounts one entry",
    _entry_of_another_namespace: "Host paths other than",
    _writable_entry: "mounted read-only",
    _whole_entry: "mounted read-only",
    _forged_status: "volumes of a loader",
}


@pytest.mark.parametrize("change", LOADER_CASES, ids=lambda change: change.__name__.strip("_"))
def test_a_loader_that_is_not_as_tonnage_makes_it_is_denied(guarded: Guarded, change: Callable[[Pod], None]) -> None:
    pod = guarded.injected()
    change(pod)
    assert LOADER_CASES[change] in guarded.rejection(pod)


def _host_aliases(pod: Pod) -> None:
    pod["spec"]["hostAliases"] = [{"ip": "10.0.0.1", "hostnames": ["s3"]}]


def _plain_http(pod: Pod) -> None:
    change_plan(pod, "https://s3", "http://s3")


def _own_ca(pod: Pod) -> None:
    change_plan(pod, '"bucket"', '"ca_bundle":"/var/run/secrets/tonnage.dev/ca.crt","bucket"')


def _continue(pod: Pod) -> None:
    loader_of(pod)["args"] += ["--on-failure", "continue"]


def _read_before_the_check(pod: Pod) -> None:
    reader = {"name": "first", "image": "shell"}
    mount(reader, host_volume(pod)["name"], "/entry", readOnly=True, subPath="model")
    pod["spec"]["initContainers"].insert(0, reader)
    pod["spec"]["initContainers"].reverse()


@pytest.mark.parametrize(
    "change", [_host_aliases, _plain_http, _own_ca, _continue, _read_before_the_check],
    ids=lambda change: change.__name__.strip("_"),
)  # fmt: skip
def test_a_shared_entry_is_loaded_only_from_a_proven_store(guarded: Guarded, change: Callable[[Pod], None]) -> None:
    pod = guarded.injected()
    change(pod)
    if guarded.installation.sharing.value == "Cluster":
        assert "a store that TLS proves" in guarded.rejection(pod)
    else:
        assert guarded.rejection(pod) == ""


def test_a_running_loader_can_neither_be_replaced_nor_joined(guarded: Guarded) -> None:
    pod = guarded.injected()
    del pod["metadata"]["generateName"]
    pod["metadata"]["name"] = "server"
    assert guarded.kubectl("create", "-f", "-", body=pod) == ""
    patch = json.dumps({"spec": {"initContainers": [{"name": "tonnage-loader", "image": "shell"}]}})
    assert "runs Tonnage's command" in guarded.kubectl("patch", "pod", "server", "-p", patch)
    for debug in (
        {"name": "debug", "image": "shell", "targetContainerName": "tonnage-loader"},
        {"name": "debug", "image": "shell", "volumeMounts": [{"name": "tonnage-cache", "mountPath": "/entry"}]},
        {"name": "debug", "image": "shell", "securityContext": {"privileged": True}},
    ):
        patch = json.dumps({"spec": {"ephemeralContainers": [debug]}})
        message = guarded.kubectl("patch", "pod", "server", "--subresource=ephemeralcontainers", "-p", patch)
        assert "Ephemeral containers can't" in message or "beyond baseline" in message
    patch = json.dumps({"spec": {"ephemeralContainers": [{"name": "debug", "image": "shell"}]}})
    assert guarded.kubectl("patch", "pod", "server", "--subresource=ephemeralcontainers", "-p", patch) == ""
    assert guarded.kubectl("label", "pod", "server", "app=llama") == ""


@pytest.mark.parametrize("command", ["exec", "attach"])
def test_no_user_gets_into_a_loader(guarded: Guarded, command: str) -> None:
    path = f"/api/v1/namespaces/{guarded.namespace}/pods/absent/{command}"
    query = "?stdout=true&command=id" if command == "exec" else "?stdout=true"
    for container in ("tonnage-loader", "tonnage-loader-draft", "tonnage-hold", ""):
        suffix = f"&container={container}" if container else ""
        message = guarded.plane.refusal("POST", f"{path}{query}{suffix}", {"kind": "Options"}, user=TENANT)
        assert "other than a loader" in message
    message = guarded.plane.refusal("POST", f"{path}{query}&container=server", {"kind": "Options"}, user=TENANT)
    assert "not found" in message, "the policy lets it pass, and there is no such pod"
