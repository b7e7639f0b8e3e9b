from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain import claims, identity, jobs
from tonnage_operator.domain.access import may_use
from tonnage_operator.domain.inject import Refusal, Supply, available, inject, without_weights
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.requests import BadRequest, asks, read_request
from tonnage_operator.domain.resolving import seen_revision

if TYPE_CHECKING:
    from tonnage_operator.domain.weights import Weights

RESERVED = objects.INSTALLATION.model_copy(
    update={
        "media": {
            medium: host.model_copy(update={"reserved": True}) for medium, host in objects.INSTALLATION.media.items()
        }
    }
)


def _resolved(spec: dict[str, Any] | None = None, **more: Any) -> Weights:
    fresh = objects.weights(spec, **more)
    seen = seen_revision(objects.resolved_report(), fresh, now="2026-01-01T00:00:00Z")
    status = {"resolved": seen.model_dump(mode="json", by_alias=True, exclude_none=True)}  # type: ignore[union-attr]
    return objects.weights(spec, status=status, **more)


def _pod(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "server-",
            "namespace": "serving",
            "annotations": annotations if annotations is not None else {names.MODEL: "llama"},
        },
        "spec": {"containers": [{"name": "server", "image": "vllm"}], **spec},
    }


def _inject(
    pod: dict[str, Any],
    *models: Weights,
    warm: tuple[str, ...] = (),
    installation: Installation = objects.INSTALLATION,
) -> dict[str, Any]:
    request = read_request(pod["metadata"]["annotations"], namespace="serving")
    chosen = models or (_resolved(),)
    supplies = tuple(available(*pair, warm) for pair in zip(request.models, chosen, strict=True))
    return inject(pod, supplies, request, installation)


def _loader(pod: dict[str, Any], name: str = names.LOADER_CONTAINER) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in pod["spec"]["initContainers"] if each["name"] == name)
    return found


def _env(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def test_a_bare_pod_gets_loader_volume_environment_and_annotations() -> None:
    weights = _resolved()
    pod = _inject(_pod())
    revision = weights.status.resolved.revision if weights.status.resolved else ""
    loader = _loader(pod)
    assert loader["restartPolicy"] == "Always"
    assert loader["startupProbe"]["exec"]["command"] == ["test", "-e", "/run/tonnage/ready"]
    (server,) = pod["spec"]["containers"]
    assert server["volumeMounts"] == [
        {"name": "tonnage-cache", "mountPath": "/models/llama", "subPath": "model", "readOnly": True}
    ]
    env = _env(server)
    assert env["TONNAGE_MODEL_PATH"] == env["TONNAGE_MODEL_PATH_LLAMA"] == "/models/llama"
    assert env["TONNAGE_REVISION"] == revision
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-cache")
    assert volume["hostPath"] == {"path": f"/dev/shm/tonnage/{revision}", "type": "DirectoryOrCreate"}
    notes = pod["metadata"]["annotations"]
    assert notes[names.REVISION] == f"llama={revision}"
    assert notes[names.INJECTED]
    (claim,) = claims.read(notes[names.ENTRIES])
    assert (claim.ref, claim.key, claim.bytes) == ("serving/llama", revision, 2 * objects.GIB + 1000)
    assert pod["metadata"]["labels"][names.ROLE] == names.ROLE_INJECTED


def test_the_plan_in_the_pod_is_pinned_and_holds_no_secret() -> None:
    weights = _resolved({"credentials": {"secretRef": {"name": "s3-reader"}}})
    loader = _loader(_inject(_pod(), weights))
    plan = contract.decode_plan(_env(loader)["TONNAGE_PLAN"])
    (source,) = plan.sources
    assert {pin.key for pin in source.objects or ()} == {pin.key for pin in objects.pins()}
    assert plan.identity == contract.Identity(namespace="serving", name="llama", uid=objects.UID, generation=1)
    references = [each for each in loader["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    required = {each["name"] for each in references if not each["valueFrom"]["secretKeyRef"].get("optional")}
    assert required == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert not any("envFrom" in each for each in (loader,))


def test_applied_twice_is_applied_once() -> None:
    once = _inject(_pod())
    assert _inject(copy.deepcopy(once)) == once


def test_annotations_copied_from_an_injected_pod_do_not_count() -> None:
    notes = _inject(_pod())["metadata"]["annotations"]
    assert _loader(_inject(_pod(annotations=dict(notes))))


def test_the_given_pod_is_not_changed() -> None:
    pod = _pod(
        affinity={"nodeAffinity": {}}, volumes=[{"name": "mine", "emptyDir": {}}], initContainers=[{"name": "first"}]
    )
    before = copy.deepcopy(pod)
    _inject(pod, warm=("n1",))
    assert pod == before


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ([], ["tonnage-loader"]),
        (["migrate"], ["tonnage-loader", "migrate"]),
        (["istio-init", "migrate"], ["istio-init", "tonnage-loader", "migrate"]),
        (["linkerd-init", "linkerd-proxy"], ["linkerd-init", "linkerd-proxy", "tonnage-loader"]),
    ],
)
def test_the_loader_comes_first_but_after_a_mesh(existing: list[str], expected: list[str]) -> None:
    pod = _inject(_pod(initContainers=[{"name": name} for name in existing]))
    assert [each["name"] for each in pod["spec"]["initContainers"]] == expected


def test_several_models_have_aliases() -> None:
    pod = _pod({names.MODELS: "base=llama, draft-1=small"})
    injected = _inject(pod, _resolved(), _resolved(name="small", uid="other"))
    assert [each["name"] for each in injected["spec"]["initContainers"]] == [
        "tonnage-loader-base",
        "tonnage-loader-draft-1",
    ]
    (server,) = injected["spec"]["containers"]
    env = _env(server)
    assert env["TONNAGE_MODEL_PATH"] == "/models/base"
    assert env["TONNAGE_MODEL_PATH_DRAFT_1"] == "/models/draft-1"
    assert [each["mountPath"] for each in server["volumeMounts"]] == ["/models/base", "/models/draft-1"]
    assert len({each["name"] for each in injected["spec"]["volumes"]}) == len(injected["spec"]["volumes"])


def test_only_the_named_containers_get_the_mount() -> None:
    pod = _pod({names.MODEL: "llama", names.CONTAINERS: "server"})
    pod["spec"]["containers"].append({"name": "logs"})
    server, logs = _inject(pod)["spec"]["containers"]
    assert server["volumeMounts"]
    assert "volumeMounts" not in logs
    assert "env" not in logs


def test_mount_path_form_ranks_and_resources_follow_annotations() -> None:
    notes = {
        names.MODEL: "llama",
        names.MOUNT_PATH: "/weights/",
        names.FORM: "init",
        names.RANKS: "0-2,7",
        names.LOADER_CPU: "3",
        names.LOADER_MEMORY: "5Gi",
    }
    pod = _inject(_pod(notes))
    loader = _loader(pod)
    assert "restartPolicy" not in loader
    assert "--hold" not in loader["args"]
    assert loader["resources"]["requests"] == {"cpu": "3", "memory": "5Gi"}
    assert contract.decode_plan(_env(loader)["TONNAGE_PLAN"]).files.ranks == contract.RankSelection(wanted=(0, 1, 2, 7))
    assert pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/weights/llama"


def test_variables_that_the_container_sets_itself_stay_and_can_refer_to_ours() -> None:
    pod = _pod()
    pod["spec"]["containers"][0]["env"] = [
        {"name": "TONNAGE_REVISION", "value": "mine"},
        {"name": "ARGS", "value": "--model $(TONNAGE_MODEL_PATH)"},
    ]
    env = _inject(pod)["spec"]["containers"][0]["env"]
    found = [each["name"] for each in env]
    assert found.index("TONNAGE_MODEL_PATH") < found.index("ARGS")
    assert [each["value"] for each in env if each["name"] == "TONNAGE_REVISION"] == ["mine"]


def test_warm_nodes_are_preferred() -> None:
    preferred = _inject(_pod(), warm=("n1", "n2"))["spec"]["affinity"]["nodeAffinity"]
    (term,) = preferred["preferredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = term["preference"]["matchExpressions"]
    assert expression == {"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["n1", "n2"]}


def test_warm_nodes_are_required_in_each_alternative_of_the_pods_own() -> None:
    mine = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in ("a", "b")]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": mine}}}
    pod = _pod({names.MODEL: "llama", names.SCHEDULING: "require"}, affinity=affinity)
    injected = _inject(pod, warm=("n1",))
    terms = injected["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [len(term["matchExpressions"]) for term in terms] == [2, 2]
    assert _loader(injected)["resources"]["requests"]["memory"] == "512Mi", "it attaches and writes nothing"


def test_required_without_a_warm_node_is_refused() -> None:
    with pytest.raises(Refusal, match="No node has serving/llama"):
        _inject(_pod({names.MODEL: "llama", names.SCHEDULING: "Require"}))


def test_ignored_scheduling_leaves_affinity_alone() -> None:
    assert "affinity" not in _inject(_pod({names.MODEL: "llama", names.SCHEDULING: "Ignore"}), warm=("n1",))["spec"]


def test_memory_that_is_written_is_requested_and_no_limit_is_below_it() -> None:
    needed = 2 * objects.GIB + 1000 + (512 << 20)
    assert _loader(_inject(_pod()))["resources"]["requests"]["memory"] == str(needed)
    limited = _resolved({"loader": {"resources": {"limits": {"memory": "1Gi"}}}})
    assert _loader(_inject(_pod(), limited))["resources"]["limits"]["memory"] == str(needed)
    assert "limits" not in _loader(_inject(_pod()))["resources"]
    on_disk = _resolved({"cache": {"medium": "Disk"}})
    assert _loader(_inject(_pod(), on_disk))["resources"]["requests"]["memory"] == "512Mi"
    assert _loader(_inject(_pod(), installation=RESERVED))["resources"]["requests"]["memory"] == "512Mi"


@pytest.mark.parametrize(
    ("cache", "kind"),
    [
        ({"delivery": "EmptyDir"}, "emptyDir"),
        ({"delivery": "PersistentVolumeClaim", "claimName": "weights"}, "persistentVolumeClaim"),
    ],
)
def test_without_host_paths_the_loader_fits_the_restricted_profile(cache: dict[str, str], kind: str) -> None:
    pod = _inject(_pod(), _resolved({"cache": cache}))
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-cache")
    assert kind in volume
    assert _loader(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (claim,) = claims.read(pod["metadata"]["annotations"][names.ENTRIES])
    assert claim.key == ""


def test_presigned_urls_come_from_a_file_that_follows_the_secret() -> None:
    http = {"http": {"urlsFrom": {"name": "llama-urls", "key": "list"}}}
    weights = objects.weights({"source": {"s3": None, **http}})
    job = jobs.resolve_job(weights, objects.INSTALLATION, round_="", attempt=1)["spec"]["template"]["spec"]
    (loader,) = job["containers"]
    (source,) = contract.decode_plan(_env(loader)["TONNAGE_PLAN"]).sources
    assert isinstance(source, contract.HttpSource)
    (mount,) = [each for each in loader["volumeMounts"] if each["name"] == "tonnage-urls"]
    assert source.urls_file == f"{mount['mountPath']}/urls"
    (volume,) = [each for each in job["volumes"] if each["name"] == "tonnage-urls"]
    assert volume["secret"]["items"] == [{"key": "list", "path": "urls"}]
    gate = next(each for each in loader["env"] if "secretKeyRef" in each.get("valueFrom", {}))
    assert gate["valueFrom"]["secretKeyRef"] == {"name": "llama-urls", "key": "list"}


def test_a_claim_has_a_folder_for_each_revision_of_each_model() -> None:
    weights = _resolved({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    revision = weights.status.resolved.revision if weights.status.resolved else ""
    pod = _inject(_pod(), weights)
    (mount,) = [each for each in _loader(pod)["volumeMounts"] if each["name"] == "tonnage-cache"]
    assert mount == {"name": "tonnage-cache", "mountPath": f"/cache/{revision}", "subPath": revision}
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    assert mount["subPath"] == f"{revision}/model"


def test_namespaces_have_entries_of_their_own_where_the_administrator_says_so() -> None:
    installation = Installation.model_validate(
        {**objects.INSTALLATION.model_dump(mode="json", by_alias=True), "sharing": "Namespace"}
    )
    pod = _inject(_pod(), installation=installation)
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-cache")
    assert volume["hostPath"]["path"].startswith("/dev/shm/tonnage/serving/r-")


def test_reports_need_a_bound_token_and_the_endpoints_ca() -> None:
    pod = _inject(_pod())
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-token")
    token, ca = volume["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "tonnage.dev"
    path = ca["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['tonnage.dev/report-ca']"
    assert pod["metadata"]["annotations"]["tonnage.dev/report-ca"] == "PEM"


@pytest.mark.parametrize(
    "taken",
    [
        {"initContainers": [{"name": "tonnage-loader"}]},
        {"volumes": [{"name": "tonnage-cache"}]},
        {"containers": [{"name": "s", "volumeMounts": [{"name": "tonnage-cache", "mountPath": "/all"}]}]},
        {"initContainers": [{"name": "i", "volumeMounts": [{"name": "tonnage-urls", "mountPath": "/urls"}]}]},
        {"containers": [{"name": "s", "volumeMounts": [{"name": "x", "mountPath": "/models/llama/"}]}]},
    ],
)
def test_a_reserved_name_that_is_taken_is_refused(taken: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r"tonnage-loader|tonnage-cache|tonnage-urls|mounts something else"):
        _inject(_pod(**taken))


def test_a_container_that_is_missing_is_named() -> None:
    with pytest.raises(Refusal, match="no container named nobody"):
        _inject(_pod({names.MODEL: "llama", names.CONTAINERS: "nobody"}))


def test_what_is_not_resolved_is_refused() -> None:
    request = read_request({names.MODEL: "llama"}, namespace="serving")
    with pytest.raises(Refusal, match="has not been listed yet"):
        available(request.models[0], objects.weights(), ())
    other = _resolved()
    moved = objects.weights(
        {"source": {"s3": {"prefix": "other/"}}},
        status=other.status.model_dump(mode="json", by_alias=True, exclude_none=True),
    )
    with pytest.raises(Refusal, match="is not resolved"):
        available(request.models[0], moved, ())


def test_going_on_without_weights_is_told_to_the_containers() -> None:
    env = _env(without_weights(_pod(), "No such model.")["spec"]["containers"][0])
    assert env == {"TONNAGE_STATUS": "failed", "TONNAGE_REASON": "No such model."}


def test_going_on_at_run_time_is_told_by_a_file() -> None:
    pod = _inject(_pod({names.MODEL: "llama", names.ON_FAILURE: "continue"}))
    assert _loader(pod)["args"][-4:-2] == ["--on-failure", "continue"]
    (server,) = pod["spec"]["containers"]
    assert _env(server)["TONNAGE_STATUS_FILE"] == "/models/.tonnage/llama/status"


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
def test_an_annotation_that_makes_no_sense_is_named(notes: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match=r"tonnage\.dev/"):
        read_request(notes, namespace="serving")


def test_opting_out_wins() -> None:
    assert not asks({names.MODEL: "llama", names.INJECT: "false"})
    assert not asks({})
    assert asks({names.MODEL: "llama"})


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
    weights = objects.weights({"access": {"allowedNamespaces": rule}})
    assert may_use(weights, "serving", {}) is same
    assert may_use(weights, "elsewhere", {"team": "a"}) is other


def test_an_annotation_of_claims_that_is_nonsense_is_nothing() -> None:
    for text in ("", "x", "{}", '[{"container": 1}]', "[[[["):
        assert claims.read(text) == ()


@settings(max_examples=50, deadline=None)
@given(
    containers=st.integers(1, 4),
    inits=st.lists(st.sampled_from(["istio-init", "a", "b", "linkerd-proxy"]), unique=True),
    volumes=st.lists(st.sampled_from(["v1", "v2"]), unique=True),
    warm=st.lists(st.sampled_from(["n1", "n2"]), unique=True),
    scheduling=st.sampled_from(["Prefer", "Ignore"]),
    form=st.sampled_from(["Sidecar", "Init"]),
)
def test_whatever_the_pod_twice_is_once_and_nothing_of_it_is_lost(
    containers: int, inits: list[str], volumes: list[str], warm: list[str], scheduling: str, form: str
) -> None:
    pod = _pod(
        {names.MODEL: "llama", names.SCHEDULING: scheduling, names.FORM: form},
        containers=[{"name": f"c{index}"} for index in range(containers)],
        initContainers=[{"name": name} for name in inits],
        volumes=[{"name": name, "emptyDir": {}} for name in volumes],
    )
    once = _inject(pod, warm=tuple(warm))
    assert _inject(once, warm=tuple(warm)) == once
    assert [each["name"] for each in once["spec"]["containers"]] == [f"c{index}" for index in range(containers)]
    rest = [each["name"] for each in once["spec"]["initContainers"] if each["name"] != names.LOADER_CONTAINER]
    assert rest == inits
    assert {"name": volumes[0], "emptyDir": {}} in once["spec"]["volumes"] if volumes else True


def test_supply_needs_a_revision_of_this_source() -> None:
    weights = _resolved()
    assert weights.current is not None
    assert weights.current.source_hash == identity.source_hash(weights.spec)
    assert isinstance(available(read_request({names.MODEL: "x"}, namespace="a").models[0], weights, ()), Supply)
