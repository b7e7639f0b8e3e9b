"""The loader's container: resources, volumes, security context."""

from __future__ import annotations

import pytest

from operator_support import objects
from operator_support.injection import (
    RESERVED_INSTALLATION,
    annotated_pod,
    find_loader,
    inject_pod,
    plain_env,
    resolved_modelweights,
)
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.observed import held_entries
from tonnage_operator.domain.specs import jobs


def test_bytes_written_to_memory_are_requested_and_no_limit_is_below_them() -> None:
    needed = 2 * objects.GIB + 1000 + (512 << 20)
    assert find_loader(inject_pod(annotated_pod()))["resources"]["requests"]["memory"] == str(needed)
    limited = resolved_modelweights({"loader": {"resources": {"limits": {"memory": "1Gi"}}}})
    assert find_loader(inject_pod(annotated_pod(), limited))["resources"]["limits"]["memory"] == str(needed)
    assert "limits" not in find_loader(inject_pod(annotated_pod()))["resources"]
    on_disk = resolved_modelweights({"cache": {"medium": "Disk"}})
    assert find_loader(inject_pod(annotated_pod(), on_disk))["resources"]["requests"]["memory"] == "512Mi"
    assert (
        find_loader(inject_pod(annotated_pod(), installation=RESERVED_INSTALLATION))["resources"]["requests"]["memory"]
        == "512Mi"
    )


@pytest.mark.parametrize(
    ("cache", "kind"),
    [
        ({"delivery": "EmptyDir"}, "emptyDir"),
        ({"delivery": "PersistentVolumeClaim", "claimName": "weights"}, "persistentVolumeClaim"),
    ],
)
def test_without_host_paths_the_loader_fits_the_restricted_profile(cache: dict[str, str], kind: str) -> None:
    pod = inject_pod(annotated_pod(), resolved_modelweights({"cache": cache}))
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-cache")
    assert kind in volume
    assert find_loader(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (claim,) = held_entries.parse_held_entries(pod["metadata"]["annotations"][names.ENTRIES])
    assert claim.key == ""


def test_presigned_urls_come_from_a_file_that_follows_the_secret() -> None:
    http = {"http": {"urlsFrom": {"name": "llama-urls", "key": "list"}}}
    weights = objects.modelweights({"source": {"s3": None, **http}})
    job = jobs.build_resolve_job(weights, objects.INSTALLATION, round_="", attempt=1)["spec"]["template"]["spec"]
    (loader,) = job["containers"]
    (source,) = contract.decode_plan(plain_env(loader)["TONNAGE_PLAN"]).sources
    assert isinstance(source, contract.HttpSource)
    (mount,) = [each for each in loader["volumeMounts"] if each["name"] == "tonnage-urls"]
    assert source.urls_file == f"{mount['mountPath']}/urls"
    (volume,) = [each for each in job["volumes"] if each["name"] == "tonnage-urls"]
    assert volume["secret"]["items"] == [{"key": "list", "path": "urls"}]
    gate = next(each for each in loader["env"] if "secretKeyRef" in each.get("valueFrom", {}))
    assert gate["valueFrom"]["secretKeyRef"] == {"name": "llama-urls", "key": "list"}


def test_a_pvc_has_a_folder_for_each_revision_of_each_model() -> None:
    weights = resolved_modelweights({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    revision = weights.status.resolved.revision if weights.status.resolved else ""
    pod = inject_pod(annotated_pod(), weights)
    (mount,) = [each for each in find_loader(pod)["volumeMounts"] if each["name"] == "tonnage-cache"]
    assert mount == {"name": "tonnage-cache", "mountPath": f"/cache/{revision}", "subPath": revision}
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    assert mount["subPath"] == f"{revision}/model"


def test_namespaces_have_their_own_entries_if_sharing_is_namespace() -> None:
    installation = Installation.model_validate(
        {**objects.INSTALLATION.model_dump(mode="json", by_alias=True), "sharing": "Namespace"}
    )
    pod = inject_pod(annotated_pod(), installation=installation)
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-cache")
    assert volume["hostPath"]["path"].startswith("/dev/shm/tonnage/serving/r-")


@pytest.mark.parametrize("delivery", ["HostPath", "EmptyDir"])
def test_loaders_of_host_paths_have_the_selinux_context_of_the_installation(delivery: str) -> None:
    """The policy of a node lets containers write to host paths in certain contexts only."""
    options = {"type": "spc_t", "level": "s0:c1,c2"}
    loader = objects.INSTALLATION.loader.model_copy(update={"se_linux_options": options})
    installation = objects.INSTALLATION.model_copy(update={"loader": loader})
    weights = resolved_modelweights({"cache": {"delivery": delivery}})
    container = find_loader(inject_pod(annotated_pod(), weights, installation=installation))
    expected = options if delivery == "HostPath" else None
    assert container["securityContext"].get("seLinuxOptions") == expected


def test_an_egress_proxy_reaches_loaders_in_jobs_and_pods_but_replaces_no_variable_of_ours() -> None:
    env = [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, {"name": "TONNAGE_PLAN", "value": "{}"}]
    loader = objects.INSTALLATION.loader.model_validate({"image": "i", "env": env})
    installation = objects.INSTALLATION.model_copy(update={"loader": loader})
    job = jobs.build_resolve_job(objects.modelweights(), installation, round_="", attempt=1)
    in_job = job["spec"]["template"]["spec"]["containers"][0]
    in_pod = find_loader(inject_pod(annotated_pod(), installation=installation))
    for container in (in_job, in_pod):
        assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
        assert contract.decode_plan(plain_env(container)["TONNAGE_PLAN"]).sources


def test_reports_need_a_bound_token_and_the_endpoints_ca() -> None:
    pod = inject_pod(annotated_pod())
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "tonnage-token")
    token, ca = volume["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "tonnage.dev"
    path = ca["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['tonnage.dev/report-ca']"
    installation = objects.INSTALLATION.with_report_ca(f"# the old\n{objects.CA_PEM}# the new\n{objects.CA_PEM}")
    pod = inject_pod(annotated_pod(), installation=installation)
    assert pod["metadata"]["annotations"]["tonnage.dev/report-ca"] == "MIIBAgIB MIIBAgIB"


@pytest.mark.parametrize(
    ("scheduling", "installation", "requested"),
    [
        ("Prefer", objects.INSTALLATION, "bytes"),
        ("Ignore", objects.INSTALLATION, "bytes"),
        ("Require", objects.INSTALLATION, "overhead"),
        ("Prefer", RESERVED_INSTALLATION, "overhead"),
        ("Require", RESERVED_INSTALLATION, "overhead"),
    ],
)
def test_a_pod_requests_the_bytes_unless_it_writes_none_or_they_are_set_aside(
    scheduling: str, installation: Installation, requested: str
) -> None:
    """Also if nodes are warm: with Prefer the pod may run on a node that isn't."""
    annotations = {names.MODEL: "llama", names.SCHEDULING: scheduling}
    pod = inject_pod(annotated_pod(annotations), warm=("n0", "n1"), installation=installation)
    memory = find_loader(pod)["resources"]["requests"]["memory"]
    assert memory == ("512Mi" if requested == "overhead" else str(2 * objects.GIB + 1000 + (512 << 20)))


def test_an_annotation_overrides_the_requests() -> None:
    pod = inject_pod(annotated_pod({names.MODEL: "llama", names.LOADER_MEMORY: "1Gi"}), warm=("n0",))
    assert find_loader(pod)["resources"]["requests"]["memory"] == "1Gi"
