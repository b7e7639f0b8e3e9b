"""The signing key: made once, kept by upgrades, replaced with another generation, and the same for both programs."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from chart_support.helm import NAMESPACE, Helm, HelmError, find_one
from operator_support.webhook_thread import WEBHOOK_CONFIGURATIONS_PATH
from tonnage_operator.domain.signing import SigningKeys, review_token

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane


def _keys(plane: ControlPlane) -> tuple[str, str]:
    """Returns the current and the previous key in the cluster."""
    data = plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/tonnage-signing")["data"]
    current, previous = (base64.b64decode(data.get(name, "")).decode() for name in ("current", "previous"))
    return current, previous


def _path(configuration: dict[str, Any]) -> str:
    path: str = configuration["webhooks"][0]["clientConfig"]["service"]["path"]
    return path


def _path_in_the_cluster(plane: ControlPlane) -> str:
    return _path(plane.request("GET", f"{WEBHOOK_CONFIGURATIONS_PATH}/tonnage-webhook"))


def test_an_upgrade_keeps_the_key_and_another_generation_keeps_the_one_before_valid(
    helm_with_cluster: Helm, plane: ControlPlane
) -> None:
    helm_with_cluster.install()
    first, none = _keys(plane)
    assert (len(first), none) == (64, "")
    helm_with_cluster.install({"webhook": {"replicas": 3}})
    assert _keys(plane) == (first, "")
    assert _path_in_the_cluster(plane) == f"/inject/{review_token(first.encode())}"
    helm_with_cluster.install({"signing": {"generation": 2}})
    second, previous = _keys(plane)
    assert previous == first != second
    # Webhooks that run do not have the new key yet.
    assert _path_in_the_cluster(plane) == f"/inject/{review_token(first.encode())}"
    helm_with_cluster.install({"signing": {"generation": 2}})
    assert _keys(plane) == (second, first)
    helm_with_cluster.install({"signing": {"generation": 3}})
    assert _keys(plane)[1] == second
    assert _path_in_the_cluster(plane) == f"/inject/{review_token(second.encode())}"


def test_the_path_of_reviews_is_made_from_the_key_that_the_webhook_has(helm: Helm) -> None:
    for rendered in (helm.render(), helm.render()):
        key = base64.b64decode(find_one(rendered, "Secret", "tonnage-signing")["data"]["current"])
        for kind, path in (("Mutating", "inject"), ("Validating", "consent")):
            found = _path(find_one(rendered, f"{kind}WebhookConfiguration"))
            assert found == f"/{path}/{review_token(key)}"
        assert SigningKeys((key,)).knows_review_token(found.rpartition("/")[2])
        assert not SigningKeys((key[:-1] + b"!",)).knows_review_token(found.rpartition("/")[2])
        assert "reviewToken: true" in find_one(rendered, "ConfigMap")["data"]["installation.yaml"]


def test_a_key_of_your_own_gives_the_path_if_the_cluster_shows_it(
    helm: Helm, helm_with_cluster: Helm, plane: ControlPlane
) -> None:
    values: dict[str, object] = {"signing": {"existingSecret": "ours"}}
    without = helm.template(values)
    assert _path(find_one(without, "MutatingWebhookConfiguration")) == "/inject"
    assert "reviewToken: false" in find_one(without, "ConfigMap")["data"]["installation.yaml"]
    plane.kubectl("create", "namespace", NAMESPACE, check=False)
    plane.kubectl("create", "secret", "generic", "ours", f"--from-literal=current={'k' * 40}\n", "-n", NAMESPACE)
    helm_with_cluster.install(values)
    assert _path_in_the_cluster(plane) == f"/inject/{review_token(b'k' * 40)}"


def _signing_parts(helm: Helm, values: dict[str, object]) -> set[tuple[str, str]]:
    """Returns the Secret that each program mounts, and the annotation that restarts it."""
    objects = helm.template(values)
    pods = [find_one(objects, "Deployment", name)["spec"]["template"] for name in ("controller", "webhook")]
    parts = set()
    for pod in pods:
        (secret,) = [each["secret"]["secretName"] for each in pod["spec"]["volumes"] if each["name"] == "signing"]
        parts.add((secret, pod["metadata"]["annotations"]["tonnage.dev/signing"]))
    return parts


def test_both_programs_use_the_same_key_and_restart_with_another_one(helm: Helm) -> None:
    assert _signing_parts(helm, {}) == {("tonnage-signing", "tonnage-signing-1")}
    assert _signing_parts(helm, {"signing": {"generation": 2}}) == {("tonnage-signing", "tonnage-signing-2")}


def test_your_own_secret_is_used_and_none_is_made(helm: Helm) -> None:
    values: dict[str, object] = {"signing": {"existingSecret": "ours", "generation": 4}}
    assert _signing_parts(helm, values) == {("ours", "ours-4")}
    assert not any(body["kind"] == "Secret" and "current" in body["data"] for body in helm.template(values))


def test_the_generation_is_a_number(helm: Helm) -> None:
    with pytest.raises(HelmError, match="generation"):
        helm.template({"signing": {"generation": "new"}})
