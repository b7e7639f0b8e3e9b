"""A real API server accepts the examples unchanged, and those that need no GPU are run."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from demo_cluster.manifests import quickstart
from e2e_support.namespace import Namespace
from support.repository import ROOT
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster

Object = dict[str, Any]

EXAMPLES = ROOT / "examples"
MANIFESTS = sorted(EXAMPLES.rglob("*.yaml"))
TEMPLATES = {"leaderTemplate", "workerTemplate", "template"}


def documents(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def pod_templates(document: object) -> Iterator[Object]:
    """Yields the pod templates of an object, at any depth."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in TEMPLATES and "containers" in value.get("spec", {}):
                yield value
            else:
                yield from pod_templates(value)


def test_the_examples_are_listed() -> None:
    listed = set(re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text()))
    for path in MANIFESTS:
        place = str(path.relative_to(EXAMPLES))
        assert place in listed or path.parent.name == "modelweights", f"{place} is not in examples/README.md"


@pytest.fixture(scope="module")
def examples_namespace(e2e: E2ECluster) -> Iterator[Namespace]:
    """A namespace for examples that are only validated."""
    namespace = Namespace.create(e2e, "examples")
    yield namespace
    namespace.delete()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_valid_on_a_real_api_server(path: Path, examples_namespace: Namespace, e2e: E2ECluster) -> None:
    for document in documents(path):
        body = document
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = examples_namespace.name
        if document["apiVersion"].startswith(("leaderworkerset", "serving.kserve.io")):
            continue  # their CRDs are not installed: the test below and tests/chart/test_admission.py use the objects
        e2e.api.apply(body, dryRun="All", fieldValidation="Strict")


def test_pods_of_examples_are_injected(examples_namespace: Namespace, e2e: E2ECluster) -> None:
    specs: dict[str, Object] = {}
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] == "ModelWeights":
                specs.setdefault(document["metadata"]["name"], document["spec"])
    templates = [(path, template) for path in MANIFESTS for each in documents(path) for template in pod_templates(each)]
    templates = [(path, template) for path, template in templates if models_of(template)]
    asked = {name for _, template in templates for name in models_of(template).values()}
    models = [
        examples_namespace.create_model(
            name, files=files_for(specs[name], e2e), spec=portable_spec(specs[name]), wait=False
        )
        for name in asked
    ]
    for model in models:
        model.wait_for_condition("Ready")
    for number, (path, template) in enumerate(templates):
        metadata = {**template["metadata"], "name": f"pod-{number}", "namespace": examples_namespace.name}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}
        body["spec"].pop("serviceAccountName", None)
        pod = e2e.api.create(body, dryRun="All", fieldValidation="Strict")
        loaders = [each for each in pod["spec"]["initContainers"] if each["name"].startswith(names.LOADER_CONTAINER)]
        assert len(loaders) == len(models_of(template)), path
        for container in pod["spec"]["containers"]:
            known = {each["name"] for each in container.get("env") or ()}
            assert set(re.findall(r"\$\((TONNAGE_\w+)\)", json.dumps(container))) <= known, path


def models_of(template: Object) -> dict[str, str]:
    """Returns the models that a pod template requests, by alias."""
    annotations = template.get("metadata", {}).get("annotations", {})
    if names.MODEL in annotations:
        return {"": annotations[names.MODEL]}
    return dict(part.split("=") for part in annotations.get(names.MODELS, "").split(",") if part)


def files_for(spec: Object, e2e: E2ECluster) -> dict[str, Path]:
    """Returns files that match an object's ``spec.files``."""
    small = dict(e2e.model_files.small)
    if ranks := spec.get("files", {}).get("ranks"):
        return {ranks["pattern"] % rank: small["model.tensors"] for rank in range(ranks["count"])}
    return small


def portable_spec(spec: Object) -> Object:
    """Returns the parts of an example's spec that don't depend on the location of its objects."""
    return {key: spec[key] for key in ("files", "cache", "loader") if key in spec}


def test_the_readme_commands_install_tonnage_and_serve_the_quickstart(e2e: E2ECluster) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    block = re.search(r"<!-- run: cluster -->\n```console\n(.*?)```", readme, re.DOTALL)
    assert block
    commands = [
        line.removeprefix("$ ").split("#")[0].split() for line in block[1].splitlines() if line.startswith("$ ")
    ]
    assert commands[0][:2] == ["helm", "install"]
    assert set(commands[0][2:]) <= set(e2e.release.arguments()), "other tests install with other arguments"
    assert commands[1] == ["kubectl", "apply", "-f", "examples/quickstart.yaml"]
    e2e.upload("quickstart/", e2e.model_files.small)
    try:
        e2e.kubectl("apply", "-f", "-", stdin=quickstart(e2e, "quickstart/"))
        for command in commands[2:]:
            output = e2e.kubectl(*command[1:], timeout=120)
    finally:
        Namespace(e2e, "quickstart").delete()
    assert re.search(r"/models/demo/model\S*\.safetensors: 4 tensors", output)
    assert re.search(r"Read r-[0-9a-f]{32} from /models/demo\.", output)
