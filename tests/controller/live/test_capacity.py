"""A medium with a capacity, on a real API server: loads wait for room, and what nothing needs is evicted for them."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects
from operator_support.harness import ControllerThread, OperatorHarness, admin_client_config, make_installation
from support.repository import ROOT
from support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fake_kubelet import FakeLoaders

PAGE = (ROOT / "docs" / "guides" / "operations" / "capacity.md").read_text()
LIMITED = make_installation(
    media={"Memory": {"hostPath": "/dev/shm/tonnage", "capacity": "5Gi", "maxEntrySize": "4Gi"}}
)


def run_controller(harness: OperatorHarness) -> ControllerThread:
    return ControllerThread(admin_client_config(harness.plane), LIMITED)


def create(harness: OperatorHarness, name: str, retention: str = "Evictable", **placement: Any) -> None:
    """Creates an object whose model has 2 GiB."""
    source = {"s3": {"bucket": f"{harness.namespace}-{name}"}}
    harness.create({"source": source, "cache": {"retention": retention}, "placement": placement}, name=name)


def message(harness: OperatorHarness, kind: str, name: str) -> str:
    return objects.get_condition(harness.get(name), kind)[2]


def ask_for_room(harness: OperatorHarness, controller: ControllerThread, pod: str, name: str, size: int) -> Any:
    """Asks as the loader of a pod does, with its own token."""
    body = harness.get(name)
    command = ["create", "token", "default", "-n", harness.namespace, "--audience=tonnage.dev"]
    token = harness.plane.kubectl(*command, "--bound-object-kind=Pod", f"--bound-object-name={pod}").stdout.strip()
    report = contract.Report(
        kind=contract.ReportKind.RESERVATION,
        entry=body["status"]["resolved"]["revision"],
        bytes=size,
        identity=contract.Identity(namespace="x", name=name, uid=body["metadata"]["uid"], generation=1),
    )
    request = urllib.request.Request(
        f"http://127.0.0.1:{controller.app.port}/v1/reports",
        data=contract.encode_report(report),
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return contract.decode_reservation_answer(response.read())


def gauge(controller: ControllerThread, name: str) -> float:
    controller.call_in_loop(controller.app._set_gauges)
    value: float = getattr(controller.app.metrics, name).labels("Memory")._value.get()
    return value


@pytest.mark.usefixtures("operator_namespace")
def test_a_second_model_evicts_what_nothing_needs_and_a_third_waits_with_the_numbers(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    (node,) = harness.add_nodes("a")
    with run_controller(harness) as controller:
        for name in ("first", "old"):
            create(harness, name)
            harness.wait_for_condition("Warm", name=name)
        harness.delete("old")
        eventually(lambda: harness.is_gone("old"))
        assert list(harness.entry_states(node).values()) == ["Ready", "Ready"]

        fake_loaders.block_loads = True
        create(harness, "second", retention="WhileReferenced")
        pod = eventually(lambda: harness.loading_pod_name(node), timeout=25)
        state = harness.nodecache_status(node)
        eventually(lambda: sorted(harness.entry_states(node).values()) == ["Loading", "Ready"])
        (memory,) = state["media"]
        assert memory["capacityBytes"] == 5 * objects.GIB
        assert (memory["usedBytes"], memory["freeBytes"]) == (2 * objects.GIB, objects.GIB - 1000)
        assert memory["reservedBytes"] == 2 * objects.GIB + 1000
        assert ask_for_room(harness, controller, pod, "second", 2 * objects.GIB).granted
        refused = ask_for_room(harness, controller, pod, "second", 5 * objects.GIB)
        assert (refused.granted, "maxEntrySize" in refused.message) == (False, True)

        create(harness, "third")
        harness.wait_for_condition("Warm", "False", "WaitingForSpace", name="third")
        harness.wait_for_condition("Progressing", "False", "WaitingForSpace", name="third")
        text = message(harness, "Warm", "third")
        assert f"{node} has no room in Memory: 2.0 GiB needed" in text
        assert "1024.0 MiB of 5.0 GiB left" in text
        assert f"{harness.namespace}/first has 2.0 GiB" in text
        assert f"{harness.namespace}/second has 2.0 GiB" in text
        assert "WaitingForSpace" in harness.event_reasons()
        assert [job["metadata"]["annotations"][names.MODEL_REF] for job in harness.jobs("load")] == [
            f"{harness.namespace}/second"
        ]
        header, row = harness.plane.kubectl("get", "nodecaches", node, "-o", "wide").stdout.splitlines()
        assert header.split()[:5] == ["NAME", "READY", "MEMORY-USED", "MEMORY-RESERVED", "MEMORY-FREE"]
        narrow = harness.plane.kubectl("get", "nodecaches", node).stdout.splitlines()[0]
        assert re.search(rf"^{' +'.join(narrow.split())}$", PAGE, re.MULTILINE)
        assert row.split()[:5] == [node, "True", "2Gi", "2Gi", "1024Mi"]
        assert (header.split()[-2], row.split()[-2]) == ("PRESSURE", "LoadsWaiting")

    with run_controller(harness) as controller:  # it has forgotten who asked
        harness.wait_for_condition("Warm", "False", "WaitingForSpace", name="third")
        assert len(harness.jobs("load")) == 1
        eventually(lambda: gauge(controller, "cache_waiting") == 1)
        assert gauge(controller, "cache_reserved") == 2 * objects.GIB + 1000

        fake_loaders.block_loads = False
        harness.wait_for_condition("Warm", name="second")
        harness.delete("first")
        harness.wait_for_condition("Warm", name="third", timeout=40)
        assert sorted(harness.entry_states(node).values()) == ["Ready", "Ready"]
        assert json.dumps(harness.nodecache_status(node)).count("first") == 0


@pytest.mark.usefixtures("operator_namespace", "fake_loaders")
def test_a_model_larger_than_an_entry_may_be_is_never_loaded_and_shows_why(harness: OperatorHarness) -> None:
    harness.add_nodes("a")
    small = make_installation(media={"Memory": {"hostPath": "/dev/shm/tonnage", "maxEntrySize": "1Gi"}})
    with ControllerThread(admin_client_config(harness.plane), small):
        create(harness, "large")
        create(harness, "lazy", prewarm="None")
        for name in ("large", "lazy"):
            harness.wait_for_condition("Ready", "False", "EntryTooLarge", name=name)
        assert "cache.memory.maxEntrySize" in message(harness, "Ready", "large")
        assert harness.jobs("load") == []
