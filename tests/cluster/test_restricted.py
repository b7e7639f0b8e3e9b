"""Namespaces that enforce the restricted profile: no host path, weights in a claim or in each pod's own folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster_support.api import Refused
from cluster_support.claims import make_claim
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster_support.site import Site
    from cluster_support.workspace import Workspace

Object = dict[str, Any]

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


def test_one_job_fills_a_claim_and_pods_find_it_filled(restricted: Workspace, site: Site) -> None:
    make_claim(site, restricted.namespace)
    cache = {"delivery": "PersistentVolumeClaim", "claimName": "weights"}
    model = restricted.model(spec={"cache": cache, "placement": {"prewarm": "AllMatching"}}, wait=False)
    model.until("Warm")
    pods = [restricted.pod(securityContext=SECURITY) for _ in range(2)]
    for pod in pods:
        pod.until_ready()
        assert pod.report().outcome is Outcome.HIT
        assert f"serving {model.revision}" in pod.logs()
