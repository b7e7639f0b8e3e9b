"""Which entry a pod uses: one that namespaces share, or one that its namespace has to itself."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from operator_support.injection import annotated_pod, resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.domain.admission import inject, injected_model
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.nodecache.snapshot import ModelReferences
from tonnage_operator.domain.observed.held_entries import parse_held_entries

CLUSTER = objects.INSTALLATION
DEFAULT = Installation.model_validate({
    key: value
    for key, value in objects.INSTALLATION.model_dump(mode="json", by_alias=True).items()
    if key != "sharing"
})  # fmt: skip
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
CA = {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}


def used_entry(
    installation: Installation, *, namespace: str = "serving", source: dict[str, Any] | None = None, **pod_spec: Any
) -> str:
    """Returns the key of the entry that a pod uses."""
    pod = annotated_pod({names.MODEL: "serving/llama"}, **pod_spec)
    request = parse_annotations(pod["metadata"]["annotations"], namespace=namespace)
    weights = objects.modelweights({"source": source or {}})
    return inject.cache_key(weights, "r-0123456789ab", pod, request, installation).replace("r-0123456789ab", "ENTRY")


def test_the_loader_mounts_and_the_annotation_names_the_entry_that_the_pod_uses() -> None:
    weights = resolved_modelweights({"access": {"allowedNamespaces": {"from": "All"}}})
    pod = annotated_pod({names.MODEL: "serving/llama"})
    request = parse_annotations(pod["metadata"]["annotations"], namespace="other")
    made = inject.inject(
        pod, (injected_model.resolve_injected_model(request.models[0], weights, ()),), request, DEFAULT
    )
    (path,) = {each["hostPath"]["path"] for each in made["spec"]["volumes"] if "hostPath" in each}
    (held,) = parse_held_entries(made["metadata"]["annotations"][names.ENTRIES])
    assert weights.status.resolved
    assert held.key == f"other/{weights.status.resolved.revision}"
    assert path == f"/dev/shm/tonnage/{held.key}"


@pytest.mark.parametrize("namespace", ["serving", "other"])
def test_by_default_a_loader_mounts_only_an_entry_of_its_own_namespace(namespace: str) -> None:
    assert used_entry(DEFAULT, namespace=namespace) == f"{namespace}/ENTRY"


def test_with_cluster_namespaces_share_the_entries_of_a_proven_store() -> None:
    assert used_entry(CLUSTER) == used_entry(CLUSTER, namespace="other") == "ENTRY"
    assert used_entry(CLUSTER, source={"s3": {"endpoint": None}}) == "ENTRY"
    https = {"s3": None, "http": {"urls": ["https://example.com/a.tensors"]}}
    assert used_entry(CLUSTER, source=https) == "ENTRY"
    assert used_entry(CLUSTER, source={"s3": None, "hub": {"repo": "org/model"}}) == "ENTRY"


@pytest.mark.parametrize(
    "source",
    [
        {"s3": {"endpoint": "http://s3:8333"}},
        {"s3": {"caBundle": CA}},
        {"s3": None, "http": {"urls": ["https://example.com/a.tensors"], "caBundle": CA}},
        {"s3": None, "http": {"urls": ["https://example.com/a.tensors", "http://example.com/config.json"]}},
        {"s3": None, "http": {"urlsFrom": {"name": "urls", "key": "urls"}}},
        {"s3": None, "hub": {"repo": "org/model", "endpoint": "http://hub"}},
        {"s3": None, "hub": {"repo": "org/model", "caBundle": CA}},
    ],
)
def test_an_unproven_store_is_never_shared(source: dict[str, Any]) -> None:
    assert used_entry(CLUSTER, source=source) == "serving/ENTRY"
    assert used_entry(CLUSTER, source=source, namespace="other") == "other/ENTRY"


@pytest.mark.parametrize(
    "pod_spec",
    [
        {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["s3"]}]},
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"]}},
        {"dnsConfig": {"searches": ["evil.svc.cluster.local"]}},
        {"hostNetwork": True},
    ],
)
def test_a_pod_that_resolves_names_itself_shares_nothing(pod_spec: dict[str, Any]) -> None:
    assert used_entry(CLUSTER, **pod_spec) == "serving/ENTRY"
    assert used_entry(CLUSTER, namespace="other", **pod_spec) == "other/ENTRY"


def test_a_pod_that_continues_after_a_failed_load_shares_nothing() -> None:
    """It would read an entry of which its own loader may not read the objects."""
    pod = annotated_pod({names.MODEL: "serving/llama", names.ON_FAILURE: "continue"})
    request = parse_annotations(pod["metadata"]["annotations"], namespace="other")
    key = inject.cache_key(objects.modelweights(), "r-0123456789ab", pod, request, CLUSTER)
    assert key == "other/r-0123456789ab"


@pytest.mark.parametrize("spec", [{"hostAliases": []}, {"dnsPolicy": "Default"}, {"hostNetwork": False}])
def test_other_network_settings_of_a_pod_do_not_matter(spec: dict[str, Any]) -> None:
    assert used_entry(CLUSTER, **spec) == "ENTRY"


def affinity_elsewhere(
    warm: tuple[str, ...] = (), *, installation: Installation = DEFAULT, annotations: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """Returns the node affinity of a pod of another namespace; the object requires warm nodes."""
    weights = resolved_modelweights(
        {"access": {"allowedNamespaces": {"from": "All"}}, "placement": {"scheduling": "Require"}}
    )
    pod = annotated_pod({names.MODEL: "serving/llama", **(annotations or {})})
    request = parse_annotations(pod["metadata"]["annotations"], namespace="other")
    assert weights.status.resolved
    revision = weights.status.resolved.revision
    is_warmed = inject.cache_key(weights, revision, pod, request, installation) == weights.key(revision, installation)
    model = injected_model.resolve_injected_model(request.models[0], weights, warm, is_warmed=is_warmed)
    spec = inject.inject(pod, (model,), request, installation)["spec"]
    found: dict[str, Any] | None = (spec.get("affinity") or {}).get("nodeAffinity")
    return found


def test_pods_elsewhere_prefer_nodes_where_the_object_requires_warm_ones_because_only_pods_load_their_entry() -> None:
    assert affinity_elsewhere() is None
    assert list(affinity_elsewhere(("a",)) or ()) == ["preferredDuringSchedulingIgnoredDuringExecution"]


def test_pods_elsewhere_require_warm_nodes_for_a_shared_entry_as_the_object_does() -> None:
    assert list(affinity_elsewhere(("a",), installation=CLUSTER) or ()) == [REQUIRED]
    with pytest.raises(injected_model.AdmissionDenied, match="prewarm nodes"):
        affinity_elsewhere(installation=CLUSTER)


def test_the_rejection_of_pods_elsewhere_that_require_warm_nodes_names_what_warms_them() -> None:
    require = {names.SCHEDULING: "Require"}
    assert list(affinity_elsewhere(("a",), annotations=require) or ()) == [REQUIRED]
    with pytest.raises(
        injected_model.AdmissionDenied, match="create a ModelWeights with the same source in namespace other"
    ):
        affinity_elsewhere(annotations=require)


def test_an_object_authorizes_its_entry_in_the_folder_of_each_namespace_that_may_use_it() -> None:
    key = EntryKey("serving/r-0123456789ab", Medium.MEMORY)
    own = EntryKey("other/r-0123456789ab", Medium.MEMORY)
    for cross_namespace in (True, False):
        references = ModelReferences(
            "serving/llama", deleting=False, entries=frozenset({key}), retention=Retention.WHILE_REFERENCED,
            cross_namespace=cross_namespace,
        )  # fmt: skip
        assert references.covers(key, "serving")
        assert references.covers(own, "other") is cross_namespace
        assert not references.covers(own, "third")
        assert not references.covers(EntryKey("other/r-000000000000", Medium.MEMORY), "other")
        assert not references.covers(EntryKey(own.cache_key, Medium.DISK), "other")
