"""Namespaces that enforce the restricted profile: no host path, weights in a claim or in each pod's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cluster_support.api import Refused
from cluster_support.claims import make_claim
from cluster_support.pods import PYTHON, SERVER, Pod
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster_support.site import Site
    from cluster_support.workspace import Workspace

Object = dict[str, Any]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "access" / "restricted-claim.yaml"
PREWARM = {"placement": {"prewarm": "AllMatching"}}
ENFORCED = {"pod-security.kubernetes.io/enforce": "restricted"}
GROUP = 65532
SECURITY = {"runAsNonRoot": True, "fsGroup": GROUP, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.fixture
def restricted(make_space: Callable[..., Workspace]) -> Workspace:
    """A namespace of the restricted profile."""
    return make_space(labels=ENFORCED)


def test_host_paths_are_refused_there_with_a_sentence(restricted: Workspace) -> None:
    restricted.model()
    with pytest.raises(Refused, match="violates PodSecurity") as caught:
        restricted.pod(securityContext=SECURITY)
    assert "hostPath" in str(caught.value)


def test_each_pod_can_have_a_copy_of_its_own(restricted: Workspace) -> None:
    model = restricted.model(spec={"cache": {"delivery": "EmptyDir", "medium": "Disk"}})
    pod = restricted.pod(securityContext=SECURITY)
    pod.until_ready()
    assert pod.report().outcome is Outcome.LOADED
    assert f"serving {model.revision}" in pod.logs()
    assert pod.run("id", "-u", container=names.LOADER_CONTAINER).strip() == str(GROUP)


def test_one_job_fills_a_claim_and_pods_find_it_filled(make_space: Callable[..., Workspace], site: Site) -> None:
    found = {each["kind"]: each for each in yaml.safe_load_all(EXAMPLE.read_text())}
    namespace, model, deployment = (found[kind] for kind in ("Namespace", "ModelWeights", "Deployment"))
    space = make_space(labels=namespace["metadata"]["labels"])
    make_claim(site, space.namespace, found["PersistentVolumeClaim"])
    weights = space.model(model["metadata"]["name"], spec={"cache": model["spec"]["cache"], **PREWARM}, wait=False)
    assert model["spec"]["placement"] == PREWARM["placement"]
    weights.until("Warm")
    template = deployment["spec"]["template"]
    template["spec"]["containers"][0] |= {"image": site.images.loader, "command": [PYTHON, "-c", SERVER]}
    for number in range(2):
        metadata = {**template["metadata"], "name": f"server-{number}", "namespace": space.namespace}
        site.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    for number in range(2):
        pod = Pod(site, f"server-{number}", space.namespace)
        pod.until_ready()
        assert pod.report().outcome is Outcome.HIT
        assert f"serving {weights.revision}" in pod.logs()
