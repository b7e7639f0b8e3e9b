"""Certificates: generated once, kept by upgrades, renewed before they expire, and trusted at every moment."""

from __future__ import annotations

import base64
import json
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from chart_support import tls
from chart_support.helm import NAMESPACE, Helm, Object, find_one
from chart_support.variants import PEM, VARIANTS

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

WEBHOOK = f"tonnage-webhook.{NAMESPACE}.svc"
CONTROLLER = f"tonnage-controller.{NAMESPACE}.svc"


def _ca_bundle(registration: Object) -> str:
    return base64.b64decode(registration["webhooks"][0]["clientConfig"]["caBundle"]).decode()


def _secret(plane: ControlPlane, name: str = "webhook") -> Object:
    found: Object = plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/tonnage-{name}-tls")
    return found


def _registered(plane: ControlPlane) -> str:
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/tonnage-webhook"
    return _ca_bundle(plane.request("GET", path))


def test_the_api_server_trusts_the_webhook(helm: Helm, tmp_path: Path) -> None:
    objects = helm.template()
    secret = find_one(objects, "Secret", "webhook-tls")
    bundle = _ca_bundle(find_one(objects, "MutatingWebhookConfiguration"))
    for name in (WEBHOOK, f"tonnage-webhook.{NAMESPACE}", "tonnage-webhook"):
        seen = tls.handshake(secret, ca_pem=bundle, server_name=name, folder=tmp_path)
    ends = datetime.strptime(seen["notAfter"], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert timedelta(days=3649) < ends - datetime.now(UTC) < timedelta(days=3651)
    stated = datetime.fromisoformat(secret["metadata"]["annotations"]["tonnage.dev/expires"])
    assert abs(ends - stated) < timedelta(minutes=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        tls.handshake(secret, ca_pem=bundle, server_name=CONTROLLER, folder=tmp_path)


def test_loaders_trust_only_the_controller(helm: Helm, tmp_path: Path) -> None:
    objects = helm.template(VARIANTS["no DNS"])
    secret = find_one(objects, "Secret", "reports-tls")
    for name in (CONTROLLER, "10.0.0.50"):
        tls.handshake(secret, ca_pem=tls.secret_value(secret, "ca.crt"), server_name=name, folder=tmp_path)
    other = tls.secret_value(find_one(objects, "Secret", "webhook-tls"), "ca.crt")
    with pytest.raises(ssl.SSLCertVerificationError):
        tls.handshake(secret, ca_pem=other, server_name=CONTROLLER, folder=tmp_path)


def test_no_secret_holds_the_key_of_a_ca(helm: Helm) -> None:
    secrets = [body for body in helm.template() if body["kind"] == "Secret" and body["type"] == "kubernetes.io/tls"]
    assert len(secrets) == 2
    for secret in secrets:
        assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
        assert "PRIVATE KEY" not in tls.secret_value(secret, "ca.crt")


def test_an_upgrade_keeps_certificates(helm_with_cluster: Helm, plane: ControlPlane) -> None:
    helm_with_cluster.install()
    before = [_secret(plane, name)["data"] for name in ("webhook", "reports")]
    helm_with_cluster.install({"webhook": {"replicas": 3}})
    assert [_secret(plane, name)["data"] for name in ("webhook", "reports")] == before
    assert _registered(plane) == tls.secret_value(_secret(plane), "ca.crt")


def test_an_upgrade_renews_certificates_that_are_due_and_trusts_old_and_new(
    helm_with_cluster: Helm, plane: ControlPlane, tmp_path: Path
) -> None:
    due: dict[str, dict[str, Any]] = {
        "almost over": {"certificates": {"selfSigned": {"renewBeforeDays": 3660, "validityDays": 3670}}},
        "another generation": {"certificates": {"selfSigned": {"generation": 2}}},
        "other names": {"reports": {"host": "tonnage.example.com"}, "certificates": {"selfSigned": {"generation": 2}}},
        "unknown end": {"certificates": {"selfSigned": {"generation": 2}}},
    }
    helm_with_cluster.install()
    for cause, values in due.items():
        old = _secret(plane, "reports")
        if cause == "unknown end":
            patch = {"metadata": {"annotations": {"tonnage.dev/expires": "soon"}}}
            path = f"/api/v1/namespaces/{NAMESPACE}/secrets/tonnage-reports-tls"
            plane.request("PATCH", path, patch, content_type="application/merge-patch+json")
        helm_with_cluster.install(values)
        new = _secret(plane, "reports")
        assert new["data"]["tls.key"] != old["data"]["tls.key"], cause
        bundle = tls.secret_value(new, "ca.crt")
        for secret in (old, new):
            tls.handshake(secret, ca_pem=bundle, server_name=CONTROLLER, folder=tmp_path)


def test_only_the_last_two_cas_are_trusted(helm_with_cluster: Helm, plane: ControlPlane, tmp_path: Path) -> None:
    made = []
    for generation in (1, 2, 3):
        helm_with_cluster.install({"certificates": {"selfSigned": {"generation": generation}}})
        made.append(_secret(plane))
    bundle = _registered(plane)
    assert bundle.count("BEGIN CERTIFICATE") == 2
    for secret in made[1:]:
        tls.handshake(secret, ca_pem=bundle, server_name=WEBHOOK, folder=tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        tls.handshake(made[0], ca_pem=bundle, server_name=WEBHOOK, folder=tmp_path)


def test_own_certificates_are_used_and_none_is_generated(helm: Helm) -> None:
    objects = helm.template(VARIANTS["own certificates"])
    assert not any(body["kind"] == "Secret" and body["type"] == "kubernetes.io/tls" for body in objects)
    assert _ca_bundle(find_one(objects, "MutatingWebhookConfiguration")) == PEM
    text = json.dumps(find_one(objects, "Deployment", "controller"))
    assert '"secretName": "my-reports"' in text
    assert '"secretName": "my-webhook"' in json.dumps(find_one(objects, "Deployment", "webhook"))
    assert find_one(objects, "ConfigMap")["data"]["reports-ca.crt"] == PEM


def test_cert_manager_signs_for_both_services_with_a_ca_that_stays(helm: Helm) -> None:
    objects = helm.template(VARIANTS["cert-manager"])
    certificates = {body["metadata"]["name"]: body["spec"] for body in objects if body["kind"] == "Certificate"}
    assert set(certificates) == {"tonnage-ca", "tonnage-webhook-tls", "tonnage-reports-tls"}
    assert certificates["tonnage-webhook-tls"]["dnsNames"][0] == WEBHOOK
    assert certificates["tonnage-reports-tls"]["dnsNames"][0] == CONTROLLER
    for name in ("tonnage-webhook-tls", "tonnage-reports-tls"):
        assert certificates[name]["secretName"] == name
        assert certificates[name]["issuerRef"] == {"group": "cert-manager.io", "kind": "Issuer", "name": "tonnage-ca"}
    registration = find_one(objects, "MutatingWebhookConfiguration")
    assert registration["metadata"]["annotations"] == {
        "cert-manager.io/inject-ca-from": f"{NAMESPACE}/tonnage-webhook-tls"
    }
    assert "caBundle" not in registration["webhooks"][0]["clientConfig"]


def test_cert_manager_can_use_an_existing_issuer(helm: Helm) -> None:
    objects = helm.template(VARIANTS["cert-manager, existing issuer"])
    assert not any(body["kind"] == "Issuer" for body in objects)
    for body in objects:
        if body["kind"] == "Certificate":
            assert body["spec"]["issuerRef"] == {"name": "corp", "kind": "ClusterIssuer"}
