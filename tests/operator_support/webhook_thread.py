"""A webhook in a thread, and the webhook configuration that the chart would create for it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import trustme

from operator_support import objects
from operator_support.background_thread import AppThread
from operator_support.metrics import count
from operator_support.pods import CONTAINERS
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.config import ServerOptions
from tonnage_operator.webhook.app import WebhookApp

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client import Counter

    from operator_support.control_plane import ControlPlane
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.credentials import ClientConfig


class WebhookThread(AppThread[WebhookApp]):
    """A webhook in a thread, with a certificate of its own CA."""

    def __init__(
        self, client_config: ClientConfig, installation: Installation, folder: Path, **server_options: Any
    ) -> None:
        super().__init__()
        self._server_options = server_options
        self._client_config = client_config
        self._installation = installation
        self.ca = trustme.CA()
        self.cert = folder / "tls.crt"
        self.key = folder / "tls.key"
        self.issue_certificate()

    def issue_certificate(self) -> None:
        """Writes a new certificate and key."""
        pair = self.ca.issue_cert("127.0.0.1", "localhost")
        self.key.write_bytes(pair.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(part.bytes() for part in pair.cert_chain_pems))

    def reload_certificate(self) -> None:
        """Has the webhook reload its certificate now if it changed."""
        certificate = self.app.certificate
        assert certificate is not None
        self.call_in_loop(certificate.reload_if_changed)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.app.port}"

    def create_app(self) -> WebhookApp:
        listening = ServerOptions("127.0.0.1", 0, 0, self.cert, self.key, **self._server_options)
        return WebhookApp(self._client_config, self._installation, listening)

    def register(self, plane: ControlPlane) -> None:
        """Creates the webhook configuration, and waits until the API server heeds it."""
        plane.request(
            "POST", WEBHOOK_CONFIGURATIONS_PATH, webhook_configuration(self.url + "/inject", self.ca.cert_pem.bytes())
        )
        pod = {"metadata": {"name": "asks", "annotations": {names.MODEL: "none"}}, "spec": {"containers": CONTAINERS}}
        self._wait_until_called(plane, "/api/v1/namespaces/default/pods", pod, self.app.metrics.admissions)

    def register_consent(self, plane: ControlPlane) -> None:
        """Creates the webhook configuration for ``ModelWeights``, and waits until the API server heeds it."""
        plane.request(
            "POST", CONSENT_CONFIGURATIONS_PATH, consent_configuration(self.url + "/consent", self.ca.cert_pem.bytes())
        )
        model = {
            "apiVersion": "tonnage.dev/v1alpha1",
            "kind": "ModelWeights",
            "metadata": {"name": "asks"},
            "spec": {"source": objects.SOURCE, "credentials": {"serviceAccountName": "default"}},
        }
        path = "/apis/tonnage.dev/v1alpha1/namespaces/default/modelweights"
        self._wait_until_called(plane, path, model, self.app.metrics.consents)

    @staticmethod
    def _wait_until_called(plane: ControlPlane, path: str, body: dict[str, Any], counter: Counter) -> None:
        """Asks the API server to create something, without creating it, until it calls the webhook for that."""

        def is_called() -> bool:
            plane.refusal("POST", f"{path}?dryRun=All", body)
            return count(counter) != before

        before = count(counter)
        eventually(is_called)

    def unregister_consent(self, plane: ControlPlane) -> None:
        """Deletes the webhook configuration for ``ModelWeights``."""
        plane.request("DELETE", f"{CONSENT_CONFIGURATIONS_PATH}/tonnage")

    def unregister(self, plane: ControlPlane) -> None:
        """Deletes the webhook configuration."""
        plane.request("DELETE", f"{WEBHOOK_CONFIGURATIONS_PATH}/tonnage")


WEBHOOK_CONFIGURATIONS_PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


CONSENT_CONFIGURATIONS_PATH = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def consent_configuration(url: str, ca: bytes) -> dict[str, Any]:
    """Returns a configuration that matches only objects with a Secret or a ServiceAccount."""
    names_one = "object.spec.?credentials.secretRef.hasValue() || "
    names_one += "object.spec.?credentials.serviceAccountName.hasValue() || "
    names_one += "object.spec.source.?http.urlsFrom.hasValue() || "
    names_one += "object.spec.source.?http.caBundle.secretKeyRef.hasValue() || "
    names_one += "object.spec.source.?s3.caBundle.secretKeyRef.hasValue() || "
    names_one += "object.spec.source.?hub.caBundle.secretKeyRef.hasValue()"
    changes = "oldObject == null || object.spec.source != oldObject.spec.source || "
    changes += "object.spec.?credentials != oldObject.spec.?credentials"
    rule = {
        "apiGroups": ["tonnage.dev"],
        "apiVersions": ["v1alpha1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["modelweights"],
        "scope": "Namespaced",
    }
    conditions = {"names-a-secret-or-account": names_one, "changes": changes}
    return _configuration("Validating", "consent", url, ca, rule, conditions, sideEffects="None")


def webhook_configuration(url: str, ca: bytes) -> dict[str, Any]:
    """Returns a configuration that matches only pods with our annotations."""
    has_annotation = "has(object.metadata.annotations) && "
    has_annotation += "object.metadata.annotations.exists(name, name.startsWith('tonnage.dev/'))"
    is_not_of_a_job = "!has(object.metadata.labels) || !('tonnage.dev/loader' in object.metadata.labels) || "
    is_not_of_a_job += "!(object.metadata.labels['tonnage.dev/loader'] in ['resolve', 'load', 'cleanup'])"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    conditions = {"has-annotation": has_annotation, "is-not-of-a-job": is_not_of_a_job}
    selector = {"matchExpressions": [{"key": "tonnage.dev/inject", "operator": "NotIn", "values": ["false"]}]}
    more = {"sideEffects": "NoneOnDryRun", "reinvocationPolicy": "IfNeeded", "namespaceSelector": selector}
    return _configuration("Mutating", "inject", url, ca, rule, conditions, **more)


def _configuration(
    kind: str, name: str, url: str, ca: bytes, rule: dict[str, Any], conditions: dict[str, str], **more: Any
) -> dict[str, Any]:
    webhook = {
        "name": f"{name}.tonnage.dev",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
        "timeoutSeconds": 5,
        "clientConfig": {"url": url, "caBundle": base64.b64encode(ca).decode()},
        "rules": [rule],
        "matchConditions": [{"name": name, "expression": expression} for name, expression in conditions.items()],
        **more,
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": "tonnage"},
        "webhooks": [webhook],
    }
