"""A cache in memory: memory limits of the loader, out-of-memory kills, and reboots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support.objects import get_condition
from tonnage.contract import Outcome
from tonnage_operator.api import names
from tonnage_operator.domain.units import parse_quantity

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

PREWARM = {"placement": {"prewarm": "AllMatching"}}


def test_a_limit_below_the_weights_is_raised_so_that_the_loader_is_not_killed(
    namespace: Namespace, e2e: E2ECluster
) -> None:
    limits = {"loader": {"resources": {"limits": {"memory": "32Mi"}}}}
    model = namespace.create_model("large", files=e2e.model_files.large, spec={**PREWARM, **limits}, wait=False)
    body = model.wait_for_condition("Warm")
    assert "failures" not in body["status"]
    pod = namespace.create_pod(model="large")
    pod.wait_ready()
    loader = pod.get()["spec"]["initContainers"][0]["resources"]
    size = body["status"]["resolved"]["totalBytes"]
    assert parse_quantity(loader["limits"]["memory"]) > size
    assert parse_quantity(loader["requests"]["memory"]) > size


@pytest.mark.all_options
def test_an_oom_killed_loader_is_reported_on_the_object_with_numbers(namespace: Namespace, e2e: E2ECluster) -> None:
    # Enough for the weights, but not for the loader as well. With less, the load would fail before the first byte.
    limits = {"loader": {"resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "144Mi"}}}}
    model = namespace.create_model("large", files=e2e.model_files.large, spec={**PREWARM, **limits}, wait=False)
    body = model.wait_for_condition("Warm", "False", "LoaderOOMKilled")
    (failure,) = body["status"]["failures"]
    assert failure["node"] == e2e.node
    assert failure["reason"] == "LoaderOOMKilled"
    assert "its limit is 144Mi, and 128Mi have to be written" in failure["message"]
    assert get_condition(body, "Ready")[0] == "False"
    assert get_condition(body, "Degraded")[:2] == ("True", "NodeLoadFailed")
    assert not model.visible_files()
    model.patch_spec({"loader": {"resources": None}})
    body = model.wait_for_condition("Warm", timeout=90)
    assert "failures" not in body["status"]


@pytest.mark.disturbs
def test_a_reboot_loses_entries_in_memory_and_keeps_those_on_disk(namespace: Namespace, e2e: E2ECluster) -> None:
    memory = namespace.create_model("memory", spec=PREWARM, wait=False)
    disk = namespace.create_model("disk", spec={**PREWARM, "cache": {"medium": "Disk"}}, wait=False)
    memory.wait_for_condition("Warm")
    disk.wait_for_condition("Warm")
    pod = namespace.create_pod(model="memory")
    pod.wait_ready()
    loads = {model.name: e2e.storage.gets(e2e.bucket, f"{model.prefix}model.tensors") for model in (memory, disk)}
    boot = e2e.api.get("Node", e2e.node)["status"]["nodeInfo"]["bootID"]

    e2e.reboot()

    node = e2e.api.get("Node", e2e.node)
    assert node["status"]["nodeInfo"]["bootID"] != boot
    e2e.api.wait_for(
        "NodeCache",
        e2e.node,
        "",
        lambda body: (
            body["status"]["bootID"] == node["status"]["nodeInfo"]["bootID"]
            and {entry["revision"] for entry in body["status"]["entries"] if entry["state"] == "Ready"}
            >= {memory.revision, disk.revision}
        ),
        timeout=90,
        description="both entries, of the new boot",
    )
    memory.wait_for_condition("Warm")
    pod.wait_for(
        lambda body: pod.container_status(names.LOADER_CONTAINER, body).get("restartCount"), description="a restart"
    )
    pod.wait_ready(timeout=120)
    after = {model.name: e2e.storage.gets(e2e.bucket, f"{model.prefix}model.tensors") for model in (memory, disk)}
    assert after["memory"] == 2 * loads["memory"], "the entry in memory must be loaded again"
    assert after["disk"] == loads["disk"], "the entry on disk must still exist"
    assert pod.last_report().outcome in {Outcome.HIT, Outcome.LOADED}
