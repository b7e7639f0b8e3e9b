"""Chart and operator agree: arguments, files, ports, roles, names."""

from __future__ import annotations

import re
import runpy
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from chart_support.helm import NAMESPACE, Helm, Object, find_one, pod_template
from chart_support.variants import VARIANTS
from operator_support import webhook_thread
from support.repository import ROOT
from tonnage_operator import cli
from tonnage_operator.api import crd, names
from tonnage_operator.domain.installation import Installation
from tonnage_operator.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = ("controller", "webhook", "release", "wipe")


def _role(name: str) -> Object:
    role: Object = yaml.safe_load((ROOT / "operator" / "rbac" / f"{name}.yaml").read_text())
    return role


def _commands(objects: list[Object]) -> Iterator[tuple[Object, list[str]]]:
    for body in objects:
        if (template := pod_template(body)) and body["kind"] != "DaemonSet":
            (container,) = template["spec"]["containers"]
            assert container["command"] == ["tonnage-operator"]
            yield template, container["args"]


def test_copies_in_the_chart_equal_their_originals() -> None:
    sync = runpy.run_path(str(ROOT / "hack" / "chart" / "sync.py"))
    for path, text in sync["generated_files"]().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run python hack/chart/sync.py"
    assert not sync["stale_files"]()


@pytest.mark.parametrize("keep", [True, False])
def test_crds_are_those_of_the_operator(helm: Helm, *, keep: bool) -> None:
    rendered = [each for each in helm.template({"crds": {"keep": keep}}) if each["kind"] == "CustomResourceDefinition"]
    for body in rendered:
        annotations = body["metadata"].pop("annotations", {})
        assert annotations == ({"helm.sh/resource-policy": "keep"} if keep else {})
        assert body["metadata"].pop("labels")
    assert sorted(rendered, key=lambda body: body["metadata"]["name"]) == list(crd.definitions().values())


def test_crds_can_be_installed_separately(helm: Helm) -> None:
    objects = helm.template({"crds": {"enabled": False}})
    assert not any(body["kind"] == "CustomResourceDefinition" for body in objects)


def test_roles_are_exactly_those_that_the_operator_is_tested_with(helm: Helm) -> None:
    objects = helm.template({"uninstall": {"policy": "Wipe"}})
    roles = {body["metadata"]["name"]: body for body in objects if body["kind"] in {"ClusterRole", "Role"}}
    people = {"tonnage-view", "tonnage-edit"}
    assert set(roles) - people == {f"tonnage-{name}" for name in ROLES}
    for name in ROLES:
        assert roles[f"tonnage-{name}"]["rules"] == _role(name)["rules"]
    assert not [rule for name in people for rule in roles[name]["rules"] if rule["apiGroups"] != [names.GROUP]]
    written = [kind for rule in roles["tonnage-edit"]["rules"] for kind in rule["resources"]]
    assert written == ["modelweights"], "people don't write what a group's pods get"


def test_each_account_has_one_role_and_each_pod_its_own_account(helm: Helm) -> None:
    objects = helm.template({"uninstall": {"policy": "Wipe"}})
    bound: dict[str, list[str]] = {}
    for body in objects:
        if body["kind"] in {"ClusterRoleBinding", "RoleBinding"}:
            for subject in body["subjects"]:
                assert subject == {"kind": "ServiceAccount", "name": subject["name"], "namespace": NAMESPACE}
                bound.setdefault(subject["name"], []).append(body["roleRef"]["name"])
    assert bound == {f"tonnage-{name}": [f"tonnage-{name}"] for name in ROLES}
    accounts = {body["metadata"]["name"] for body in objects if body["kind"] == "ServiceAccount"}
    assert accounts == {*bound, "tonnage-cleanup"}
    used = [template["spec"]["serviceAccountName"] for template, _ in _commands(objects)]
    assert sorted(used) == sorted([*bound, "tonnage-cleanup"])


def test_only_pods_that_call_the_api_server_have_a_token(helm: Helm) -> None:
    for template, arguments in _commands(helm.template({"uninstall": {"policy": "Wipe"}})):
        assert template["spec"]["automountServiceAccountToken"] == (arguments[0] != "check")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_operator_accepts_the_arguments(helm: Helm, name: str) -> None:
    for _, arguments in _commands(helm.template(VARIANTS[name])):
        cli._parser().parse_args(arguments)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_operator_accepts_the_installation(helm: Helm, name: str) -> None:
    text = find_one(helm.template(VARIANTS[name]), "ConfigMap")["data"]["installation.yaml"]
    installation = Installation.model_validate(yaml.safe_load(text))
    assert installation.namespace == NAMESPACE
    known = {field.alias for field in Installation.model_fields.values() if not field.exclude}
    assert set(yaml.safe_load(text)) | {"reports", "peers"} == known, "the chart leaves a field out"


def test_the_installation_has_the_values(helm: Helm) -> None:
    def read(name: str) -> Installation:
        text = find_one(helm.template(VARIANTS[name]), "ConfigMap")["data"]["installation.yaml"]
        return Installation.model_validate(yaml.safe_load(text))

    assert read("defaults").reports.url == f"https://tonnage-controller.{NAMESPACE}.svc:8443/v1/reports"
    assert read("defaults").cleanup_service_account == "tonnage-cleanup"
    assert {medium.value: media.host_path for medium, media in read("defaults").media.items()} == {
        "Memory": "/dev/shm/tonnage",
        "Disk": "/var/lib/tonnage",
    }
    memory = read("memory only, reserved")
    media = [(medium.value, each.reserved, each.min_free) for medium, each in memory.media.items()]
    assert media == [("Memory", True, "16Gi")]
    assert not read("no host paths").media
    assert (read("defaults").sharing.value, memory.sharing.value) == ("Namespace", "Cluster")
    disk = read("disk by default")
    assert (disk.default_medium.value, disk.loader.uid, disk.loader.memory_overhead) == ("Disk", 1000, "1Gi")
    assert disk.loader.resources.requests == {"cpu": "2", "memory": "512Mi"}
    assert disk.loader.resources.limits == {"memory": "8Gi"}
    assert (disk.retry_base, disk.retry_cap, disk.cleanup_tolerate_all) == (1.5, 60.0, False)
    assert (disk.job_service_account, disk.cleanup_service_account) == ("models", "default")
    assert not read("no reports").reports.url
    assert read("no DNS").reports.url == "https://10.0.0.50:8443/v1/reports"


def test_files_in_arguments_are_mounted(helm: Helm) -> None:
    for name in ("defaults", "own certificates", "cert-manager", "no reports"):
        objects = helm.template(VARIANTS[name])
        for template, arguments in _commands(objects):
            spec = template["spec"]
            (container,) = spec["containers"]
            mounted = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", ())}
            volumes = {each["name"]: each for each in spec.get("volumes", ())}
            files = [each.partition("=")[2] for each in arguments if each.partition("=")[2].startswith("/etc/")]
            if arguments[0] in {"controller", "webhook"} and name != "no reports":
                text = find_one(objects, "ConfigMap")["data"]["installation.yaml"]
                files.append(yaml.safe_load(text)["reports"]["caFile"])
            for file in files:
                folder, _, key = file.rpartition("/")
                volume = volumes[mounted[folder]]
                source = volume.get("secret") or volume.get("configMap")
                assert key in [item["path"] for item in source["items"]], file
                if "configMap" in volume:
                    config = find_one(objects, "ConfigMap", source["name"])
                    assert {item["key"] for item in source["items"]} <= set(config["data"])


def test_services_target_the_ports_of_the_programs(helm: Helm) -> None:
    objects = helm.template()
    for name, expected in (
        ("controller", {"reports": 8443, "metrics": 8080}),
        ("webhook", {"webhook": 443, "metrics": 8080}),
    ):
        service = find_one(objects, "Service", name)
        assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == expected
        template = find_one(objects, "Deployment", name)["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        options = cli._parser().parse_args(container["args"])
        own = "reports" if name == "controller" else "webhook"
        assert ports == {own: options.port, "health": options.health_port}
        assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)


def test_the_webhook_configuration_is_the_one_that_tests_use(helm: Helm) -> None:
    rendered = find_one(helm.template(), "MutatingWebhookConfiguration")["webhooks"]
    tested = webhook_thread.webhook_configuration("https://x/inject", b"")["webhooks"]
    (ours,), (theirs,) = rendered, tested
    assert ours.pop("clientConfig")["service"]["path"].startswith("/inject/")
    assert theirs.pop("clientConfig")["url"].endswith("/inject")
    assert ours["rules"][0].pop("scope") == "Namespaced"
    away = ours["namespaceSelector"]["matchExpressions"].pop()
    assert away == {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", NAMESPACE],
    }
    assert ours == theirs


def test_alerts_use_series_that_exist(helm: Helm) -> None:
    values = {"metrics": {"prometheusRule": {"enabled": True}}}
    rules = find_one(helm.template(values), "PrometheusRule")["spec"]["groups"][0]["rules"]
    registry = Metrics().registry
    series = {name for metric in registry.collect() for name in (metric.name, f"{metric.name}_total")}
    for rule in rules:
        used = set(re.findall(r"\btonnage_[a-z_]+", rule["expr"]))
        assert used <= series, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5


def test_service_monitors_select_the_services(helm: Helm) -> None:
    objects = helm.template({"metrics": {"serviceMonitor": {"enabled": True}}})
    monitor = find_one(objects, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"]
    found = [
        body for body in objects if body["kind"] == "Service" and wanted.items() <= body["metadata"]["labels"].items()
    ]
    assert len(found) == 2
    for service in found:
        assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_notes_list_the_next_steps(helm_with_cluster: Helm) -> None:
    notes = helm_with_cluster.install({}, "--dry-run=server")
    _, _, text = notes.partition("NOTES:")
    assert "helm test -n tonnage-system tonnage" in text
    assert "tonnage.dev/model: my-model" in text
    shown = re.search(r"<<END\n(.*?)\n *END", text, re.DOTALL)
    assert shown
    example: dict[str, Any] = yaml.safe_load(shown[1])
    assert example["kind"] == names.MODEL_WEIGHTS_KIND
