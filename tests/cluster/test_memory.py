"""Memory: who is charged for a cache in memory, who is killed for it, and what a reboot leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster_support.api import condition
from tonnage.contract import Outcome
from tonnage_operator.api import names
from tonnage_operator.domain.units import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster_support.site import Site
    from cluster_support.workspace import Workspace

PREWARM = {"placement": {"prewarm": "AllMatching"}}


def test_a_limit_below_the_weights_is_raised_so_that_the_loader_is_not_killed(space: Workspace, site: Site) -> None:
    limits = {"loader": {"resources": {"limits": {"memory": "32Mi"}}}}
    model = space.model("large", files=site.sources.large, spec={**PREWARM, **limits}, wait=False)
    body = model.until("Warm")
    assert "failures" not in body["status"]
    pod = space.pod(model="large")
    pod.until_ready()
    loader = pod.body()["spec"]["initContainers"][0]["resources"]
    size = body["status"]["resolved"]["totalBytes"]
    assert parse_quantity(loader["limits"]["memory"]) > size
    assert parse_quantity(loader["requests"]["memory"]) > size


@pytest.fixture
def reserved(site: Site) -> Iterator[None]:
    """An installation whose administrator says that the cache's memory is set aside, so no limit is raised for it."""
    site.release.install({"cache": {"memory": {"reserved": True}}})
    yield
    site.release.install()


@pytest.mark.usefixtures("reserved")
def test_a_loader_with_too_little_memory_is_killed_and_the_object_says_so_with_numbers(
    space: Workspace, site: Site
) -> None:
    # Room for the weights, and none for the loader that writes them. Less would be refused before the first byte.
    limits = {"loader": {"resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "144Mi"}}}}
    model = space.model("large", files=site.sources.large, spec={**PREWARM, **limits}, wait=False)
    body = model.until("Warm", "False", "LoaderOOMKilled")
    (failure,) = body["status"]["failures"]
    assert failure["node"] == site.node
    assert failure["reason"] == "LoaderOOMKilled"
    assert "its limit is 144Mi, and 128Mi are to be written" in failure["message"]
    assert condition(body, "Ready")[0] == "False"
    assert condition(body, "Degraded")[:2] == ("True", "NodeLoadFailed")
    assert not model.visible()
    model.patch({"loader": {"resources": None}})
    body = model.until("Warm", within=90)
    assert "failures" not in body["status"]


def test_a_reboot_forgets_what_was_in_memory_and_keeps_the_disk(space: Workspace, site: Site) -> None:
    memory = space.model("memory", spec=PREWARM, wait=False)
    disk = space.model("disk", spec={**PREWARM, "cache": {"medium": "Disk"}}, wait=False)
    memory.until("Warm")
    disk.until("Warm")
    pod = space.pod(model="memory")
    pod.until_ready()
    loads = {model.name: site.storage.gets(site.bucket, f"{model.prefix}model.tensors") for model in (memory, disk)}
    boot = site.api.get("Node", site.node)["status"]["nodeInfo"]["bootID"]

    site.reboot()

    node = site.api.get("Node", site.node)
    assert node["status"]["nodeInfo"]["bootID"] != boot
    site.api.until(
        "NodeCache",
        site.node,
        "",
        lambda body: (
            body["status"]["bootID"] == node["status"]["nodeInfo"]["bootID"]
            and {entry["name"] for entry in body["status"]["entries"] if entry["state"] == "Ready"}
            >= {memory.revision, disk.revision}
        ),
        within=90,
        what="both entries, of the new boot",
    )
    memory.until("Warm")
    pod.until(lambda body: pod.container(names.LOADER_CONTAINER, body).get("restartCount"), what="a restart")
    pod.until_ready(within=120)
    after = {model.name: site.storage.gets(site.bucket, f"{model.prefix}model.tensors") for model in (memory, disk)}
    assert after["memory"] == 2 * loads["memory"], "what was in memory is loaded once more"
    assert after["disk"] == loads["disk"], "what is on disk is still there"
    assert pod.report().outcome in {Outcome.HIT, Outcome.LOADED}
