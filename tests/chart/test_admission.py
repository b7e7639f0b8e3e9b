"""A real API server accepts the objects of every combination of values: schema, validation, Pod Security."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from chart_support import third_party_crds
from chart_support.helm import NAMESPACE, Helm, HelmError, Object, pod_template
from chart_support.variants import VARIANTS
from support.load_harness import KEY, LoadHarness
from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir, make_tensors, to_tensors_file
from support.repository import ROOT
from support.tonnage_cli import run_tonnage
from support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from support.faulty_server import FaultyServer

LEVEL = "pod-security.kubernetes.io"


@pytest.fixture(scope="module")
def restricted(plane: ControlPlane) -> str:
    """A namespace that enforces the restricted profile."""
    labels = {f"{LEVEL}/enforce": "restricted", f"{LEVEL}/warn": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "restricted", "labels": labels}}
    plane.request("POST", "/api/v1/namespaces", body)
    return "restricted"


@pytest.fixture(scope="module")
def other_operators(plane: ControlPlane, third_party_crd_files: list[Path]) -> None:
    """CRDs of cert-manager, the Prometheus operator and KServe, and a namespace ``monitoring``."""
    plane.kubectl("create", "namespace", "monitoring")
    crds = third_party_crds.load_crds(third_party_crd_files)
    names = [f"crd/{each['metadata']['name']}" for each in crds]
    plane.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": crds}))
    plane.kubectl("wait", "--for=condition=Established", "--timeout=20s", *names)


@pytest.fixture(scope="module")
def accepted() -> set[str]:
    """The objects, as JSON, that the API server has accepted: most are the same with many values, above all CRDs."""
    return set()


@pytest.fixture
def harness(faulty_server: FaultyServer, tmp_path: Path) -> LoadHarness:
    """A model on an S3 server, and a place for a volume."""
    tensors = make_tensors()
    file = to_tensors_file(tensors)
    faulty_server.put(KEY, file)
    faulty_server.put("bucket/model/config.json", CONFIG)
    (tmp_path / "volume").mkdir()
    return LoadHarness(faulty_server, tmp_path / "volume", tensors, file)


@pytest.mark.usefixtures("other_operators")
def test_kserve_calls_the_loader_of_the_example_and_gets_the_model(plane: ControlPlane, harness: LoadHarness) -> None:
    """The API server merges the container as KServe does: strategically, into the one that has only arguments."""
    example = yaml.safe_load((ROOT / "examples" / "kserve" / "storage-container.yaml").read_text())
    assert not _dry_run(plane, [example])
    folder = harness.cache / "mnt" / "models"
    initializer = {
        "name": "storage-initializer",
        "image": "kserve/storage-initializer:v0.17.0",
        "args": ["s3://bucket/model", str(folder)],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "env": [
            {"name": "S3_ENDPOINT", "value": harness.server.endpoint.removeprefix("http://")},
            {"name": "S3_USE_HTTPS", "value": "0"},
            {"name": "AWS_ENDPOINT_URL", "value": harness.server.endpoint},
            {"name": "awsAnonymousCredential", "value": "true"},
            {"name": "AWS_DEFAULT_REGION", "value": "us-east-1"},
        ],
        "volumeMounts": [{"name": "kserve-provision-location", "mountPath": str(folder)}],
    }
    pod = {
        "initContainers": [initializer],
        "containers": [{"name": "kserve-container", "image": "example.com/engine"}],
        "volumes": [{"name": "kserve-provision-location", "emptyDir": {}}],
    }
    labels = {"app": "kserve-example"}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "kserve-example", "namespace": "default"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels},
                 "template": {"metadata": {"labels": labels}, "spec": pod}},
    }  # fmt: skip
    plane.kubectl("create", "-f", "-", stdin=json.dumps(deployment))
    try:
        patch = {"spec": {"template": {"spec": {"initContainers": [example["spec"]["container"]]}}}}
        merged = plane.kubectl(
            "patch", "deployment", "kserve-example", "--type=strategic", "-o=json", "-p", json.dumps(patch)
        )
    finally:
        plane.kubectl("delete", "deployment", "kserve-example")
    (container,) = json.loads(merged.stdout)["spec"]["template"]["spec"]["initContainers"]
    assert container["args"] == initializer["args"]
    assert container["command"][0] == "tonnage"
    variables = {each["name"]: each["value"] for each in container["env"]}
    log = harness.cache / "termination-log"
    log.touch()
    variables["TONNAGE_TERMINATION_LOG"] = str(log)
    done = run_tonnage(*container["command"][1:], *container["args"], environment=variables)
    assert done.returncode == 0, done.output
    assert_tensors_equal(load_safetensors_dir(folder), harness.tensors)
    assert (folder / "config.json").read_bytes() == CONFIG
    assert json.loads(log.read_text())["path"] == str(folder)


def _dry_run(plane: ControlPlane, objects: list[Object]) -> str:
    done = plane.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


NEEDED_BY_PEERS = {
    "peers": {"restricted volume types"},
    "peers on the host": {"restricted volume types", "host namespaces", "hostPort", "seLinuxOptions"},
}
"""What of the restricted profile a variant's peers violate, by the API server's words: they read the nodes' caches."""


@pytest.mark.usefixtures("other_operators")
@pytest.mark.parametrize("name", VARIANTS)
def test_the_api_server_accepts_every_object_without_warnings(
    helm: Helm, plane: ControlPlane, restricted: str, accepted: set[str], name: str
) -> None:
    objects = helm.template(VARIANTS[name], namespace=restricted)
    # Bare pods are tested below: their ServiceAccount does not exist in a dry run.
    tried = {json.dumps(body) for body in objects if body["kind"] not in {"Pod", "DaemonSet"}} - accepted
    assert not _dry_run(plane, [json.loads(each) for each in sorted(tried)])
    accepted |= tried
    peers = [body for body in objects if body["kind"] == "DaemonSet"]
    warnings = _dry_run(plane, peers) if peers else ""
    assert set(re.findall(r"[:,] ([a-zA-Z ]+) \(", warnings)) == NEEDED_BY_PEERS.get(name, set())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pod_is_in_the_restricted_profile(helm: Helm, plane: ControlPlane, restricted: str, name: str) -> None:
    objects = helm.template(VARIANTS[name], namespace=restricted)
    pods: list[Object] = []
    for body in objects:
        if body["kind"] != "DaemonSet" and (template := pod_template(body)):
            spec = dict(template["spec"])
            spec.pop("serviceAccountName")  # it does not exist in a dry run
            spec.pop("priorityClassName", None)
            metadata = {**template["metadata"], "name": body["metadata"]["name"], "namespace": restricted}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    assert len(pods) >= 3
    assert not _dry_run(plane, pods)
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["limits"]["memory"]
        assert "hostPath" not in str(pod["spec"].get("volumes"))


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_namespace_that_forbids_host_paths_is_rejected_with_a_remedy(
    helm_with_cluster: Helm, plane: ControlPlane, level: str
) -> None:
    plane.kubectl("create", "namespace", NAMESPACE, check=False)
    plane.kubectl("label", "namespace", NAMESPACE, f"{LEVEL}/enforce={level}")
    try:
        with pytest.raises(HelmError, match=f"enforces the {level} Pod Security level, which forbids host paths"):
            helm_with_cluster.install()
        helm_with_cluster.install(VARIANTS["no host paths"], "--dry-run=server")
    finally:
        plane.kubectl("label", "namespace", NAMESPACE, f"{LEVEL}/enforce-")


def _may(plane: ControlPlane, account: str, verb: str, resource: str, group: str = "") -> bool:
    """Returns whether a ServiceAccount of the chart has a permission in all namespaces."""
    plural, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
    user = f"system:serviceaccount:{NAMESPACE}:tonnage-{account}"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    allowed: bool = answer["status"]["allowed"]
    return allowed


def test_no_account_may_read_secrets_or_write_nodes(helm_with_cluster: Helm, plane: ControlPlane) -> None:
    helm_with_cluster.install()
    eventually(lambda: _may(plane, "controller", "list", "pods"))
    assert _may(plane, "webhook", "get", "modelweights", "tonnage.dev")
    for account in ("controller", "webhook", "cleanup"):
        for verb in ("get", "list", "watch"):
            assert not _may(plane, account, verb, "secrets"), account
        for verb, resource in (("patch", "nodes"), ("create", "pods"), ("get", "pods/log"), ("create", "pods/exec")):
            assert not _may(plane, account, verb, resource), (account, verb, resource)


def test_users_with_the_edit_role_may_write_models(helm_with_cluster: Helm, plane: ControlPlane) -> None:
    helm_with_cluster.install()

    def may(role: str, verb: str) -> bool:
        rules: list[dict[str, Any]] = plane.request("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}")[
            "rules"
        ]
        return any(verb in rule["verbs"] for rule in rules if "modelweights" in rule.get("resources", ()))

    def aggregated() -> bool:
        return may("edit", "create") and may("admin", "delete") and may("view", "list")

    eventually(aggregated)
    assert not may("view", "create")
