"""A capacity on a real node: real loaders ask for room, what nothing needs is evicted for them, and others wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support.objects import get_condition
from tonnage.contract.sizes import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Model, Namespace

PREWARM = {"placement": {"prewarm": "AllMatching"}}
EVICTABLE = {"cache": {"retention": "Evictable"}}


def create(namespace: Namespace, name: str, spec: Mapping[str, object]) -> Model:
    return namespace.create_model(name, files=namespace.e2e.model_files.large, spec=dict(spec), wait=False)


@pytest.mark.all_options
def test_a_pod_gets_the_room_of_what_nothing_needs_and_a_third_model_waits_with_the_numbers(
    namespace: Namespace, e2e: E2ECluster
) -> None:
    first = create(namespace, "first", {**PREWARM, **EVICTABLE})
    first.wait_for_condition("Warm")
    folder = first.entry_path()
    first.delete()
    first.wait_deleted()
    assert any((folder / "model").iterdir()), "it is kept for later use"

    second = create(namespace, "second", {})
    second.wait_for_condition("Ready")
    namespace.create_pod(model="second").wait_ready()
    assert second.visible_files()
    assert not any((folder / "model").iterdir()), "it made room"

    third = create(namespace, "third", PREWARM)
    body = third.wait_for_condition("Warm", "False", "WaitingForSpace")
    text = get_condition(body, "Warm")[2]
    size = human_bytes(body["status"]["resolved"]["totalBytes"])
    assert f"Namespace {namespace.name} on {e2e.node} has no room in Memory: {size} needed" in text
    assert f"{namespace.name}/second has " in text
    (media,) = [each for each in e2e.api.get("NodeCache", e2e.node)["status"]["media"] if each["name"] == "Memory"]
    assert namespace.name in [each["name"] for each in media["namespaces"]]
