"""Pod annotations: parsing, their effects, and access to models of other namespaces."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from operator_support.injection import (
    annotated_pod,
    find_loader,
    inject_pod,
    own_containers,
    plain_env,
    resolved_modelweights,
)
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain import naming
from tonnage_operator.domain.admission.access import is_allowed
from tonnage_operator.domain.admission.annotation_names import find_idle_annotation, find_misspelling
from tonnage_operator.domain.admission.inject import without_weights
from tonnage_operator.domain.admission.injected_model import AdmissionDenied, InjectedModel, resolve_injected_model
from tonnage_operator.domain.admission.pod_request import InvalidAnnotation, parse_annotations, requests_weights
from tonnage_operator.domain.observed import held_entries


def test_only_the_named_containers_get_the_mount() -> None:
    pod = annotated_pod({names.MODEL: "llama", names.CONTAINERS: "server"})
    pod["spec"]["containers"].append({"name": "logs"})
    server, logs = own_containers(inject_pod(pod))
    assert server["volumeMounts"]
    assert "volumeMounts" not in logs
    assert "env" not in logs


def test_mount_path_form_ranks_and_resources_follow_annotations() -> None:
    annotations = {
        names.MODEL: "llama",
        names.MOUNT_PATH: "/weights/",
        names.FORM: "init",
        names.RANKS: "0,1",
        names.LOADER_CPU: "3",
        names.LOADER_MEMORY: "5Gi",
    }
    weights = resolved_modelweights({"files": {"ranks": {"pattern": "model-%d.tensors"}}})
    pod = inject_pod(annotated_pod(annotations), weights)
    loader = find_loader(pod)
    assert "restartPolicy" not in loader
    assert "--hold" not in loader["args"]
    assert loader["resources"]["requests"] == {"cpu": "3", "memory": "5Gi"}
    assert contract.decode_plan(plain_env(loader)["TONNAGE_PLAN"]).files.ranks == contract.RankSelection(
        pattern="model-%d.tensors", wanted=(0, 1)
    )
    assert pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/weights/llama"


def test_a_missing_container_is_named() -> None:
    with pytest.raises(AdmissionDenied, match="no container named missing"):
        inject_pod(annotated_pod({names.MODEL: "llama", names.CONTAINERS: "missing"}))


def test_continuing_without_weights_sets_container_variables() -> None:
    env = plain_env(without_weights(annotated_pod(), "No such model.")["spec"]["containers"][0])
    assert env == {"TONNAGE_STATUS": "failed", "TONNAGE_REASON": "No such model."}


def test_continuing_at_run_time_writes_a_status_file() -> None:
    pod = inject_pod(annotated_pod({names.MODEL: "llama", names.ON_FAILURE: "continue"}))
    assert find_loader(pod)["args"][-4:-2] == ["--on-failure", "continue"]
    (server,) = own_containers(pod)
    assert plain_env(server)["TONNAGE_STATUS_FILE"] == "/models/.tonnage/llama/status"


@pytest.mark.parametrize(
    "notes",
    [
        {names.MODEL: "a", names.MODELS: "b=c"},
        {names.MODEL: ""},
        {names.MODEL: "a/b/c"},
        {names.MODEL: "UPPER"},
        {names.MODELS: "noalias"},
        {names.MODELS: "a=x,a=y"},
        {names.MODELS: "a-b=x,a--b=y,A=z"},
        {names.MODELS: ",".join(f"a{index}=x" for index in range(17))},
        {names.MODEL: "a", names.MOUNT_PATH: "models"},
        {names.MODEL: "a", names.MOUNT_PATH: "/a/../b"},
        {names.MODEL: "a", names.CONTAINERS: " , "},
        {names.MODEL: "a", names.RANKS: "3-1"},
        {names.MODEL: "a", names.RANKS: "x"},
        {names.MODEL: "a", names.RANKS: "0-99999"},
        {names.MODEL: "a", names.FORM: "daemon"},
        {names.MODEL: "a", names.SCHEDULING: "maybe"},
        {names.MODEL: "a", names.ON_FAILURE: "panic"},
        {names.MODEL: "a", names.LOADER_CPU: "lots"},
        {names.MODEL: "a", names.LOADER_MEMORY: "-1Gi"},
    ],
)
def test_an_invalid_annotation_is_named(notes: dict[str, str]) -> None:
    with pytest.raises(InvalidAnnotation, match=r"tonnage\.dev/"):
        parse_annotations(notes, namespace="serving")


@pytest.mark.parametrize("value", ["no", "0", "off", "", "False!"])
def test_a_value_of_inject_that_means_neither_is_named(value: str) -> None:
    with pytest.raises(InvalidAnnotation, match=r'tonnage.dev/inject: .* is neither "true" nor "false"'):
        parse_annotations({names.MODEL: "a", names.INJECT: value}, namespace="serving")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("mountpath", names.MOUNT_PATH),
        ("mount_path", names.MOUNT_PATH),
        ("modle", names.MODEL),
        ("Model", names.MODEL),
        ("container", names.CONTAINERS),
        ("rank", names.RANKS),
        ("on-fail", names.ON_FAILURE),
        ("loadermemory", names.LOADER_MEMORY),
        ("injects", names.INJECT),
    ],
)
def test_a_misspelled_annotation_is_named_with_the_one_that_it_means(written: str, meant: str) -> None:
    assert find_misspelling({f"tonnage.dev/{written}": "x"}).endswith(f"did you mean {meant}?")


def test_an_annotation_like_no_other_is_named_with_all_that_exist() -> None:
    assert all(name in find_misspelling({"tonnage.dev/zzz": ""}) for name in names.POD_ANNOTATIONS)


def test_annotations_that_exist_are_not_misspelled() -> None:
    injected = inject_pod(annotated_pod())["metadata"]["annotations"]
    assert not find_misspelling({**injected, **dict.fromkeys(names.POD_ANNOTATIONS, ""), "other/mountpath": ""})


def test_an_annotation_without_a_model_has_no_effect_and_is_named() -> None:
    assert find_idle_annotation({names.MOUNT_PATH: "/x"}).startswith(names.MOUNT_PATH)
    assert not find_idle_annotation({names.MOUNT_PATH: "/x", names.MODEL: "a"})
    assert not find_idle_annotation({names.INJECT: "false", "other": ""})


def test_inject_false_takes_precedence() -> None:
    assert not requests_weights({names.MODEL: "llama", names.INJECT: "false"})
    assert not requests_weights({})
    assert requests_weights({names.MODEL: "llama"})


@pytest.mark.parametrize(
    ("rule", "same", "other"),
    [
        ({"from": "Same"}, True, False),
        ({"from": "All"}, True, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}, True, True),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}, True, False),
        (
            {"from": "Selector", "selector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}},
            True,
            False,
        ),
    ],
)
def test_access_of_other_namespaces(rule: dict[str, Any], same: bool, other: bool) -> None:
    weights = objects.modelweights({"access": {"allowedNamespaces": rule}})
    assert is_allowed(weights, "serving", {}) is same
    assert is_allowed(weights, "elsewhere", {"team": "a"}) is other


def test_an_invalid_entries_annotation_is_ignored() -> None:
    for text in ("", "x", "{}", '[{"container": 1}]', "[[[["):
        assert held_entries.parse_held_entries(text) == ()


def test_an_unresolved_model_is_denied() -> None:
    request = parse_annotations({names.MODEL: "llama"}, namespace="serving")
    with pytest.raises(AdmissionDenied, match="has not been listed yet"):
        resolve_injected_model(request.models[0], objects.modelweights(), ())
    other = resolved_modelweights()
    moved = objects.modelweights(
        {"source": {"s3": {"prefix": "other/"}}},
        status=other.status.model_dump(mode="json", by_alias=True, exclude_none=True),
    )
    with pytest.raises(AdmissionDenied, match="is not resolved"):
        resolve_injected_model(request.models[0], moved, ())


def test_injection_needs_a_revision_of_the_current_source() -> None:
    weights = resolved_modelweights()
    assert weights.current_revision is not None
    assert weights.current_revision.source_hash == naming.source_hash(weights.spec)
    assert isinstance(
        resolve_injected_model(parse_annotations({names.MODEL: "x"}, namespace="a").models[0], weights, ()),
        InjectedModel,
    )


def test_ranks_are_written_in_one_form_however_they_are_listed() -> None:
    for text in ("0, 1,2 ,5", "5,0-2", "0-2,5,5"):
        assert parse_annotations({names.MODEL: "a", names.RANKS: text}, namespace="x").ranks_text == "0-2,5"


def test_ranks_that_no_held_entry_can_list_are_denied() -> None:
    many = ",".join(str(rank) for rank in range(0, 4096, 2))
    with pytest.raises(InvalidAnnotation, match="too many separate ranges"):
        parse_annotations({names.MODEL: "a", names.RANKS: many}, namespace="x")
