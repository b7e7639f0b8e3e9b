"""The annotation that gives vLLM its plugin without another image."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support.injection import annotated_pod, find_loader, inject_pod, own_containers, plain_env
from tonnage_operator.api import names
from tonnage_operator.domain.admission.injected_model import AdmissionDenied

ASKED = {names.MODEL: "llama", names.VLLM_PLUGIN: "true"}


def _server(**fields: Any) -> dict[str, Any]:
    return {"name": "server", "image": "vllm", **fields}


def test_the_loader_writes_it_and_servers_have_it_read_only_and_first_in_their_path() -> None:
    pod = inject_pod(annotated_pod(ASKED))
    loader, (server,) = find_loader(pod), own_containers(pod)
    (volume,) = [each for each in pod["spec"]["volumes"] if "plugin" in each["name"]]
    assert "emptyDir" in volume
    folder = loader["args"][loader["args"].index("--plugin") + 1]
    assert {"name": volume["name"], "mountPath": folder} in loader["volumeMounts"]
    assert {"name": volume["name"], "mountPath": "/opt/tonnage", "readOnly": True} in server["volumeMounts"]
    assert plain_env(server)["PYTHONPATH"] == "/opt/tonnage"
    assert volume["name"] not in {each["name"] for each in find_loader(pod, names.HOLDER_CONTAINER)["volumeMounts"]}


def test_a_path_of_the_container_comes_after_it() -> None:
    own = [{"name": "LIBRARY", "value": "/lib"}, {"name": "PYTHONPATH", "value": "$(LIBRARY)"}]
    (server,) = own_containers(inject_pod(annotated_pod(ASKED, containers=[_server(env=own)])))
    assert [each for each in server["env"] if each["name"] in {"LIBRARY", "PYTHONPATH"}] == [
        own[0],
        {"name": "PYTHONPATH", "value": "/opt/tonnage:$(LIBRARY)"},
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"containers": [_server(env=[{"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {}}}])]},
            "has PYTHONPATH from elsewhere",
        ),
        (
            {"containers": [_server(volumeMounts=[{"name": "own", "mountPath": "/opt/tonnage"}])]},
            "already mounts a volume at /opt/tonnage",
        ),
        ({"volumes": [{"name": "tonnage-vllm-plugin", "emptyDir": {}}]}, "reserved for Tonnage"),
    ],
    ids=["path from elsewhere", "taken path", "reserved name"],
)
def test_a_pod_that_can_not_have_it_is_refused_with_a_remedy(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(AdmissionDenied) as caught:
        inject_pod(annotated_pod(ASKED, **spec))
    assert message in str(caught.value)
