"""The controller when things go wrong around it: killed, doubled, refused, cut off."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects
from operator_support.faulty_proxy import FaultyProxy, Refusal
from operator_support.fleet import ControllerProcess, ControllerThread, admin_access, installation
from operator_support.kubelet import Ending
from operator_support.pods import make_claim
from operator_support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.kube.credentials import ClientConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from operator_support.fleet import Fleet
    from operator_support.kubelet import Loaders


AUTOMATIC = {"revision": {"policy": "Track", "interval": "1m", "update": "Automatic"}}


@pytest.fixture
def proxy(control_plane: ControlPlane, operator_namespace: str) -> Iterator[FaultyProxy]:
    del operator_namespace
    with FaultyProxy(control_plane) as running:
        yield running


def _loads(loaders: Loaders, nodes: list[str]) -> Counter[tuple[str, str]]:
    return Counter(each for each in loaders.ended if each[1] in nodes)


class Killed:
    """Controllers that are killed at their first write each, when the server has done it and they don't know."""

    def __init__(self, fleet: Fleet, proxy: FaultyProxy, folder: Path) -> None:
        self.writes: list[str] = []
        self._killed = threading.Event()
        self._fleet = fleet
        self._process = ControllerProcess(fleet.plane, folder, server=proxy.url)
        proxy.after_write = self._wrote

    def _wrote(self, method: str, path: str) -> bool:
        self.writes.append(f"{method} {path}")
        self._killed.set()
        return True  # it never learns that its write was done

    def live_until(self, done: Callable[[], bool], *, within: float = 60) -> None:
        """Starts one after the other until one that writes nothing finds that it is done; that one lives on."""
        until = time.monotonic() + within
        while not (self._process.running and done()):
            assert time.monotonic() < until, "\n".join(["never done", *self.writes, json.dumps(self._fleet.status())])
            if self._killed.is_set() or not self._process.running:
                self._process.kill()
                self._killed.clear()
                self._process.start()
            self._killed.wait(0.1)

    def end(self) -> None:
        """Kills the last one."""
        self._process.kill()


class Once(dict[str, Ending]):
    """Endings that happen a single time."""

    def __getitem__(self, key: str) -> Ending:
        return self.pop(key)


@pytest.fixture
def killed(fleet: Fleet, proxy: FaultyProxy, tmp_path: Path) -> Iterator[Killed]:
    controllers = Killed(fleet, proxy, tmp_path)
    yield controllers
    controllers.end()


def _settled(fleet: Fleet) -> bool:
    return fleet.condition("Progressing") == ("False", "Idle") and not fleet.jobs()


@pytest.mark.timeout(300)
def test_killed_after_each_single_write_it_does_the_same_as_undisturbed(
    fleet: Fleet, loaders: Loaders, killed: Killed
) -> None:
    """A whole life: a load that fails once, an update, a node that comes, one that reboots, the end."""
    (first,) = fleet.add_nodes("a")
    loaders.broken = Once({first: Ending(objects.failed_report("ChecksumMismatch", "Broken."), code=12)})
    fleet.create(AUTOMATIC)
    killed.live_until(lambda: fleet.condition("Warm") == ("True", "AllNodesWarm") and _settled(fleet))
    expected = Counter({(names.ROLE_RESOLVE, first): 1, (names.ROLE_LOAD, first): 2})
    assert _loads(loaders, [first]) == expected, "\n".join(killed.writes)

    old = fleet.status()["resolved"]["revision"]
    loaders.version = "2"
    fleet.look_again()
    killed.live_until(lambda: _settled(fleet) and old not in fleet.entries(first))
    expected += Counter({(role, first): 1 for role in (names.ROLE_RESOLVE, names.ROLE_LOAD, names.ROLE_CLEANUP)})
    assert _loads(loaders, [first]) == expected, "\n".join(killed.writes)
    new = fleet.status()["resolved"]["revision"]
    assert fleet.entries(first) == {new: "Ready"} != {old: "Ready"}

    (second,) = fleet.add_nodes("b")
    killed.live_until(lambda: _settled(fleet) and fleet.status()["nodes"]["summary"] == "2/2")
    fleet.set_node_status(second, boot="boot-2")
    killed.live_until(lambda: _settled(fleet) and _loads(loaders, [second])[names.ROLE_LOAD, second] == 2)
    assert _loads(loaders, [first, second]) == expected + Counter({(names.ROLE_LOAD, second): 2})

    fleet.delete()
    killed.live_until(fleet.gone)
    expected += Counter({(names.ROLE_LOAD, second): 2, (names.ROLE_CLEANUP, first): 1, (names.ROLE_CLEANUP, second): 1})
    assert _loads(loaders, [first, second]) == expected
    assert not fleet.entries(first)
    assert not fleet.entries(second)
    assert len(killed.writes) >= 30, killed.writes
    told = Counter(fleet.events())
    assert told.keys() >= {"NodeLoadFailed", "RevisionChanged", "LoadCompleted"}, told
    assert max(told.values()) <= 5, "none is told again and again"


@pytest.mark.timeout(180)
def test_killed_after_each_single_write_a_claim_is_filled_once_and_emptied_once(
    fleet: Fleet, loaders: Loaders, killed: Killed
) -> None:
    fleet.add_nodes("a")
    make_claim(fleet)
    before = len(loaders.ended)
    fleet.create({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    killed.live_until(lambda: fleet.condition("Progressing") == ("False", "Idle") and len(fleet.jobs()) == 1)
    assert fleet.condition("Warm") == ("True", "AllNodesWarm")
    fleet.delete()
    killed.live_until(fleet.gone)
    mine = [role for role, node in loaders.ended[before:] if fleet.namespace in node]
    assert mine == [names.ROLE_RESOLVE, names.ROLE_LOAD, names.ROLE_CLEANUP]


def test_two_controllers_at_once_make_each_job_once(fleet: Fleet, loaders: Loaders, operator_namespace: str) -> None:
    del operator_namespace
    access = admin_access(fleet.plane)
    nodes = fleet.add_nodes("a", "b", "c")
    with ControllerThread(access, installation()) as first, ControllerThread(access, installation()) as second:
        fleet.create({"placement": {"maxConcurrentNodes": 1}})
        fleet.until("Warm", within=40)
        eventually(lambda: not fleet.jobs() and first.controller.idle and second.controller.idle)
        before = first.writes() + second.writes()
        first.look_at_all()
        second.look_at_all()
        assert first.writes() + second.writes() == before
        fleet.delete()
        eventually(fleet.gone, within=25)
    done = _loads(loaders, nodes)
    assert sum(count for (role, _), count in done.items() if role == names.ROLE_RESOLVE) == 1
    assert {(role, count) for (role, _), count in done.items()} == {("resolve", 1), ("load", 1), ("cleanup", 1)}
    assert len(fleet.events()) == len(set(fleet.events())) + 2, "each event once, and one for each of three nodes"


def test_a_controller_whose_picture_is_behind_starts_nothing_that_was_done(
    fleet: Fleet, loaders: Loaders, proxy: FaultyProxy
) -> None:
    """It sees Jobs come and go, and neither the records that say what they did, nor that their object is deleted."""
    nodes = fleet.add_nodes("a")
    records = ("/modelweights", "/nodecaches")
    loaders.hold_resolve = True
    with (
        ControllerThread(admin_access(fleet.plane), installation()) as first,
        ControllerThread(ClientConfig(proxy.url), installation()) as behind,
    ):
        fleet.create()
        eventually(lambda: behind.knows_jobs_of(fleet.namespace) and first.controller.idle)
        proxy.late = lambda path: path.endswith(records)
        loaders.hold_resolve = False
        fleet.until("Warm")
        eventually(lambda: not fleet.jobs() and not behind.knows_jobs_of(fleet.namespace))
        behind.look_at_all()
        fleet.delete()
        eventually(fleet.gone, within=25)
        eventually(lambda: not behind.knows_jobs_of(fleet.namespace))
        behind.look_at_all()
        proxy.late = lambda _path: False
        behind.look_at_all()
    assert _loads(loaders, nodes) == {(role, nodes[0]): 1 for role in ("resolve", "load", "cleanup")}
    assert not fleet.entries(nodes[0])


def test_refusals_and_broken_watches_only_cost_time(fleet: Fleet, loaders: Loaders, proxy: FaultyProxy) -> None:
    numbers = itertools.count()
    kinds = [Refusal(500), Refusal(429, {"Retry-After": "1"}), Refusal(503), Refusal(409)]
    writes = {"POST", "PUT", "PATCH", "DELETE"}

    def judge(method: str, path: str) -> Refusal | None:
        if method not in writes or "/events" in path:
            return None
        number = next(numbers)
        return kinds[number // 2 % len(kinds)] if number % 2 else None

    proxy.judge = judge
    nodes = fleet.add_nodes("a", "b")
    with ControllerThread(ClientConfig(proxy.url), installation()) as running:
        fleet.create()
        fleet.until("Resolved", within=40)
        loaders.hold = True
        proxy.drop_watches()
        loaders.hold = False
        fleet.until("Warm", within=50)
        proxy.judge = lambda method, path: Refusal(410) if method == "GET" and "watch=" in path else None
        proxy.drop_watches()
        proxy.judge = lambda _method, _path: None
        (third,) = fleet.add_nodes("c")
        eventually(lambda: bool(fleet.entries(third)), within=40)
        # Away for a while, as in an upgrade of the control plane.
        proxy.judge = lambda _method, _path: Refusal(503)
        proxy.drop_watches()
        (fourth,) = fleet.add_nodes("d")
        assert not fleet.entries(fourth)
        proxy.judge = lambda _method, _path: None
        eventually(lambda: bool(fleet.entries(fourth)), within=40)
        fleet.until("Warm", within=40)
        assert running.problem is None
    nodes += [third, fourth]
    assert all(_loads(loaders, nodes)[names.ROLE_LOAD, node] == 1 for node in nodes)


def test_an_object_that_this_operator_cannot_read_is_told_so_and_the_others_go_on(
    fleet: Fleet, loaders: Loaders, operator_namespace: str
) -> None:
    """As after an upgrade of the CRD alone: here an enum's value that the operator doesn't know."""
    del loaders, operator_namespace
    plane = fleet.plane
    with _changed_schema(plane, lambda spec: spec["verify"]["enum"].append("Blake3")):
        eventually(lambda: _created(fleet, {"verify": "Blake3"}, "newer"))
        with ControllerThread(admin_access(plane), installation()) as running:
            fleet.until("Accepted", "False", "InvalidSpec", name="newer")
            fleet.add_nodes("a")
            fleet.create()
            fleet.until("Warm")
            eventually(lambda: running.controller.idle and not fleet.jobs())
            before = running.writes()
            running.look_at_all()
            assert running.writes() == before, "it was told once"
            fleet.delete("newer")
            eventually(lambda: fleet.gone("newer"))


def test_an_object_that_an_older_release_stored_goes_on_after_an_upgrade(
    fleet: Fleet, loaders: Loaders, operator_namespace: str
) -> None:
    """Its schema had no such fields, so nothing of them is stored: neither values nor defaults."""
    del loaders, operator_namespace
    plane = fleet.plane

    def older(spec: dict[str, Any]) -> None:
        for field in ("verify", "loader", "access", "suspend"):
            del spec[field]
        for field in ("retention", "layout"):
            del spec["cache"]["properties"][field]
            del spec["cache"]["default"][field]

    nodes = fleet.add_nodes("a")
    with _changed_schema(plane, older):
        eventually(lambda: _created(fleet, {}, "old"))
        eventually(lambda: "verify" not in fleet.get("old")["spec"])
    with ControllerThread(admin_access(plane), installation()):
        fleet.until("Warm", name="old")
        fleet.patch({"loader": {"connections": 8}}, name="old")
        eventually(lambda: fleet.status("old")["observedGeneration"] == fleet.get("old")["metadata"]["generation"])
        fleet.delete("old")
        eventually(lambda: fleet.gone("old"), within=25)
    assert not fleet.entries(nodes[0])


@contextlib.contextmanager
def _changed_schema(plane: ControlPlane, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Lets the API server have another schema of specs for a while."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modelweights.tonnage.dev"
    original = plane.request("GET", path)
    changed = json.loads(json.dumps(original))
    schema = changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    change(schema["properties"])
    del schema["x-kubernetes-validations"]
    plane.request("PUT", path, changed)
    try:
        yield
    finally:
        restored = plane.request("GET", path)
        restored["spec"] = original["spec"]
        plane.request("PUT", path, restored)


def _created(fleet: Fleet, spec: dict[str, Any], name: str) -> bool:
    with contextlib.suppress(OSError):
        fleet.delete(name)
    try:
        made = fleet.create(spec, name=name)
    except OSError:
        return False
    return made["spec"].items() >= spec.items() and ("verify" in made["spec"]) == ("verify" in spec)
