"""Nobody can do more than is needed: what is injected opens nothing, and a model is had by those who may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster_support.api import Api, Refused
from cluster_support.workspace import SECRET, Workspace
from tonnage.contract import Outcome, decode_report
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster_support.pods import Pod
    from cluster_support.site import Site

Object = dict[str, Any]

LOADER = names.LOADER_CONTAINER
OPEN = {"access": {"allowedNamespaces": {"from": "All"}}}


@pytest.fixture(scope="module")
def serving(site: Site) -> Iterator[Pod]:
    """A pod that serves; its own containers get a token for the API, as pods do unless they say otherwise."""
    space = Workspace.make(site, "permissions")
    space.model()
    pod = space.pod(automountServiceAccountToken=True)
    pod.until_ready()
    yield pod
    space.leave()


def test_what_is_injected_does_not_open_the_api(serving: Pod, site: Site) -> None:
    folder = "/var/run/secrets/tonnage.dev"
    found = serving.run("find", "/var/run/secrets", "/run/secrets", "-name", "token*", "-type", "l", container=LOADER)
    tokens = sorted({line for line in found.split() if line.endswith("/token")})
    assert not [path for path in tokens if "kubernetes.io" in path], "the pod's own token is not for the loader"
    assert tokens, f"the loader reports with a token, somewhere like {folder}"
    for path in tokens:
        held = Api(site.cluster.kubeconfig, token=serving.run("cat", path, container=LOADER))
        with pytest.raises(Refused) as caught:
            held.list("Pod", serving.namespace)
        assert caught.value.code == 401
    assert "tonnage" not in serving.run("find", "/var/run/secrets", "/run/secrets")


def test_a_loader_has_no_powers_and_sees_its_own_entry_alone(serving: Pod, space: Workspace) -> None:
    other = space.model()
    space.pod().until_ready()
    status = dict(
        line.split(":\t", 1)
        for line in serving.run("cat", "/proc/1/status", container=LOADER).splitlines()
        if ":\t" in line
    )
    assert status["CapEff"] == status["CapBnd"] == "0000000000000000"
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    entries = serving.run("ls", "/cache", container=LOADER).split()
    assert len(entries) == 1
    assert other.revision not in entries
    assert other.revision not in serving.run("cat", "/proc/1/mountinfo", container=LOADER)
    mounts = [line.split() for line in serving.run("cat", "/proc/1/mountinfo", container=LOADER).splitlines()]
    root = next(fields for fields in mounts if fields[4] == "/")
    assert "ro" in root[5].split(",")


def test_a_server_reads_its_model_and_cannot_write_it(serving: Pod) -> None:
    script = "open('/models/llama/more', 'w')"
    with pytest.raises(Exception, match="Read-only file system"):
        serving.run("/usr/bin/python3", "-c", script)
    assert "config.json" in serving.run("ls", "/models/llama").split()
    assert ".tonnage" not in serving.run("ls", "-a", "/models/llama").split()


def test_another_namespace_gets_a_model_only_where_access_says_so(
    space: Workspace, make_space: Callable[..., Workspace]
) -> None:
    owner, friend, stranger = space, make_space(labels={"team": "research"}), make_space()
    selector = {"from": "Selector", "selector": {"matchLabels": {"team": "research"}}}
    owner.model().patch({"access": {"allowedNamespaces": selector}})
    asked = f"{owner.namespace}/llama"
    pod = friend.pod(model=asked)
    pod.until_ready()
    assert pod.report().outcome is Outcome.LOADED
    with pytest.raises(Refused, match="may not use it"):
        stranger.pod(model=asked)
    with pytest.raises(Refused, match="does not exist"):
        stranger.pod(model="llama")


def test_a_pod_of_another_namespace_opens_the_bucket_with_its_own_credentials(
    space: Workspace, make_space: Callable[..., Workspace], site: Site
) -> None:
    owner, other = space, make_space()
    owner.model().patch(OPEN)
    owner.pod().until_ready()  # the node has it now
    other.secret(SECRET, site.credentials_of("stranger"))
    pod = other.pod(model=f"{owner.namespace}/llama")
    body = pod.until(lambda body: ended(pod.container(LOADER, body)), what="its loader to fail")
    report = decode_report(ended(pod.container(LOADER, body))["message"])
    assert report.outcome is Outcome.FAILED
    assert report.reason == "AccessDenied"
    assert site.credentials_of("stranger")["AWS_SECRET_ACCESS_KEY"] not in pod.logs(LOADER)
    assert not pod.container("server", body).get("started")
    pod.delete()
    other.secret(SECRET, site.credentials)
    pod = other.pod(model=f"{owner.namespace}/llama")
    pod.until_ready()
    assert pod.report().outcome is Outcome.HIT


def ended(container: Object) -> Object:
    """Returns how a container ended last; empty while it hasn't."""
    found: Object = (container.get("state") or {}).get("terminated") or {}
    return found or (container.get("lastState") or {}).get("terminated") or {}


def test_a_missing_secret_is_named(make_space: Callable[..., Workspace], site: Site) -> None:
    space = make_space()
    site.api.delete("Secret", SECRET, space.namespace)
    model = space.model(wait=False)
    model.until("Resolved", "False", "CredentialsMissing", message=SECRET)


def test_the_operators_own_pods_are_of_the_restricted_profile(make_space: Callable[..., Workspace], site: Site) -> None:
    space = make_space(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    for component in ("controller", "webhook"):
        pod = site.release.pods(component)[0]
        spec = {key: value for key, value in pod["spec"].items() if key not in {"nodeName", "serviceAccountName"}}
        spec.pop("serviceAccount", None)
        metadata = {"name": component, "namespace": space.namespace}
        site.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, dryRun="All")
