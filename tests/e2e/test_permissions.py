"""Injected pods and loaders have no more permissions than needed, and models only permitted readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from e2e_support.kube_client import ApiError, KubeClient
from e2e_support.namespace import READER_SECRET, Namespace
from tonnage.contract import Outcome, decode_report
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.pods import Pod

Object = dict[str, Any]

LOADER, HOLDER = names.LOADER_CONTAINER, names.HOLDER_CONTAINER
OPEN = {"access": {"allowedNamespaces": {"from": "All"}}}


@pytest.fixture(scope="module")
def serving_pod(e2e: E2ECluster) -> Iterator[Pod]:
    """A serving pod whose own containers have an API token, as by default."""
    namespace = Namespace.create(e2e, "permissions")
    namespace.create_model()
    pod = namespace.create_pod(automountServiceAccountToken=True)
    pod.wait_ready()
    yield pod
    namespace.delete()


@pytest.fixture
def loading_pod(namespace: Namespace, e2e: E2ECluster) -> Iterator[Pod]:
    """A pod whose loader runs until the test ends."""
    with namespace.create_model("large", files=e2e.model_files.large).hold_rest():
        pod = namespace.create_pod(model="large", automountServiceAccountToken=True)
        pod.wait_for_pids(LOADER)
        yield pod


def test_the_injected_token_gives_no_access_to_the_api(loading_pod: Pod, serving_pod: Pod, e2e: E2ECluster) -> None:
    folder = "/var/run/secrets/tonnage.dev"
    found = loading_pod.exec(
        "find", "/var/run/secrets", "/run/secrets", "-name", "token*", "-type", "l", container=LOADER
    )
    tokens = sorted({line for line in found.split() if line.endswith("/token")})
    assert not [path for path in tokens if "kubernetes.io" in path], "the loader has the pod's API token"
    assert tokens, f"the loader has no token for reports below {folder}"
    for path in tokens:
        held = KubeClient(e2e.cluster.kubeconfig, token=loading_pod.exec("cat", path, container=LOADER))
        with pytest.raises(ApiError) as caught:
            held.list("Pod", loading_pod.namespace)
        assert caught.value.code == 401
    assert "tonnage" not in serving_pod.exec("find", "/var/run/secrets", "/run/secrets")


@pytest.mark.parametrize("container", [LOADER, HOLDER])
def test_loader_and_holder_have_no_capabilities_and_see_only_their_own_entry(
    request: pytest.FixtureRequest, make_namespace: Callable[..., Namespace], container: str
) -> None:
    others = make_namespace()
    other = others.create_model()
    others.create_pod().wait_ready()
    pod: Pod = request.getfixturevalue("loading_pod" if container == LOADER else "serving_pod")
    status = dict(
        line.split(":\t", 1)
        for line in pod.exec("cat", "/proc/1/status", container=container).splitlines()
        if ":\t" in line
    )
    assert status["CapEff"] == status["CapBnd"] == "0000000000000000"
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    entries = pod.exec("ls", "/cache", container=container).split()
    assert len(entries) == 1
    assert other.revision not in entries
    mountinfo = pod.exec("cat", "/proc/1/mountinfo", container=container)
    assert other.revision not in mountinfo
    mounts = [line.split() for line in mountinfo.splitlines()]
    root = next(fields for fields in mounts if fields[4] == "/")
    assert "ro" in root[5].split(",")


def test_what_runs_beside_a_server_can_change_nothing_and_has_no_token(serving_pod: Pod) -> None:
    assert serving_pod.exec("id", "-u", container=HOLDER).strip() != "0"
    (entry,) = serving_pod.exec("ls", "/cache", container=HOLDER).split()
    for path in (f"/cache/{entry}/model/more", f"/cache/{entry}/.tonnage/manifest.json"):
        with pytest.raises(Exception, match=r"Read-only file system|Permission denied"):
            serving_pod.exec("/usr/bin/python3", "-c", f"open({path!r}, 'a')", container=HOLDER)
    found = serving_pod.exec("find", "/var/run/secrets", "/run/secrets", "-name", "token*", container=HOLDER)
    assert not found.strip()
    body = serving_pod.get()
    assert not [each for each in body["status"]["initContainerStatuses"] if "running" in each["state"]]


def test_a_server_can_read_but_not_write_its_model(serving_pod: Pod) -> None:
    script = "open('/models/llama/more', 'w')"
    with pytest.raises(Exception, match="Read-only file system"):
        serving_pod.exec("/usr/bin/python3", "-c", script)
    assert "config.json" in serving_pod.exec("ls", "/models/llama").split()
    assert ".tonnage" not in serving_pod.exec("ls", "-a", "/models/llama").split()


@pytest.mark.prepared
def test_another_namespace_gets_a_model_only_if_access_allows_it(
    namespace: Namespace, make_namespace: Callable[..., Namespace]
) -> None:
    owner, friend, stranger = namespace, make_namespace(labels={"team": "research"}), make_namespace()
    selector = {"from": "Selector", "selector": {"matchLabels": {"team": "research"}}}
    owner.create_model().patch_spec({"access": {"allowedNamespaces": selector}})
    model_ref = f"{owner.name}/llama"
    pod = friend.create_pod(model=model_ref)
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.LOADED
    with pytest.raises(ApiError, match="may not use it"):
        stranger.create_pod(model=model_ref)
    with pytest.raises(ApiError, match="does not exist"):
        stranger.create_pod(model="llama")


@pytest.mark.prepared
def test_a_pod_of_another_namespace_reads_the_bucket_with_its_own_credentials(
    namespace: Namespace, make_namespace: Callable[..., Namespace], e2e: E2ECluster
) -> None:
    owner, other = namespace, make_namespace()
    owner.create_model().patch_spec(OPEN)
    owner.create_pod().wait_ready()  # now the node is warm
    other.apply_secret(READER_SECRET, e2e.user_credentials("stranger"))
    pod = other.create_pod(model=f"{owner.name}/llama")
    body = pod.wait_for(
        lambda body: terminated_state(pod.container_status(LOADER, body)), description="its loader to fail"
    )
    report = decode_report(terminated_state(pod.container_status(LOADER, body))["message"])
    assert report.outcome is Outcome.FAILED
    assert report.reason == "AccessDenied"
    assert e2e.user_credentials("stranger")["AWS_SECRET_ACCESS_KEY"] not in pod.logs(LOADER)
    assert not pod.container_status("server", body).get("started")
    pod.delete()
    other.apply_secret(READER_SECRET, e2e.reader_credentials)
    for outcome in (Outcome.LOADED, Outcome.HIT):  # an entry of its namespace's own
        pod = other.create_pod(model=f"{owner.name}/llama")
        pod.wait_ready()
        assert pod.last_report().outcome is outcome


def terminated_state(container: Object) -> Object:
    """Returns a container's terminated state, current or last; empty if it has none."""
    found: Object = (container.get("state") or {}).get("terminated") or {}
    return found or (container.get("lastState") or {}).get("terminated") or {}


def test_a_missing_secret_is_named(make_namespace: Callable[..., Namespace], e2e: E2ECluster) -> None:
    namespace = make_namespace()
    e2e.api.delete("Secret", READER_SECRET, namespace.name)
    model = namespace.create_model(wait=False)
    model.wait_for_condition("Resolved", "False", "CredentialsMissing", message=READER_SECRET)


def test_the_operators_own_pods_conform_to_the_restricted_profile(
    make_namespace: Callable[..., Namespace], e2e: E2ECluster
) -> None:
    namespace = make_namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    for component in ("controller", "webhook"):
        pod = e2e.release.pods(component)[0]
        spec = {key: value for key, value in pod["spec"].items() if key not in {"nodeName", "serviceAccountName"}}
        spec.pop("serviceAccount", None)
        metadata = {"name": component, "namespace": namespace.name}
        e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, dryRun="All")
