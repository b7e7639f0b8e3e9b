"""The peers' part of the chart: nothing without ``peers.enabled``, and with it what controller and peers agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from chart_support.helm import NAMESPACE, Helm, HelmError, Object, find_one
from chart_support.variants import VARIANTS
from support.repository import ROOT
from tonnage_operator.api import names
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.observed.pod import parse_pod
from tonnage_operator.domain.peers import credentials

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane


def _installation(objects: list[Object]) -> Installation:
    text = find_one(objects, "ConfigMap")["data"]["installation.yaml"]
    return Installation.model_validate(yaml.safe_load(text))


def test_without_peers_nothing_of_them_is_rendered(helm: Helm) -> None:
    objects = helm.template({"networkPolicy": {"enabled": True}})
    assert not [body for body in objects if body["kind"] in {"DaemonSet", "Role", "RoleBinding"}]
    assert "peer" not in yaml.safe_dump([body for body in objects if body["kind"] != "CustomResourceDefinition"])
    assert not _installation(objects).has_peers


def test_peers_mount_the_media_and_their_credentials_read_only_and_have_no_token(helm: Helm) -> None:
    objects = helm.template(VARIANTS["peers"])
    pod = find_one(objects, "DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hosts = {each["name"]: each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each}
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert {f"/media/{name}" for name in hosts} == {"/media/memory", "/media/disk"}
    assert hosts == {medium.value.lower(): media.host_path for medium, media in _installation(objects).media.items()}
    assert all(mounts[f"/media/{name}"]["readOnly"] for name in hosts)
    assert mounts["/etc/tonnage/peers"]["readOnly"]
    (secret,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
    files = {credentials.CERTIFICATE, credentials.PRIVATE_KEY, credentials.TICKET_KEY, credentials.PREVIOUS_TICKET_KEY}
    assert {each["key"] for each in secret["items"]} == files
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


@pytest.mark.parametrize("variant", ["peers", "peers on the host"])
def test_the_controller_may_read_and_patch_the_peers_secret_and_no_other(helm: Helm, variant: str) -> None:
    objects = helm.template(VARIANTS[variant])
    settings, role = _installation(objects).peers, find_one(objects, "Role")
    tested: Object = yaml.safe_load((ROOT / "operator" / "rbac" / "peers.yaml").read_text())
    (rule,) = role["rules"]
    assert rule == {**tested["rules"][0], "resourceNames": [settings.secret]}
    assert role["metadata"]["namespace"] == NAMESPACE
    binding = find_one(objects, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    controller = find_one(objects, "Deployment", "controller")["spec"]["template"]["spec"]["serviceAccountName"]
    assert [each["name"] for each in binding["subjects"]] == [controller]
    secret = next(each for each in objects if each["kind"] == "Secret" and each["metadata"]["name"] == settings.secret)
    assert "data" not in secret, "an upgrade would replace what the controller has written"


@pytest.mark.parametrize(
    ("network", "host_port", "host_network"),
    [("Pod", False, False), ("HostPort", True, False), ("HostNetwork", True, True)],
)
def test_the_controller_knows_peers_by_the_port_that_they_serve(
    helm: Helm, network: str, host_port: bool, host_network: bool
) -> None:
    objects = helm.template({"peers": {"enabled": True, "network": network, "port": 8999}})
    template = find_one(objects, "DaemonSet")["spec"]["template"]
    (port,) = template["spec"]["containers"][0]["ports"]
    assert (port["containerPort"], "hostPort" in port) == (8999, host_port)
    assert "--port=8999" in template["spec"]["containers"][0]["args"]
    assert template["spec"].get("hostNetwork", False) is host_network
    settings = _installation(objects).peers
    assert (settings.port, settings.network) == (8999, network)
    body = {**template, "metadata": {**template["metadata"], "namespace": NAMESPACE, "name": "p", "uid": "u"}}
    assert parse_pod(body).role == names.ROLE_PEER


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"reports": {"enabled": False}}, "peers.enabled needs reports.enabled"),
        ({"cache": {"memory": {"enabled": False}, "disk": {"enabled": False}}}, "peers serve entries on nodes"),
        ({"image": {"registry": "", "peer": {"repository": "peer"}}}, "has no registry"),
    ],
    ids=str,
)
def test_peers_without_what_they_need_are_rejected(helm: Helm, values: Object, sentence: str) -> None:
    with pytest.raises(HelmError, match=sentence):
        helm.template({**values, "peers": {"enabled": True}})


def test_an_upgrade_keeps_the_credentials_that_the_controller_has_written(
    helm_with_cluster: Helm, plane: ControlPlane
) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/tonnage-peers"
    helm_with_cluster.install({"peers": {"enabled": True}})
    plane.request("PATCH", path, {"data": {"ticket-key": "a2V5"}}, content_type="application/merge-patch+json")
    helm_with_cluster.install({"peers": {"enabled": True, "port": 9999}, "commonLabels": {"a": "b"}})
    secret = plane.request("GET", path)
    assert secret["data"] == {"ticket-key": "a2V5"}
    assert secret["metadata"]["labels"]["a"] == "b"
