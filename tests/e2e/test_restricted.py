"""Namespaces that enforce the restricted profile: no host paths, weights in a claim or in an emptyDir."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from e2e_support.kube_client import ApiError
from e2e_support.pods import PYTHON, SERVER_SCRIPT, Pod
from e2e_support.pvcs import create_pvc
from support.repository import ROOT
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

Object = dict[str, Any]

EXAMPLE = ROOT / "examples" / "access" / "restricted-claim.yaml"
PREWARM = {"placement": {"prewarm": "AllMatching"}}
ENFORCED = {"pod-security.kubernetes.io/enforce": "restricted"}
GROUP = 65532
SECURITY = {"runAsNonRoot": True, "fsGroup": GROUP, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.fixture
def restricted(make_namespace: Callable[..., Namespace]) -> Namespace:
    """A namespace that enforces the restricted profile."""
    return make_namespace(labels=ENFORCED)


def test_host_paths_are_denied_with_a_message(restricted: Namespace) -> None:
    restricted.create_model()
    with pytest.raises(ApiError, match="violates PodSecurity") as caught:
        restricted.create_pod(securityContext=SECURITY)
    assert "hostPath" in str(caught.value)


def test_each_pod_can_have_its_own_copy(restricted: Namespace) -> None:
    model = restricted.create_model(spec={"cache": {"delivery": "EmptyDir", "medium": "Disk"}})
    pod = restricted.create_pod(securityContext=SECURITY)
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.LOADED
    pod.wait_for_log(f"serving {model.revision}")
    assert pod.exec("id", "-u", container=names.HOLDER_CONTAINER).strip() == str(GROUP)


def test_one_job_fills_a_pvc_and_pods_get_a_hit(make_namespace: Callable[..., Namespace], e2e: E2ECluster) -> None:
    found = {each["kind"]: each for each in yaml.safe_load_all(EXAMPLE.read_text())}
    namespace, model, deployment = (found[kind] for kind in ("Namespace", "ModelWeights", "Deployment"))
    space = make_namespace(labels=namespace["metadata"]["labels"])
    create_pvc(e2e, space.name, found["PersistentVolumeClaim"])
    weights = space.create_model(
        model["metadata"]["name"], spec={"cache": model["spec"]["cache"], **PREWARM}, wait=False
    )
    assert model["spec"]["placement"] == PREWARM["placement"]
    weights.wait_for_condition("Warm")
    template = deployment["spec"]["template"]
    template["spec"]["containers"][0] |= {"image": e2e.images.loader, "command": [PYTHON, "-c", SERVER_SCRIPT]}
    for number in range(2):
        metadata = {**template["metadata"], "name": f"server-{number}", "namespace": space.name}
        e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    for number in range(2):
        pod = Pod(e2e, f"server-{number}", space.name)
        pod.wait_ready()
        assert pod.last_report().outcome is Outcome.HIT
        pod.wait_for_log(f"serving {weights.revision}")
