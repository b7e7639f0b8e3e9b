"""Pods that start before their weights are loaded: ``tonnage.dev/wait: Streaming``."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from operator_support.injection import annotated_pod, find_loader, inject_pod, plain_env, resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.admission.pod_request import InvalidAnnotation
from tonnage_operator.domain.observed.pod import parse_pod

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body

MODEL = {names.MODEL: "llama"}
STREAMING = {names.WAIT: "Streaming"}
CLAIM = {"delivery": "PersistentVolumeClaim", "claimName": "models"}


def streaming_pod(more: dict[str, str] | None = None, **spec: Any) -> Body:
    return annotated_pod({**MODEL, **STREAMING, **(more or {})}, **spec)


def test_the_loader_works_beside_the_server_and_shows_its_files_in_a_directory_of_their_own() -> None:
    pod = inject_pod(streaming_pod())
    loader = find_loader(pod)
    assert loader["restartPolicy"] == "Always"
    assert loader["startupProbe"]["exec"]["command"] == ["test", "-e", "/run/tonnage/ready"]
    assert loader["readinessProbe"]["exec"]["command"] == ["test", "-e", "/run/tonnage/loaded"]
    assert {"--stream", "--hold"} <= set(loader["args"])
    assert [each["name"] for each in pod["spec"]["initContainers"]] == [names.LOADER_CONTAINER]
    (server,) = pod["spec"]["containers"]
    mounts = {each["mountPath"]: each for each in server["volumeMounts"]}
    assert mounts["/models/llama"]["subPath"] == "stream"
    assert mounts["/models/.tonnage/llama"]["name"] == "tonnage-run"
    assert all(each["readOnly"] for each in mounts.values())
    assert plain_env(server)["TONNAGE_STATUS_FILE"] == "/models/.tonnage/llama/status"
    assert inject_pod(copy.deepcopy(pod)) == pod


@pytest.mark.parametrize("value", [None, "Loaded", "loaded"])
def test_a_pod_that_does_not_ask_gets_what_it_got_before(value: str | None) -> None:
    before = inject_pod(annotated_pod())
    pod = inject_pod(annotated_pod(MODEL if value is None else {**MODEL, names.WAIT: value}))
    assert pod["spec"] == before["spec"]
    assert "stream" not in str(pod["spec"])


def test_an_unknown_value_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidAnnotation, match=r"/wait: 'Sometimes' is not one of Loaded, Streaming"):
        inject_pod(annotated_pod({**MODEL, names.WAIT: "Sometimes"}))


@pytest.mark.parametrize(
    ("spec", "annotations", "pod_spec", "words"),
    [
        ({}, {names.FORM: "Init"}, {}, "Init ends the loader before the other containers start"),
        ({"verifyOnHit": True}, {}, {}, "has verifyOnHit"),
        ({}, {}, {"initContainers": [{"name": "istio-init", "image": "istio"}]}, "native sidecars in the mesh"),
    ],
)
def test_what_prevents_it_is_named_with_the_way_out(
    spec: dict[str, Any], annotations: dict[str, str], pod_spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdmissionDenied, match=words) as caught:
        inject_pod(streaming_pod(annotations, **pod_spec), resolved_modelweights(spec))
    assert names.WAIT in str(caught.value)


@pytest.mark.parametrize("delivery", [{"delivery": "EmptyDir"}, CLAIM])
def test_other_deliveries_mount_the_same_directory(delivery: dict[str, str]) -> None:
    pod = inject_pod(streaming_pod(), resolved_modelweights({"cache": delivery}))
    (server,) = pod["spec"]["containers"]
    (mount,) = (each for each in server["volumeMounts"] if each["mountPath"] == "/models/llama")
    assert mount["subPath"].rpartition("/")[2] == "stream"


def test_each_of_several_models_has_its_own_loader_and_status() -> None:
    pod = annotated_pod({names.MODELS: "main=llama,draft=llama", **STREAMING})
    loaders = inject_pod(pod, resolved_modelweights(), resolved_modelweights())["spec"]["initContainers"]
    assert [each["name"] for each in loaders] == ["tonnage-loader-main", "tonnage-loader-draft"]
    assert all(each["restartPolicy"] == "Always" for each in loaders)


@pytest.mark.parametrize(("ready", "expected"), [(False, False), (True, True)])
def test_a_loader_that_streams_is_ready_when_its_readiness_probe_has_passed(*, ready: bool, expected: bool) -> None:
    body = inject_pod(streaming_pod())
    body["metadata"] |= {"name": "server", "namespace": "serving", "uid": "u-1"}
    body["status"] = {
        "initContainerStatuses": [
            {"name": names.LOADER_CONTAINER, "state": {"running": {}}, "started": True, "ready": ready}
        ]
    }
    (loader,) = parse_pod(body).loaders
    assert loader.ready is expected
