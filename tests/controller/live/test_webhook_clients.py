"""With ``--client-ca``, the webhook answers reviews of the API server and of no other client."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
import trustme

from operator_support.control_plane import WEBHOOK_CLIENT
from operator_support.harness import admin_client_config, make_installation
from operator_support.webhook_thread import WebhookThread
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

POD = {
    "metadata": {"name": "server", "annotations": {names.MODEL: "absent"}},
    "spec": {"containers": [{"name": "server", "image": "vllm"}]},
}


@pytest.fixture
def webhook(control_plane: ControlPlane, tmp_path: Path) -> Iterator[WebhookThread]:
    client_ca = tmp_path / "client-ca.crt"
    control_plane.webhook_clients.cert_pem.write_to_path(str(client_ca))
    with WebhookThread(
        admin_client_config(control_plane), make_installation(), tmp_path,
        client_ca=client_ca, client_names=(WEBHOOK_CLIENT,),
    ) as running:  # fmt: skip
        running.register(control_plane)
        yield running
        running.unregister(control_plane)


def post_review(webhook: WebhookThread, client: trustme.LeafCert | None = None) -> tuple[int, str]:
    context = ssl.create_default_context()
    webhook.ca.configure_trust(context)
    if client:
        client.configure_cert(context)
    review = {"uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "serving", "object": POD}
    request = urllib.request.Request(f"{webhook.url}/inject", json.dumps({"request": review}).encode())
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_reviews_of_the_api_server_are_answered(
    control_plane: ControlPlane, webhook: WebhookThread, namespace: str
) -> None:
    del webhook
    with pytest.raises(urllib.error.HTTPError) as caught:
        control_plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", POD)
    with caught.value as answer:
        message = json.loads(answer.read())["message"]
    assert f"ModelWeights {namespace}/absent does not exist" in message


def test_a_client_without_the_certificate_learns_nothing(control_plane: ControlPlane, webhook: WebhookThread) -> None:
    rejected = (403, "Reviews need a client certificate of the API server.\n")
    assert post_review(webhook) == rejected
    kubelet = control_plane.webhook_clients.issue_cert("node.example.com", common_name="system:node:a")
    assert post_review(webhook, kubelet) == rejected
    api_server = control_plane.webhook_clients.issue_cert("api.example.com", common_name=WEBHOOK_CLIENT)
    assert post_review(webhook, api_server)[0] == 200
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        post_review(webhook, trustme.CA().issue_cert("api.example.com", common_name=WEBHOOK_CLIENT))


def test_probes_of_readiness_need_no_certificate(webhook: WebhookThread) -> None:
    context = ssl.create_default_context()
    webhook.ca.configure_trust(context)
    with urllib.request.urlopen(f"{webhook.url}/readyz", timeout=10, context=context) as answer:
        assert answer.status == 200
