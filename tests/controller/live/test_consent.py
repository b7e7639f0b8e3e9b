"""Who writes a ``ModelWeights`` needs the right to use the Secrets and the ServiceAccount in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support.harness import OperatorHarness
    from operator_support.webhook_thread import WebhookThread

ROLES = {
    "writer": [{"apiGroups": ["tonnage.dev"], "resources": ["modelweights"], "verbs": ["*"]}],
    "user-of-reader": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["reader"], "verbs": ["use"]}],
    "user-of-trainer": [
        {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["trainer"], "verbs": ["use"]}
    ],
}
BY_SECRET = {"credentials": {"secretRef": {"name": "reader"}}}
BY_ACCOUNT = {"credentials": {"serviceAccountName": "trainer"}}


class Author:
    """A user who may write ``ModelWeights`` in the test's namespace, and has the named roles in addition."""

    def __init__(self, harness: OperatorHarness, *roles: str) -> None:
        self._harness = harness
        self._name = "author-" + "-".join(roles or ("alone",))
        for role in ("writer", *roles):
            kind = "clusterrole" if role == "edit" else "role"
            binding = ["create", "rolebinding", f"{self._name}-{role}", f"--{kind}={role}", f"--user={self._name}"]
            harness.plane.kubectl(*binding, "-n", harness.namespace)

    def _run(self, *arguments: str, stdin: str = "") -> str:
        """Runs kubectl as the author; returns the error, empty if there is none."""
        command = [*arguments, "-n", self._harness.namespace, f"--as={self._name}"]
        return self._harness.plane.kubectl(*command, stdin=stdin, check=False).stderr

    def create(self, spec: dict[str, Any], name: str = "llama") -> str:
        body = {
            "apiVersion": "tonnage.dev/v1alpha1",
            "kind": "ModelWeights",
            "metadata": {"name": name, "namespace": self._harness.namespace},
            "spec": {"source": objects.SOURCE, **spec},
        }
        return self._run("create", "-f", "-", stdin=json.dumps(body))

    def patch(self, spec: dict[str, Any], name: str = "llama") -> str:
        return self._run("patch", "modelweights", name, "--type=merge", "-p", json.dumps({"spec": spec}))


@pytest.fixture(autouse=True)
def consent(webhook: WebhookThread, harness: OperatorHarness) -> Iterator[None]:
    """The webhook for ``ModelWeights``, and the roles of the tests."""
    for name, rules in ROLES.items():
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name, "namespace": harness.namespace},
            "rules": rules,
        }
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{harness.namespace}/roles"
        harness.plane.request("POST", path, role)
    webhook.register_consent(harness.plane)
    yield
    webhook.unregister_consent(harness.plane)


@pytest.mark.parametrize(("spec", "found"), [(BY_SECRET, "secrets/reader"), (BY_ACCOUNT, "serviceaccounts/trainer")])
def test_an_author_of_objects_alone_uses_no_secret_and_no_account(
    harness: OperatorHarness, spec: dict[str, Any], found: str
) -> None:
    author = Author(harness)
    refusal = author.create(spec)
    assert f"author-alone may not use {found} of namespace {harness.namespace}" in refusal
    assert "a Role that has the verb use" in refusal
    assert not author.create({})


@pytest.mark.parametrize(
    ("role", "spec"), [("user-of-reader", BY_SECRET), ("user-of-trainer", BY_ACCOUNT), ("edit", BY_ACCOUNT)]
)
def test_an_author_uses_what_its_owner_permits_or_pods_could_use(
    harness: OperatorHarness, role: str, spec: dict[str, Any]
) -> None:
    assert not Author(harness, role).create(spec)


def test_a_permission_is_for_one_object(harness: OperatorHarness) -> None:
    other = {"credentials": {"secretRef": {"name": "another"}}}
    assert "may not use secrets/another" in Author(harness, "user-of-reader").create(other)


def test_what_an_identity_is_used_for_is_changed_only_with_the_right_to_use_it(harness: OperatorHarness) -> None:
    harness.create(BY_SECRET)
    author = Author(harness)
    assert not author.patch({"suspend": True})
    assert "may not use" in author.patch({"source": {"s3": {"endpoint": "https://elsewhere"}}})
    assert "may not use" in author.patch({"credentials": {"secretRef": {"name": "another"}}})
    assert not author.patch({"credentials": None})
