"""The holder of an injected pod: it keeps entries in use, and can change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from operator_support.injection import annotated_pod, find_loader, inject_pod, resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.domain import units
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.specs.holder_container import MEMORY

SECRET = {"credentials": {"secretRef": {"name": "s3-reader"}}}


def find_holder(pod: dict[str, Any]) -> dict[str, Any]:
    return find_loader(pod, names.HOLDER_CONTAINER)


def test_it_starts_together_with_the_servers_so_that_none_waits_for_it() -> None:
    pod = inject_pod(annotated_pod())
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["tonnage-loader"]
    assert [each["name"] for each in pod["spec"]["containers"]] == ["server", "tonnage-hold"]
    holder = find_holder(pod)
    assert "restartPolicy" not in holder
    assert not any("probe" in field.lower() for field in holder)
    assert "--hold" not in find_loader(pod)["args"]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_in_a_pod_that_may_complete_it_is_a_native_sidecar_which_the_kubelet_ends(policy: str) -> None:
    pod = inject_pod(annotated_pod(restartPolicy=policy))
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["tonnage-loader", "tonnage-hold"]
    assert [each["name"] for each in pod["spec"]["containers"]] == ["server"]
    assert find_holder(pod)["restartPolicy"] == "Always"


def test_after_another_review_it_is_not_taken_for_a_server() -> None:
    pod = inject_pod(annotated_pod())
    pod["spec"]["containers"].insert(0, {"name": "added", "image": "proxy"})
    again = inject_pod(pod)
    assert find_holder(again) == find_holder(pod)
    added, server = again["spec"]["containers"][:2]
    assert added["volumeMounts"] == server["volumeMounts"]
    assert inject_pod(again) == again


def test_it_mounts_the_entry_read_only_and_runs_without_privileges() -> None:
    pod = inject_pod(annotated_pod(), resolved_modelweights(SECRET))
    holder, loader = find_holder(pod), find_loader(pod)
    assert all(mount["readOnly"] for mount in holder["volumeMounts"])
    (entry,) = [each["mountPath"] for each in holder["volumeMounts"] if each["name"] == "tonnage-cache"]
    assert holder["args"] == ["hold", entry]
    assert entry in [each["mountPath"] for each in loader["volumeMounts"]]
    assert holder["securityContext"]["runAsNonRoot"] is True
    assert holder["securityContext"]["runAsUser"] == objects.INSTALLATION.loader.unprivileged_uid
    assert holder["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "env" not in holder


@pytest.mark.parametrize("annotation", [names.ENTRIES, names.INJECTED])
def test_it_sees_neither_credentials_nor_the_pods_api_token(annotation: str) -> None:
    pod = inject_pod(annotated_pod(), resolved_modelweights(SECRET))
    assert annotation in pod["metadata"]["annotations"]
    volumes = {each["name"] for each in find_holder(pod)["volumeMounts"]}
    assert volumes == {"tonnage-cache", "tonnage-run"}
    assert "s3-reader" not in str(find_holder(pod))


def test_in_form_init_there_is_none() -> None:
    pod = inject_pod(annotated_pod({names.MODEL: "llama", names.FORM: "Init"}))
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["tonnage-loader"]
    assert [each["name"] for each in pod["spec"]["containers"]] == ["server"]


def test_one_holds_the_entries_of_all_models() -> None:
    pod = annotated_pod({names.MODELS: "base=llama, draft=small"})
    done = inject_pod(pod, resolved_modelweights(), resolved_modelweights(name="small", uid="other"))
    holder = find_holder(done)
    mounted = {each["mountPath"] for each in holder["volumeMounts"] if each["name"].startswith("tonnage-cache")}
    assert set(holder["args"][1:]) == mounted
    assert {each["name"] for each in holder["volumeMounts"]} >= {"tonnage-cache-base", "tonnage-cache-draft"}


def test_where_the_pod_may_start_without_weights_it_holds_what_is_there() -> None:
    holder = find_holder(inject_pod(annotated_pod({names.MODEL: "llama", names.ON_FAILURE: "continue"})))
    assert holder["args"][-2:] == ["--on-failure", "continue"]


@pytest.mark.parametrize(("medium", "pages"), [("Memory", 2 * objects.GIB + 1000), ("Disk", 0)], ids=["memory", "disk"])
def test_it_requests_the_pages_that_stay_charged_to_the_pod(medium: str, pages: int) -> None:
    weights = resolved_modelweights({"cache": {"medium": medium}})
    resources = find_holder(inject_pod(annotated_pod(), weights))["resources"]
    assert units.parse_quantity(resources["requests"]["memory"]) == pages + MEMORY
    assert "limits" not in resources


def test_it_has_limits_where_the_loader_has_some() -> None:
    weights = resolved_modelweights({"loader": {"resources": {"limits": {"cpu": "2", "memory": "4Gi"}}}})
    resources = find_holder(inject_pod(annotated_pod(), weights))["resources"]
    assert set(resources["limits"]) == {"cpu", "memory"}
    assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_a_pod_that_has_a_container_of_its_name_is_denied() -> None:
    with pytest.raises(AdmissionDenied, match="named tonnage-hold, which is reserved"):
        inject_pod(annotated_pod(initContainers=[{"name": "tonnage-hold"}]))
