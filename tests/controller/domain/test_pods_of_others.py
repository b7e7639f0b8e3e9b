"""Pods with containers, mounts and annotations of other tools: meshes, cloud identities, webhooks, autoscalers."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support.injection import (
    annotated_pod,
    find_loader,
    inject_pod,
    own_containers,
    plain_env,
    resolved_modelweights,
)
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Weights
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.admission.reinvocation import complete_injection
from tonnage_operator.domain.admission.requested_ranks import find_missing_ranks

NATIVE = {"restartPolicy": "Always"}
EVICTABLE = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"


def _init_names(pod: dict[str, Any]) -> list[str]:
    """Returns the names of the init containers, without the native holder, which always comes after the loader."""
    found = [each["name"] for each in pod["spec"]["initContainers"]]
    if pod["spec"].get("restartPolicy", "Always") != "Always":
        assert found.index("tonnage-hold") == found.index("tonnage-loader") + 1
    return [name for name in found if name != "tonnage-hold"]


def _pod_with(*init_containers: str, native: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    made = [{"name": name, **(NATIVE if name in native else {})} for name in init_containers]
    return annotated_pod(initContainers=made, **more)


@pytest.mark.parametrize(
    ("existing", "native", "expected"),
    [
        ([], [], ["tonnage-loader"]),
        (["migrate"], [], ["tonnage-loader", "migrate"]),
        (["istio-init", "migrate"], [], ["tonnage-loader", "istio-init", "migrate"]),
        (["migrate", "linkerd-init"], [], ["tonnage-loader", "migrate", "linkerd-init"]),
        (["kuma-init"], [], ["tonnage-loader", "kuma-init"]),
        (["consul-connect-inject-init"], [], ["tonnage-loader", "consul-connect-inject-init"]),
        (["istio-init", "istio-proxy", "a"], ["istio-proxy"], ["istio-init", "istio-proxy", "tonnage-loader", "a"]),
        (["linkerd-init", "linkerd-proxy"], ["linkerd-proxy"], ["linkerd-init", "linkerd-proxy", "tonnage-loader"]),
        (["istio-validation", "istio-proxy"], ["istio-proxy"], ["istio-validation", "istio-proxy", "tonnage-loader"]),
    ],
)  # fmt: skip
def test_a_loader_runs_while_its_pod_has_a_network(existing: list[str], native: list[str], expected: list[str]) -> None:
    """Before the redirection to a proxy that starts after all init containers, or after a proxy that runs by then."""
    assert _init_names(inject_pod(_pod_with(*existing, native=tuple(native)))) == expected


@pytest.mark.parametrize("validator", ["istio-validation", "linkerd-network-validator", "kuma-validation"])
def test_a_mesh_that_leaves_no_network_is_denied_with_what_to_set(validator: str) -> None:
    with pytest.raises(AdmissionDenied, match=rf"{validator}.*native sidecars.*excludeOutboundPorts"):
        inject_pod(_pod_with(validator))


@pytest.mark.parametrize(
    "excluded",
    [
        {"traffic.sidecar.istio.io/excludeOutboundPorts": "443"},
        {"config.linkerd.io/skip-outbound-ports": "8333"},
        {"traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8"},
    ],
)
def test_a_mesh_that_lets_the_stores_traffic_pass_is_admitted(excluded: dict[str, str]) -> None:
    pod = _pod_with("istio-validation")
    pod["metadata"]["annotations"] |= excluded
    assert "tonnage-loader" in _init_names(inject_pod(pod))


@pytest.mark.parametrize(
    ("volumes", "mount", "sentence"),
    [
        ([], {"name": "x", "mountPath": "/models/llama/"}, "already mounts a volume at /models/llama"),
        ([], {"name": "x", "mountPath": "/models/llama/cache"}, "inside the model's read-only folder"),
        ([], {"name": "x", "mountPath": "/models", "readOnly": True}, "mounts volume x read-only at /models"),
        ([{"name": "x", "configMap": {"name": "c"}}], {"name": "x", "mountPath": "/models/"}, "read-only at /models"),
        (
            [{"name": "x", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}],
            {"name": "x", "mountPath": "/models"},
            "read-only at /models",
        ),
        ([{"name": "x", "image": {"reference": "i"}}], {"name": "x", "mountPath": "/models"}, "read-only at /models"),
    ],
)
def test_a_mount_in_the_way_of_the_model_is_named(
    volumes: list[dict[str, Any]], mount: dict[str, Any], sentence: str
) -> None:
    pod = annotated_pod(containers=[{"name": "server", "volumeMounts": [mount]}], volumes=volumes)
    with pytest.raises(AdmissionDenied, match=rf"server.*{sentence}.*{names.MOUNT_PATH}"):
        inject_pod(pod)


@pytest.mark.parametrize(
    ("volumes", "mount"),
    [
        ([{"name": "x", "emptyDir": {}}], {"name": "x", "mountPath": "/models"}),
        ([{"name": "x", "persistentVolumeClaim": {"claimName": "c"}}], {"name": "x", "mountPath": "/models"}),
        ([{"name": "x", "configMap": {"name": "c"}}], {"name": "x", "mountPath": "/models/llama2"}),
        ([{"name": "x", "configMap": {"name": "c"}}], {"name": "x", "mountPath": "/models-of-mine"}),
    ],
)
def test_a_mount_that_leaves_room_for_the_model_is_admitted(
    volumes: list[dict[str, Any]], mount: dict[str, Any]
) -> None:
    pod = annotated_pod(containers=[{"name": "server", "volumeMounts": [mount]}], volumes=volumes)
    assert len(inject_pod(pod)["spec"]["containers"][0]["volumeMounts"]) == 2


def test_a_mount_over_the_folder_of_the_status_file_is_denied() -> None:
    mount = {"name": "x", "mountPath": "/models/.tonnage/llama"}
    pod = annotated_pod({names.MODEL: "llama", names.ON_FAILURE: "continue"})
    pod["spec"]["containers"][0]["volumeMounts"] = [mount]
    with pytest.raises(AdmissionDenied, match=r"already mounts a volume at /models/\.tonnage/llama"):
        inject_pod(pod)


def test_a_container_that_another_webhook_adds_gets_the_model_at_the_second_review() -> None:
    once = inject_pod(annotated_pod())
    once["spec"]["containers"].append({"name": "added", "env": [{"name": "TONNAGE_REVISION", "value": "own"}]})
    again = inject_pod(once)
    server, added = own_containers(again)
    assert added["volumeMounts"] == server["volumeMounts"]
    assert plain_env(added) == {**plain_env(server), "TONNAGE_REVISION": "own"}
    assert inject_pod(again) == again


def test_a_container_that_is_not_named_gets_nothing_at_the_second_review() -> None:
    once = inject_pod(annotated_pod({names.MODEL: "llama", names.CONTAINERS: "server"}))
    once["spec"]["containers"].append({"name": "added"})
    assert inject_pod(once) == once


def test_a_proxy_that_a_mesh_adds_later_comes_before_the_loader() -> None:
    once = inject_pod(_pod_with("migrate"))
    once["spec"]["initContainers"].append({"name": "linkerd-proxy", **NATIVE})
    assert _init_names(complete_injection(once, None)) == ["migrate", "linkerd-proxy", "tonnage-loader"]


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(st.sampled_from(["istio-init", "istio-proxy", "a"]), unique=True),
    after=st.lists(st.sampled_from(["linkerd-init", "linkerd-proxy", "b"]), unique=True),
    added=st.lists(st.sampled_from(["x", "y"]), unique=True),
)
def test_any_change_by_other_webhooks_keeps_their_containers_and_settles(
    before: list[str], after: list[str], added: list[str]
) -> None:
    pod = inject_pod(_pod_with(*before, native=("istio-proxy",)))
    pod["spec"]["initContainers"] += [{"name": name, **(NATIVE if name == "linkerd-proxy" else {})} for name in after]
    pod["spec"]["containers"] += [{"name": name} for name in added]
    again = inject_pod(copy.deepcopy(pod))
    assert inject_pod(copy.deepcopy(again)) == again
    assert [name for name in _init_names(again) if name != "tonnage-loader"] == [*before, *after]
    assert all(each["volumeMounts"] for each in own_containers(again))
    order = _init_names(again)
    native = [name for name in ("istio-proxy", "linkerd-proxy") if name in order]
    assert all(order.index(name) < order.index("tonnage-loader") for name in native)


@pytest.mark.parametrize(
    ("mounted", "variables"),
    [
        ("aws-iam-token", ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"]),
        ("eks-pod-identity-token", ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]),
    ],
)
def test_the_loader_has_the_cloud_identity_that_a_webhook_gave_to_its_pod(mounted: str, variables: list[str]) -> None:
    mount = {"name": mounted, "mountPath": "/var/run/secrets/identity", "readOnly": True}
    env = [{"name": name, "value": "v"} for name in [*variables, "AWS_REGION", "PASSWORD"]]
    pod = annotated_pod(containers=[{"name": "server", "volumeMounts": [mount], "env": env}])
    loader = find_loader(inject_pod(pod))
    assert mount in loader["volumeMounts"]
    assert set(plain_env(loader)) >= {*variables, "AWS_REGION"}
    assert "PASSWORD" not in plain_env(loader)


def test_a_loader_with_a_secret_takes_over_no_cloud_identity() -> None:
    mount = {"name": "aws-iam-token", "mountPath": "/t"}
    env = [{"name": "AWS_ROLE_ARN", "value": "v"}]
    pod = annotated_pod(containers=[{"name": "server", "volumeMounts": [mount], "env": env}])
    weights = resolved_modelweights({"credentials": {"secretRef": {"name": "s"}}})
    loader = find_loader(inject_pod(pod, weights))
    assert "AWS_ROLE_ARN" not in plain_env(loader)
    assert mount not in loader["volumeMounts"]


def test_the_cluster_autoscaler_may_remove_the_node_as_before() -> None:
    pod = annotated_pod(volumes=[{"name": "mine", "emptyDir": {}}])
    pod["metadata"]["annotations"][EVICTABLE] = "mine"
    done = inject_pod(pod)
    listed = done["metadata"]["annotations"][EVICTABLE].split(",")
    ours = {each["name"] for each in done["spec"]["volumes"]} - {"mine"}
    assert listed[0] == "mine"
    assert set(listed[1:]) == ours, "the pod's other volumes are not listed"


@pytest.mark.parametrize("where", [{"os": {"name": "windows"}}, {"nodeSelector": {"kubernetes.io/os": "windows"}}])
def test_a_pod_for_windows_is_denied(where: dict[str, Any]) -> None:
    with pytest.raises(AdmissionDenied, match="windows, and loaders run on Linux"):
        inject_pod(annotated_pod(**where))


@pytest.mark.parametrize("form", ["Sidecar", "Init"])
def test_resources_of_the_whole_pod_grow_by_those_of_the_loader(form: str) -> None:
    total = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    pod = annotated_pod({names.MODEL: "llama", names.FORM: form}, resources=total)
    done = inject_pod(pod)
    loader = find_loader(done)["resources"]["requests"]
    requests, limits = done["spec"]["resources"]["requests"], done["spec"]["resources"]["limits"]
    assert requests["cpu"] == "1500m"
    assert int(requests["memory"]) == (1 << 30) + int(loader["memory"])
    assert int(limits["memory"]) == (2 << 30) + int(loader["memory"])
    assert "resources" not in inject_pod(annotated_pod())["spec"]


@pytest.mark.parametrize(
    ("text", "amount"), [("1e3", "1000"), ("100n", "1m"), ("0.5", "500m"), ("1.5Gi", "1610612736"), (2, "2")]
)
def test_quantities_of_users_are_read_in_every_form(text: object, amount: str) -> None:
    assert units.add_quantities(text, "0") == amount


@pytest.mark.parametrize("text", ["", "x", "1ZZ", ".", "1e", "--1", "9" * 50])
def test_what_is_no_quantity_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        units.exact_quantity(text)


def test_a_single_model_has_a_revision_under_its_own_name() -> None:
    env = plain_env(inject_pod(annotated_pod())["spec"]["containers"][0])
    assert env["TONNAGE_REVISION_LLAMA"] == env["TONNAGE_REVISION"]


@pytest.mark.parametrize(
    ("files", "wanted", "sentence"),
    [
        (None, "0", "serving/llama has no ranks: no object of r-[0-9a-f]+ is named like model-rank"),
        ({"ranks": {"pattern": "model-%d.tensors"}}, "0-2,7", r"has no rank 2,7; r-[0-9a-f]+ has the ranks 0-1"),
        ({"ranks": {"pattern": "model-%03d.tensors"}}, "0", "has no ranks"),
    ],
)
def test_ranks_that_the_model_does_not_have_are_denied(files: Any, wanted: str, sentence: str) -> None:
    weights = resolved_modelweights({"files": files} if files else {})
    with pytest.raises(AdmissionDenied, match=sentence):
        inject_pod(annotated_pod({names.MODEL: "llama", names.RANKS: wanted}), weights)


@pytest.mark.parametrize(
    ("arguments", "is_denied"),
    [
        (["vllm", "serve", "/models/llama", "--load-format", "sharded_state"], True),
        (["--load_format=sharded_state", "--tensor-parallel-size=1"], True),
        (["--load-format=runai_streamer_sharded", "-tp", "1"], True),
        (["sh", "-c", "vllm serve /m --load-format sharded_state --tensor-parallel-size 1; sleep 1"], True),
        (["sglang", "--load-format", "sharded_state", "--tp-size", "1"], True),
        (["--load-format", "sharded_state", "--tensor-parallel-size", "2"], False),
        (["--load-format", "sharded_state", "--tensor-parallel-size", "$(RANKS)"], False),
        (["--load-format", "sharded_state", "$(MORE)"], False),
        (["--load-format", "sharded_state", "--config", "/etc/vllm.yaml"], False),
        (["--load-format", "tonnage", "--tensor-parallel-size", "1"], False),
        (["--load-format", "auto"], False),
        ([], False),
    ],
)
def test_a_server_of_fewer_ranks_than_the_files_that_would_not_notice_is_denied(
    arguments: list[str], *, is_denied: bool
) -> None:
    pod = annotated_pod(containers=[{"name": "server", "image": "vllm", "command": arguments}])
    weights = resolved_modelweights({"files": {"ranks": {"pattern": "model-%d.tensors"}}})
    with pytest.raises(AdmissionDenied, match="with 1 of its 2 ranks") if is_denied else contextlib.nullcontext():
        inject_pod(pod, weights)
    assert inject_pod(pod, resolved_modelweights({}))


def test_ranks_of_safetensors_files_are_known_by_the_names_of_vllm() -> None:
    weights = resolved_modelweights({})
    seen = weights.status.resolved
    assert seen is not None
    assert seen.objects
    files = [f"llama/model-rank-{rank}-part-{part}.safetensors" for rank in (0, 1) for part in (0, 1)]
    pins = tuple(seen.objects[0].model_copy(update={"key": key}) for key in files)
    revision = seen.model_copy(update={"objects": pins})
    assert find_missing_ranks(weights, revision, {0, 1}) == ""
    assert "has no rank 2; " in find_missing_ranks(weights, revision, {0, 2})


def test_a_kind_of_weights_is_part_of_what_selects_a_revision_but_its_default_is_not() -> None:
    """Objects of earlier releases are not resolved again after an upgrade."""
    spec = resolved_modelweights({}).spec
    plain = spec.files.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"weights"})
    source = spec.source.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert naming.source_hash(spec) == naming.short_digest(source, plain)
    files = spec.files.model_copy(update={"weights": Weights.SAFETENSORS})
    chosen = spec.model_copy(update={"files": files})
    assert naming.source_hash(chosen) != naming.source_hash(spec)


def test_ranks_that_the_model_has_are_admitted() -> None:
    weights = resolved_modelweights({"files": {"ranks": {"pattern": "model-%d.tensors"}}})
    assert find_loader(inject_pod(annotated_pod({names.MODEL: "llama", names.RANKS: "1"}), weights))
