"""Injection: the pod with loaders, volumes, environment and affinity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from operator_support.injection import (
    annotated_pod,
    find_loader,
    inject_pod,
    own_containers,
    plain_env,
    resolved_modelweights,
)
from operator_support.node_model import limited
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.observed import held_entries


def test_a_plain_pod_gets_loader_volume_environment_and_annotations() -> None:
    weights = resolved_modelweights()
    pod = inject_pod(annotated_pod())
    revision = weights.status.resolved.revision if weights.status.resolved else ""
    loader = find_loader(pod)
    assert "restartPolicy" not in loader
    (server,) = own_containers(pod)
    assert server["volumeMounts"] == [
        {"name": "tonnage-cache", "mountPath": "/models/llama", "subPath": "model", "readOnly": True}
    ]
    env = plain_env(server)
    assert env["TONNAGE_MODEL_PATH"] == env["TONNAGE_MODEL_PATH_LLAMA"] == "/models/llama"
    assert env["TONNAGE_REVISION"] == revision
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-cache")
    assert volume["hostPath"] == {"path": f"/dev/shm/tonnage/{revision}", "type": "DirectoryOrCreate"}
    annotations = pod["metadata"]["annotations"]
    assert annotations[names.REVISION] == f"llama={revision}"
    assert annotations[names.INJECTED]
    (claim,) = held_entries.parse_held_entries(annotations[names.ENTRIES])
    assert (claim.ref, claim.key, claim.bytes) == ("serving/llama", revision, 2 * objects.GIB + 1000)
    assert pod["metadata"]["labels"][names.ROLE] == names.ROLE_INJECTED


def test_the_plan_in_the_pod_is_pinned_and_contains_no_secret() -> None:
    weights = resolved_modelweights({"credentials": {"secretRef": {"name": "s3-reader"}}})
    loader = find_loader(inject_pod(annotated_pod(), weights))
    plan = contract.decode_plan(plain_env(loader)["TONNAGE_PLAN"])
    (source,) = plan.sources
    # The loader lists the objects itself: a review gives away no more than their digest.
    assert source.objects is None
    assert plan.expected_digest == objects.resolved_report().digest
    assert plan.identity == contract.Identity(namespace="serving", name="llama", uid=objects.UID, generation=1)
    references = [each for each in loader["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    required = {each["name"] for each in references if not each["valueFrom"]["secretKeyRef"].get("optional")}
    assert required == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert not any("envFrom" in each for each in (loader,))


def test_a_pod_whose_model_no_node_may_hold_is_denied_unless_a_node_has_it() -> None:
    small = limited(capacity="1Gi")
    with pytest.raises(AdmissionDenied, match=r"serving/llama can't be loaded: The model has 2\.0 GiB.*cache\.memory"):
        inject_pod(annotated_pod(), installation=small)
    assert find_loader(inject_pod(annotated_pod(), warm=("n0",), installation=small))
    for cache in ({"delivery": "EmptyDir"}, {"delivery": "PersistentVolumeClaim", "claimName": "weights"}):
        assert find_loader(inject_pod(annotated_pod(), resolved_modelweights({"cache": cache}), installation=small))


def test_injection_is_idempotent() -> None:
    once = inject_pod(annotated_pod())
    assert inject_pod(copy.deepcopy(once)) == once


def test_annotations_copied_from_an_injected_pod_do_not_count() -> None:
    annotations = inject_pod(annotated_pod())["metadata"]["annotations"]
    assert find_loader(inject_pod(annotated_pod(annotations=dict(annotations))))


def test_the_given_pod_is_not_changed() -> None:
    pod = annotated_pod(
        affinity={"nodeAffinity": {}}, volumes=[{"name": "mine", "emptyDir": {}}], initContainers=[{"name": "first"}]
    )
    before = copy.deepcopy(pod)
    inject_pod(pod, warm=("n1",))
    assert pod == before


def test_several_models_have_aliases() -> None:
    pod = annotated_pod({names.MODELS: "base=llama, draft-1=small"})
    done = inject_pod(pod, resolved_modelweights(), resolved_modelweights(name="small", uid="other"))
    assert [each["name"] for each in done["spec"]["initContainers"]] == [
        "tonnage-loader-base",
        "tonnage-loader-draft-1",
    ]
    (server,) = own_containers(done)
    env = plain_env(server)
    assert env["TONNAGE_MODEL_PATH"] == "/models/base"
    assert env["TONNAGE_MODEL_PATH_DRAFT_1"] == "/models/draft-1"
    assert [each["mountPath"] for each in server["volumeMounts"]] == ["/models/base", "/models/draft-1"]
    assert len({each["name"] for each in done["spec"]["volumes"]}) == len(done["spec"]["volumes"])


def test_the_containers_own_variables_stay_and_can_refer_to_injected_ones() -> None:
    pod = annotated_pod()
    pod["spec"]["containers"][0]["env"] = [
        {"name": "TONNAGE_REVISION", "value": "mine"},
        {"name": "ARGS", "value": "--model $(TONNAGE_MODEL_PATH)"},
    ]
    env = inject_pod(pod)["spec"]["containers"][0]["env"]
    found = [each["name"] for each in env]
    assert found.index("TONNAGE_MODEL_PATH") < found.index("ARGS")
    assert [each["value"] for each in env if each["name"] == "TONNAGE_REVISION"] == ["mine"]


def test_warm_nodes_are_preferred() -> None:
    preferred = inject_pod(annotated_pod(), warm=("n1", "n2"))["spec"]["affinity"]["nodeAffinity"]
    (term,) = preferred["preferredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = term["preference"]["matchExpressions"]
    assert expression == {"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["n1", "n2"]}


def test_warm_nodes_are_required_in_each_term_of_the_pods_affinity() -> None:
    mine = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in ("a", "b")]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": mine}}}
    pod = annotated_pod({names.MODEL: "llama", names.SCHEDULING: "require"}, affinity=affinity)
    done = inject_pod(pod, warm=("n1",))
    terms = done["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [len(term["matchExpressions"]) for term in terms] == [2, 2]
    assert find_loader(done)["resources"]["requests"]["memory"] == "512Mi", "it attaches and writes nothing"


def test_require_without_a_warm_node_is_denied() -> None:
    with pytest.raises(AdmissionDenied, match="No node is warm for serving/llama"):
        inject_pod(annotated_pod({names.MODEL: "llama", names.SCHEDULING: "Require"}))


def test_scheduling_ignore_does_not_change_affinity() -> None:
    assert (
        "affinity"
        not in inject_pod(annotated_pod({names.MODEL: "llama", names.SCHEDULING: "Ignore"}), warm=("n1",))["spec"]
    )


@pytest.mark.parametrize(
    "taken",
    [
        {"initContainers": [{"name": "tonnage-loader"}]},
        {"volumes": [{"name": "tonnage-cache"}]},
        {"containers": [{"name": "s", "volumeMounts": [{"name": "tonnage-cache", "mountPath": "/all"}]}]},
        {"initContainers": [{"name": "i", "volumeMounts": [{"name": "tonnage-urls", "mountPath": "/urls"}]}]},
    ],
)
def test_a_pod_that_uses_a_reserved_name_is_denied(taken: dict[str, Any]) -> None:
    with pytest.raises(AdmissionDenied, match=r"tonnage-loader|tonnage-cache|tonnage-urls"):
        inject_pod(annotated_pod(**taken))


@settings(max_examples=50, deadline=None)
@given(
    containers=st.integers(1, 4),
    inits=st.lists(st.sampled_from(["istio-init", "a", "b", "linkerd-proxy"]), unique=True),
    volumes=st.lists(st.sampled_from(["v1", "v2"]), unique=True),
    warm=st.lists(st.sampled_from(["n1", "n2"]), unique=True),
    scheduling=st.sampled_from(["Prefer", "Ignore"]),
    form=st.sampled_from(["Sidecar", "Init"]),
)
def test_injection_of_any_pod_is_idempotent_and_loses_nothing(
    containers: int, inits: list[str], volumes: list[str], warm: list[str], scheduling: str, form: str
) -> None:
    pod = annotated_pod(
        {names.MODEL: "llama", names.SCHEDULING: scheduling, names.FORM: form},
        containers=[{"name": f"c{index}"} for index in range(containers)],
        initContainers=[{"name": name} for name in inits],
        volumes=[{"name": name, "emptyDir": {}} for name in volumes],
    )
    once = inject_pod(pod, warm=tuple(warm))
    assert inject_pod(once, warm=tuple(warm)) == once
    assert [each["name"] for each in own_containers(once)] == [f"c{index}" for index in range(containers)]
    ours = {names.LOADER_CONTAINER, names.HOLDER_CONTAINER}
    rest = [each["name"] for each in once["spec"]["initContainers"] if each["name"] not in ours]
    assert rest == inits
    assert {"name": volumes[0], "emptyDir": {}} in once["spec"]["volumes"] if volumes else True
