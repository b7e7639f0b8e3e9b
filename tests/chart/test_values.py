"""The chart's values: which are rejected, that all are documented, and what they change."""

from __future__ import annotations

import json
import re
import runpy
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from chart_support.helm import CHART, Helm, HelmError, Object, Values, default_values, find_one, pod_template
from chart_support.variants import DIGEST, VARIANTS
from support.repository import ROOT
from tonnage_operator import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator


def _leaves(values: Values, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return schema


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["definitions"][node["$ref"].rpartition("/")[2]]
    return node


@pytest.mark.parametrize("name", VARIANTS)
def test_lint_has_no_warning(helm: Helm, name: str) -> None:
    output = helm.run("lint", "--strict", CHART, "--kube-version", "1.34.4", values=VARIANTS[name])
    assert "1 chart(s) linted, 0 chart(s) failed" in output
    assert "[WARNING]" not in output


def test_chart_and_programs_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_schema_has_every_value_and_no_other() -> None:
    schema = _schema()

    def compare(node: dict[str, Any], values: Values, path: str) -> None:
        node = _resolved(schema, node)
        known = node.get("properties")
        if known is None or path.endswith(("resources", "ecurityContext", "issuerRef")):
            return
        listed = set(known) - ({"enabled"} if not path else set())
        assert set(values) == listed, f"{path}: {set(values) ^ listed}"
        for key, value in values.items():
            if isinstance(value, dict) and value:
                compare(known[key], value, f"{path}.{key}")

    compare(schema, default_values(), "")


def test_no_object_of_the_schema_allows_additional_properties() -> None:
    schema = _schema()

    def open_ones(node: object, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            has_members = isinstance(node.get("properties"), dict) and path != "/properties/global"
            if has_members and node.get("additionalProperties") is not False:
                yield path
            for key, value in node.items():
                yield from open_ones(value, f"{path}/{key}")
        elif isinstance(node, list):
            for index, value in enumerate(node):
                yield from open_ones(value, f"{path}/{index}")

    assert not [path for path in open_ones(schema, "") if "/items" not in path]


@pytest.mark.parametrize(
    "values",
    [
        {"webook": {}},
        {"webhook": {"replica": 3}},
        {"webhook": {"replicas": "3"}},
        {"webhook": {"replicas": 0}},
        {"webhook": {"failurePolicy": "fail"}},
        {"webhook": {"timeoutSeconds": 31}},
        {"webhook": {"podDisruptionBudget": {"minAvailable": 1}}},
        {"controller": {"replicas": 2}},
        {"controller": {"logLevel": "trace"}},
        {"controller": {"resources": {"request": {"cpu": 1}}}},
        {"controller": {"resources": {"requests": {"memory": "1 GB"}}}},
        {"controller": {"tolerations": [{"keys": "a"}]}},
        {"controller": {"extraEnv": [{"value": "a"}]}},
        {"controller": {"podLabels": {"a": "no spaces"}}},
        {"image": {"tag": "1"}},
        {"image": {"registry": "https://registry.example.com"}},
        {"image": {"operator": {"digest": "sha256:abc"}}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"image": {"pullSecrets": [{"name": "a"}]}},
        {"cache": {"defaultMedium": "memory"}},
        {"cache": {"memory": {"hostPath": "/dev/shm/tonnage/"}}},
        {"cache": {"memory": {"hostPath": "relative"}}},
        {"cache": {"memory": {"hostPath": "/"}}},
        {"cache": {"memory": {"hostPath": "/dev/../etc"}}},
        {"cache": {"disk": {"reserved": True}}},
        {"cache": {"sharing": "All"}},
        {"cache": {"memory": {"capacity": "400 GiB"}}},
        {"cache": {"memory": {"capacity": "80%"}}},
        {"cache": {"disk": {"minFree": "100%"}}},
        {"cache": {"highWatermarkPercent": 101}},
        {"cache": {"highWatermarkPercent": 0}},
        {"cache": {"lowWatermarkPercent": "80"}},
        {"certificates": {"mode": "selfsigned"}},
        {"certificates": {"selfSigned": {"validityDays": 0}}},
        {"certificates": {"secret": {"webhook": {"caBundle": "no PEM"}}}},
        {"certificates": {"certManager": {"duration": "90d"}}},
        {"reports": {"tokenSeconds": 60}},
        {"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}},
        {"uninstall": {"policy": "Delete"}},
        {"securityContext": {"privileged": True}},
        {"crds": {"keep": "yes"}},
        {"nameOverride": "No_Name"},
    ],
    ids=str,
)
def test_the_schema_rejects_misspelled_and_out_of_range_values(helm: Helm, values: Values) -> None:
    with pytest.raises(HelmError, match="don't meet the specifications of the schema"):
        helm.template(values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cache": {"memory": {"enabled": False}}}, "defaultMedium is Memory, which is not enabled: choose Disk"),
        ({"cache": {"disk": {"hostPath": "/dev/shm/tonnage/disk"}}}, "must not be within each other"),
        ({"cache": {"lowWatermarkPercent": 95}}, "lowWatermarkPercent must not be above"),
        ({"certificates": {"mode": "Secret"}}, "certificates.secret.reports.name"),
        ({"certificates": {"selfSigned": {"validityDays": 30}}}, "renewBeforeDays must be smaller"),
    ],
    ids=str,
)
def test_values_that_a_schema_cannot_check_are_rejected_with_a_message(
    helm: Helm, values: Values, sentence: str
) -> None:
    with pytest.raises(HelmError, match=sentence):
        helm.template(values)


def test_a_parent_chart_can_set_a_condition_and_globals(helm: Helm) -> None:
    assert helm.template({"enabled": True, "global": {"storageClass": "fast"}})


def test_an_older_kubernetes_version_is_rejected(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r">=1\.30\.0-0"):
        helm.run("template", "tonnage", CHART, "--kube-version", "1.29.9")


def test_the_table_of_values_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "hack" / "chart" / "values_table.py"))
    text = (ROOT / "docs" / "guides" / "helm.md").read_text()
    assert script["page"](text) == text, "run: python hack/chart/values_table.py"
    described = [value.path for value in script["values"]((CHART / "values.yaml").read_text())]
    for path, _ in _leaves(default_values()):
        assert any(f"{path}.".startswith(f"{each}.") for each in described), path


@pytest.mark.parametrize("name", VARIANTS)
def test_every_object_has_the_standard_labels(helm: Helm, name: str) -> None:
    values = VARIANTS[name]
    for body in helm.template(values):
        labels = body["metadata"]["labels"]
        about = f"{body['kind']} {body['metadata']['name']}"
        assert labels["app.kubernetes.io/instance"] == "tonnage", about
        if body["kind"] != "Pod":
            assert labels["app.kubernetes.io/managed-by"] == "Helm", about
            assert labels["app.kubernetes.io/part-of"] == "tonnage", about
            assert labels["app.kubernetes.io/version"] == __version__, about
            assert labels["helm.sh/chart"] == f"tonnage-{__version__}", about
        if values.get("commonAnnotations"):
            assert body["metadata"]["annotations"]["example.com/owner"] == "ml", about
            assert labels["example.com/cost"] == "center", about


@pytest.mark.parametrize("name", ["defaults", "scheduling", "cert-manager"])
def test_the_same_values_render_the_same_objects_except_keys(helm: Helm, name: str) -> None:
    def settled() -> list[Object]:
        objects = helm.render(VARIANTS[name])
        for body in objects:
            if body["kind"] == "Secret":
                del body["data"]
                body["metadata"]["annotations"].pop("tonnage.dev/expires", None)
            if body["kind"] in {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}:
                client = body["webhooks"][0]["clientConfig"]
                client.pop("caBundle", None)
                assert re.search(r"/[0-9a-f]{64}$", client["service"].pop("path"))
        return objects

    assert settled() == settled()


def test_images_follow_registry_tag_and_digest(helm: Helm) -> None:
    def images(values: Values) -> set[str]:
        objects = helm.template(values)
        loader = yaml.safe_load(find_one(objects, "ConfigMap")["data"]["installation.yaml"])["loader"]["image"]
        pods = [template for body in objects if (template := pod_template(body))]
        return {loader, *(container["image"] for pod in pods for container in pod["spec"]["containers"])}

    assert images({}) == {f"localhost/tonnage-loader:{__version__}", f"localhost/tonnage-operator:{__version__}"}
    qualified = {"loader": {"repository": "r.example/loader"}, "operator": {"repository": "r:5000/operator"}}
    assert images({"image": {"registry": "", **qualified}}) == {
        f"r.example/loader:{__version__}",
        f"r:5000/operator:{__version__}",
    }
    assert images(VARIANTS["registry and digests"]) == {
        "registry.example.com:5000/ml/other/loader:1.2.3",
        f"registry.example.com:5000/ml/tonnage-operator@{DIGEST}",
    }
    assert images({"global": {"imageRegistry": "global.example.com"}, "image": {"registry": "other.example.com"}}) == {
        f"global.example.com/tonnage-loader:{__version__}",
        f"global.example.com/tonnage-operator:{__version__}",
    }


@pytest.mark.parametrize("registry", ["", "team", "team/ml"])
def test_an_image_without_a_registry_is_rejected(helm: Helm, registry: str) -> None:
    with pytest.raises(HelmError, match=r"The image \S*tonnage-operator:\S+ has no registry"):
        helm.template({"image": {"registry": registry}})
    own = {"operator": {"repository": "r.example/operator"}, "loader": {"repository": "tonnage-loader"}}
    with pytest.raises(HelmError, match=r"The image tonnage-loader:\S+ has no registry"):
        helm.template({"image": {"registry": "", **own}})


def test_every_pod_has_the_pull_secrets(helm: Helm) -> None:
    objects = helm.template(VARIANTS["registry and digests"])
    for body in objects:
        if template := pod_template(body):
            assert template["spec"]["imagePullSecrets"] == [{"name": "parent"}, {"name": "login"}], body["kind"]
    installation = yaml.safe_load(find_one(objects, "ConfigMap")["data"]["installation.yaml"])
    assert installation["loader"]["pullSecrets"] == ["parent", "login"]


def test_values_of_a_component_override_general_ones(helm: Helm) -> None:
    objects = helm.template({**VARIANTS["scheduling"], "webhook": {"logLevel": "error"}})
    controller = find_one(objects, "Deployment", "controller")["spec"]["template"]
    webhook = find_one(objects, "Deployment", "webhook")["spec"]["template"]
    assert controller["spec"]["priorityClassName"] == "system-cluster-critical"
    assert controller["spec"]["nodeSelector"] == {"example.com/pool": "system"}
    assert controller["metadata"]["annotations"]["example.com/of"] == "pod"
    assert controller["metadata"]["labels"]["example.com/team"] == "ml"
    assert webhook["spec"]["priorityClassName"] == "system-node-critical"
    assert webhook["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux", "general": "yes"}
    assert webhook["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_only_a_change_of_the_installation_restarts_both_programs(helm: Helm) -> None:
    def annotations(values: Values) -> set[str]:
        objects = helm.template(values)
        pods = [find_one(objects, "Deployment", name)["spec"]["template"] for name in ("controller", "webhook")]
        return {pod["metadata"]["annotations"]["tonnage.dev/installation"] for pod in pods}

    before = annotations({})
    assert len(before) == 1
    assert annotations({"webhook": {"replicas": 3}, "certificates": {"selfSigned": {"generation": 2}}}) == before
    assert annotations({"cache": {"sharing": "Cluster"}}) != before


def test_one_webhook_has_no_disruption_budget(helm: Helm) -> None:
    kinds = [body["kind"] for body in helm.template({"webhook": {"replicas": 1}})]
    assert "PodDisruptionBudget" not in kinds
    assert find_one(helm.template(), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
