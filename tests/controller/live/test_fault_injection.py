"""The controller under faults: killed, running twice, with stale caches, API errors and broken watches."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects
from operator_support.fake_kubelet import Termination
from operator_support.faulty_proxy import ErrorResponse, FaultyProxy
from operator_support.forked_controller import ForkedController
from operator_support.harness import (
    ControllerThread,
    admin_client_config,
    make_installation,
    static_client_config,
)
from operator_support.pods import create_pvc
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.controller.lists import SELECTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness


AUTOMATIC = {"revision": {"policy": "Track", "interval": "1h", "update": "Automatic"}}
"""No check is due by itself, however slowly the controllers start."""


@pytest.fixture
def faulty_proxy(control_plane: ControlPlane, operator_namespace: str) -> Iterator[FaultyProxy]:
    del operator_namespace
    with FaultyProxy(control_plane) as running:
        yield running


def _count_runs(loaders: FakeLoaders, nodes: list[str]) -> Counter[tuple[str, str]]:
    return Counter(each for each in loaders.terminated if each[1] in nodes)


class RestartingController:
    """Runs controllers in sequence, and kills each after its first write, before it gets the response."""

    def __init__(self, harness: OperatorHarness, proxy: FaultyProxy, folder: Path) -> None:
        self.writes: list[str] = []
        self._wrote_event = threading.Event()
        self._harness = harness
        self._process = ForkedController(harness.plane, folder, server=proxy.url)
        proxy.drop_response_after_write = self._on_write

    def _on_write(self, method: str, path: str) -> bool:
        self.writes.append(f"{method} {path}")
        self._wrote_event.set()
        return True

    def run_until(self, done: Callable[[], bool], *, within: float = 150) -> None:
        """Starts controllers in sequence until ``done`` is true while one that wrote nothing runs; it keeps running."""
        deadline = time.monotonic() + within
        while not (self._process.running and done()):
            assert time.monotonic() < deadline, "\n".join(
                ["not done in time", *self.writes, json.dumps(self._harness.status())]
            )
            if self._wrote_event.is_set() or not self._process.running:
                self._process.kill()
                self._wrote_event.clear()
                self._process.start()
            self._wrote_event.wait(0.1)

    def stop(self) -> None:
        """Kills the running controller."""
        self._process.kill()


class FailOnce(dict[str, Termination]):
    """Load failures by node that happen once each."""

    def __getitem__(self, key: str) -> Termination:
        return self.pop(key)


@pytest.fixture
def restarting_controller(
    harness: OperatorHarness, faulty_proxy: FaultyProxy, tmp_path: Path
) -> Iterator[RestartingController]:
    controllers = RestartingController(harness, faulty_proxy, tmp_path)
    yield controllers
    controllers.stop()


def _is_idle(harness: OperatorHarness) -> bool:
    return harness.condition("Progressing") == ("False", "Idle") and not harness.jobs()


@pytest.mark.timeout(300)
def test_a_controller_killed_after_each_write_has_the_same_result_as_an_undisturbed_one(
    harness: OperatorHarness, fake_loaders: FakeLoaders, restarting_controller: RestartingController
) -> None:
    """Covers a load that fails once, an update, a new node, a rebooted node, and the deletion."""
    (first,) = harness.add_nodes("a")
    fake_loaders.load_failures = FailOnce(
        {first: Termination(objects.failed_report("ChecksumMismatch", "Broken."), exit_code=12)}
    )
    harness.create(AUTOMATIC)
    restarting_controller.run_until(lambda: harness.condition("Warm") == ("True", "AllNodesWarm") and _is_idle(harness))
    expected = Counter({(names.ROLE_RESOLVE, first): 1, (names.ROLE_LOAD, first): 2})
    assert _count_runs(fake_loaders, [first]) == expected, "\n".join(restarting_controller.writes)

    old = harness.status()["resolved"]["revision"]
    fake_loaders.version = "2"
    harness.expire_check_interval()
    restarting_controller.run_until(lambda: _is_idle(harness) and old not in harness.entry_states(first))
    expected += Counter({(role, first): 1 for role in (names.ROLE_RESOLVE, names.ROLE_LOAD, names.ROLE_CLEANUP)})
    assert _count_runs(fake_loaders, [first]) == expected, "\n".join(restarting_controller.writes)
    new = harness.status()["resolved"]["revision"]
    assert harness.entry_states(first) == {new: "Ready"} != {old: "Ready"}

    (second,) = harness.add_nodes("b")
    restarting_controller.run_until(lambda: _is_idle(harness) and harness.status()["nodes"]["summary"] == "2/2")
    harness.set_node_status(second, boot_id="boot-2")
    restarting_controller.run_until(
        lambda: _is_idle(harness) and _count_runs(fake_loaders, [second])[names.ROLE_LOAD, second] == 2
    )
    assert _count_runs(fake_loaders, [first, second]) == expected + Counter({(names.ROLE_LOAD, second): 2})

    harness.delete()
    restarting_controller.run_until(harness.is_gone)
    expected += Counter({(names.ROLE_LOAD, second): 2, (names.ROLE_CLEANUP, first): 1, (names.ROLE_CLEANUP, second): 1})
    assert _count_runs(fake_loaders, [first, second]) == expected
    assert not harness.entry_states(first)
    assert not harness.entry_states(second)
    assert len(restarting_controller.writes) >= 30, restarting_controller.writes
    reasons = Counter(harness.event_reasons())
    assert reasons.keys() >= {"NodeLoadFailed", "RevisionChanged", "LoadCompleted"}, reasons
    assert max(reasons.values()) <= 5, "events are repeated"


@pytest.mark.timeout(180)
def test_a_controller_killed_after_each_write_loads_and_empties_a_pvc_once(
    harness: OperatorHarness, fake_loaders: FakeLoaders, restarting_controller: RestartingController
) -> None:
    harness.add_nodes("a")
    create_pvc(harness)
    before = len(fake_loaders.terminated)
    harness.create({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    restarting_controller.run_until(
        lambda: harness.condition("Progressing") == ("False", "Idle") and len(harness.jobs()) == 1
    )
    assert harness.condition("Warm") == ("True", "AllNodesWarm")
    harness.delete()
    restarting_controller.run_until(harness.is_gone)
    mine = [role for role, node in fake_loaders.terminated[before:] if harness.namespace in node]
    assert mine == [names.ROLE_RESOLVE, names.ROLE_LOAD, names.ROLE_CLEANUP]


def test_two_controllers_create_each_job_once(
    harness: OperatorHarness, fake_loaders: FakeLoaders, operator_namespace: str
) -> None:
    del operator_namespace
    access = admin_client_config(harness.plane)
    nodes = harness.add_nodes("a", "b", "c")
    with (
        ControllerThread(access, make_installation()) as first,
        ControllerThread(access, make_installation()) as second,
    ):
        harness.create({"placement": {"maxConcurrentNodes": 1}})
        harness.wait_for_condition("Warm", timeout=40)
        eventually(lambda: not harness.jobs() and first.app.idle and second.app.idle)
        before = first.count_writes() + second.count_writes()
        first.reconcile_all()
        second.reconcile_all()
        assert first.count_writes() + second.count_writes() == before
        harness.delete()
        eventually(harness.is_gone, timeout=25)
    done = _count_runs(fake_loaders, nodes)
    assert sum(count for (role, _), count in done.items() if role == names.ROLE_RESOLVE) == 1
    assert {(role, count) for (role, _), count in done.items()} == {("resolve", 1), ("load", 1), ("cleanup", 1)}
    reasons = Counter(harness.event_reasons())
    assert reasons.pop("LoadCompleted") == len(nodes)
    assert reasons.pop("DeletionWaiting", 0) <= len(nodes), "one for each number of nodes that are left"
    assert set(reasons.values()) == {1}, reasons


def test_a_controller_with_a_stale_cache_repeats_no_job(
    harness: OperatorHarness, fake_loaders: FakeLoaders, faulty_proxy: FaultyProxy
) -> None:
    """It sees Jobs created and deleted, but neither the NodeCaches with their results nor the object's deletion."""
    nodes = harness.add_nodes("a")
    fake_loaders.block_resolves = True
    with (
        ControllerThread(admin_client_config(harness.plane), make_installation()) as first,
        ControllerThread(static_client_config(faulty_proxy.url), make_installation()) as behind,
    ):
        harness.create()
        eventually(lambda: behind.has_jobs_in(harness.namespace) and first.app.idle)
        faulty_proxy.delay_watch = _watches_of("modelweights", "nodecaches")
        fake_loaders.block_resolves = False
        harness.wait_for_condition("Warm")
        eventually(lambda: not harness.jobs() and not behind.has_jobs_in(harness.namespace))
        behind.reconcile_all()
        harness.delete()
        eventually(harness.is_gone, timeout=25)
        eventually(lambda: not behind.has_jobs_in(harness.namespace))
        behind.reconcile_all()
        faulty_proxy.delay_watch = _none
        behind.reconcile_all()
    assert _count_runs(fake_loaders, nodes) == {(role, nodes[0]): 1 for role in ("resolve", "load", "cleanup")}
    assert not harness.entry_states(nodes[0])


@dataclasses.dataclass
class TwoControllers:
    """Two controllers of which each has its own way to the API server."""

    first: ControllerThread
    first_proxy: FaultyProxy
    behind: ControllerThread
    behind_proxy: FaultyProxy

    def assert_kept(self, job: dict[str, Any]) -> None:
        """Has both controllers decide about a Job, and expects that it is still there."""
        for each in (self.behind, self.first):
            eventually(lambda each=each: each.knows_job(job["metadata"]["uid"]))  # type: ignore[misc]
            each.reconcile_all()
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        now = self.first_proxy.plane.request("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
        assert now["metadata"]["uid"] == job["metadata"]["uid"]
        assert "deletionTimestamp" not in now["metadata"]


@pytest.fixture
def two_controllers(faulty_proxy: FaultyProxy, control_plane: ControlPlane) -> Iterator[TwoControllers]:
    with (
        FaultyProxy(control_plane) as first_proxy,
        ControllerThread(static_client_config(first_proxy.url), make_installation()) as first,
        ControllerThread(static_client_config(faulty_proxy.url), make_installation()) as behind,
    ):
        eventually(lambda: first_proxy.open_watches == faulty_proxy.open_watches == len(SELECTORS))
        yield TwoControllers(first, first_proxy, behind, faulty_proxy)


def _watches_of(*plurals: str) -> Callable[[str], bool]:
    return lambda path: path.endswith(tuple(f"/{plural}" for plural in plurals))


def _none(_path: str) -> bool:
    return False


def _cleanup_jobs(harness: OperatorHarness, node: str) -> list[dict[str, Any]]:
    path = f"/apis/batch/v1/namespaces/tonnage-system/jobs?labelSelector={names.ROLE}%3D{names.ROLE_CLEANUP}"
    jobs = harness.plane.request("GET", path)["items"]
    return [each for each in jobs if each["metadata"]["annotations"][names.NODE] == node]


def test_a_controller_with_an_outdated_nodecache_deletes_no_result_that_is_not_recorded(
    harness: OperatorHarness, fake_loaders: FakeLoaders, two_controllers: TwoControllers
) -> None:
    """One controller does not see that a cleanup ended; the other one does not see that it was wanted."""
    (node,) = harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    eventually(lambda: "Ready" in two_controllers.behind.entry_states(node).values() and not harness.jobs())
    two_controllers.behind_proxy.delay_watch = _watches_of("modelweights", "nodecaches")
    two_controllers.first_proxy.delay_watch = _watches_of("jobs", "pods")
    harness.delete()
    eventually(lambda: (names.ROLE_CLEANUP, node) in fake_loaders.terminated)
    eventually(lambda: not _cleanup_jobs(harness, node), timeout=25)
    two_controllers.first_proxy.delay_watch = _none
    eventually(harness.is_gone, timeout=25)
    assert not harness.entry_states(node)
    assert _count_runs(fake_loaders, [node]) == {(role, node): 1 for role in ("resolve", "load", "cleanup")}


def test_a_controller_with_an_outdated_object_deletes_no_job_of_the_new_revision(
    harness: OperatorHarness, fake_loaders: FakeLoaders, two_controllers: TwoControllers
) -> None:
    (node,) = harness.add_nodes("a")
    harness.create(AUTOMATIC)
    harness.wait_for_condition("Warm")
    eventually(lambda: not harness.jobs() and two_controllers.behind.app.idle)
    two_controllers.behind_proxy.delay_watch = _watches_of("modelweights")
    fake_loaders.block_resolves = fake_loaders.block_loads = True
    fake_loaders.version = "2"
    harness.expire_check_interval()
    eventually(lambda: len(harness.jobs(names.ROLE_RESOLVE)) == 1)
    two_controllers.assert_kept(harness.jobs(names.ROLE_RESOLVE)[0])

    fake_loaders.block_resolves = False
    eventually(lambda: len(harness.jobs(names.ROLE_LOAD)) == 1)
    eventually(lambda: "Loading" in two_controllers.behind.entry_states(node).values())
    two_controllers.assert_kept(harness.jobs(names.ROLE_LOAD)[0])

    fake_loaders.block_loads = False
    two_controllers.behind_proxy.delay_watch = _none
    eventually(lambda: list(harness.entry_states(node).values()) == ["Ready"] and _is_idle(harness), timeout=25)
    runs = Counter({(names.ROLE_RESOLVE, node): 2, (names.ROLE_LOAD, node): 2, (names.ROLE_CLEANUP, node): 1})
    assert _count_runs(fake_loaders, [node]) == runs


def test_a_controller_that_does_not_know_a_node_yet_deletes_no_load_on_it(
    harness: OperatorHarness, fake_loaders: FakeLoaders, two_controllers: TwoControllers
) -> None:
    two_controllers.behind_proxy.delay_watch = _watches_of("nodes")
    fake_loaders.block_loads = True
    harness.create()
    (node,) = harness.add_nodes("a")
    eventually(lambda: len(harness.jobs(names.ROLE_LOAD)) == 1)
    two_controllers.assert_kept(harness.jobs(names.ROLE_LOAD)[0])
    fake_loaders.block_loads = False
    harness.wait_for_condition("Warm")
    assert _count_runs(fake_loaders, [node])[names.ROLE_LOAD, node] == 1


def test_a_controller_that_does_not_know_a_node_yet_deletes_no_cleanup_on_it(
    harness: OperatorHarness, fake_loaders: FakeLoaders, two_controllers: TwoControllers
) -> None:
    """It sees nothing but the cleanup Job."""
    two_controllers.behind_proxy.delay_watch = _watches_of("modelweights", "nodecaches", "nodes", "jobs", "pods")
    fake_loaders.block_cleanups = True
    harness.create()
    (node,) = harness.add_nodes("a")
    harness.wait_for_condition("Warm")
    harness.delete()
    eventually(lambda: len(_cleanup_jobs(harness, node)) == 1)
    two_controllers.behind_proxy.delay_watch = _watches_of("modelweights", "nodecaches", "nodes", "pods")
    two_controllers.assert_kept(_cleanup_jobs(harness, node)[0])
    fake_loaders.block_cleanups = False
    eventually(harness.is_gone, timeout=25)
    assert _count_runs(fake_loaders, [node]) == {(role, node): 1 for role in ("resolve", "load", "cleanup")}


def test_a_controller_with_outdated_records_lets_no_object_go_before_its_entries(
    harness: OperatorHarness, fake_loaders: FakeLoaders, two_controllers: TwoControllers
) -> None:
    two_controllers.behind_proxy.delay_watch = _watches_of("nodecaches", "nodes", "jobs")
    fake_loaders.block_loads = fake_loaders.block_cleanups = True
    harness.create()
    (node,) = harness.add_nodes("a")
    eventually(lambda: len(harness.jobs(names.ROLE_LOAD)) == 1)
    harness.delete()
    eventually(lambda: two_controllers.behind.is_deleting(harness.namespace))
    two_controllers.behind.reconcile_all()
    assert not harness.is_gone()
    fake_loaders.block_loads = False
    eventually(lambda: len(_cleanup_jobs(harness, node)) == 1, timeout=25)
    two_controllers.behind.reconcile_all()
    assert not harness.is_gone()
    fake_loaders.block_cleanups = False
    eventually(harness.is_gone, timeout=25)
    assert not harness.entry_states(node)


def test_a_controller_takes_a_job_of_another_one_under_the_name_of_its_own_for_no_copy(
    harness: OperatorHarness, fake_loaders: FakeLoaders, two_controllers: TwoControllers
) -> None:
    """Cleanup Jobs of one entry have one name. The controllers create them in turn."""
    (node,) = harness.add_nodes("a")
    proxies = (two_controllers.first_proxy, two_controllers.behind_proxy)
    for creator, other in (proxies, proxies[::-1]):
        fake_loaders.block_cleanups = True
        creator.on_request = lambda _method, _path: None
        other.on_request = _refuse_new_jobs
        harness.create()
        harness.wait_for_condition("Warm", timeout=40)
        harness.delete()
        eventually(lambda: len(_cleanup_jobs(harness, node)) == 1, timeout=40)
        other.on_request = lambda _method, _path: None
        two_controllers.assert_kept(_cleanup_jobs(harness, node)[0])
        fake_loaders.block_cleanups = False
        eventually(harness.is_gone, timeout=25)
        eventually(lambda: not _cleanup_jobs(harness, node))
    assert _count_runs(fake_loaders, [node])[names.ROLE_CLEANUP, node] == 2


def _refuse_new_jobs(method: str, path: str) -> ErrorResponse | None:
    return ErrorResponse(500) if method == "POST" and path.endswith("/jobs") else None


def test_api_errors_and_broken_watches_only_delay_the_result(
    harness: OperatorHarness, fake_loaders: FakeLoaders, faulty_proxy: FaultyProxy
) -> None:
    numbers = itertools.count()
    kinds = [ErrorResponse(500), ErrorResponse(429, {"Retry-After": "1"}), ErrorResponse(503), ErrorResponse(409)]
    writes = {"POST", "PUT", "PATCH", "DELETE"}

    def inject_errors(method: str, path: str) -> ErrorResponse | None:
        if method not in writes or "/events" in path:
            return None
        number = next(numbers)
        return kinds[number // 2 % len(kinds)] if number % 2 else None

    faulty_proxy.on_request = inject_errors
    nodes = harness.add_nodes("a", "b")
    with ControllerThread(static_client_config(faulty_proxy.url), make_installation()) as running:
        harness.create()
        harness.wait_for_condition("Resolved", timeout=40)
        fake_loaders.block_loads = True
        faulty_proxy.drop_watches()
        fake_loaders.block_loads = False
        harness.wait_for_condition("Warm", timeout=50)
        faulty_proxy.on_request = lambda method, path: (
            ErrorResponse(410) if method == "GET" and "watch=" in path else None
        )
        faulty_proxy.drop_watches()
        faulty_proxy.on_request = lambda _method, _path: None
        (third,) = harness.add_nodes("c")
        eventually(lambda: bool(harness.entry_states(third)), timeout=40)
        # The API server is unavailable for a while, as in an upgrade of the control plane.
        faulty_proxy.on_request = lambda _method, _path: ErrorResponse(503)
        faulty_proxy.drop_watches()
        (fourth,) = harness.add_nodes("d")
        assert not harness.entry_states(fourth)
        faulty_proxy.on_request = lambda _method, _path: None
        eventually(lambda: bool(harness.entry_states(fourth)), timeout=40)
        harness.wait_for_condition("Warm", timeout=40)
        assert running.error is None
    nodes += [third, fourth]
    assert all(_count_runs(fake_loaders, nodes)[names.ROLE_LOAD, node] == 1 for node in nodes)


def test_an_unreadable_object_gets_a_condition_and_the_others_continue(
    harness: OperatorHarness, fake_loaders: FakeLoaders, operator_namespace: str
) -> None:
    """As after an upgrade of the CRD only: the object has an enum value that the operator doesn't know."""
    del fake_loaders, operator_namespace
    plane = harness.plane
    with _patched_schema(plane, lambda spec: spec["verify"]["enum"].append("Blake3")):
        eventually(lambda: _try_create(harness, {"verify": "Blake3"}, "newer"))
        with ControllerThread(admin_client_config(plane), make_installation()) as running:
            harness.wait_for_condition("Accepted", "False", "InvalidSpec", name="newer")
            harness.add_nodes("a")
            harness.create()
            harness.wait_for_condition("Warm")
            eventually(lambda: running.app.idle and not harness.jobs())
            before = running.count_writes()
            running.reconcile_all()
            assert running.count_writes() == before, "the condition is written once"
            harness.delete("newer")
            eventually(lambda: harness.is_gone("newer"))


def test_an_object_stored_by_an_older_release_continues_after_an_upgrade(
    harness: OperatorHarness, fake_loaders: FakeLoaders, operator_namespace: str
) -> None:
    """The older schema lacks newer fields, so neither their values nor their defaults are stored."""
    del fake_loaders, operator_namespace
    plane = harness.plane

    def older(spec: dict[str, Any]) -> None:
        for field in ("verify", "loader", "access", "suspend"):
            del spec[field]
        for field in ("retention", "layout"):
            del spec["cache"]["properties"][field]
            del spec["cache"]["default"][field]

    nodes = harness.add_nodes("a")
    with _patched_schema(plane, older):
        eventually(lambda: _try_create(harness, {}, "old"))
        eventually(lambda: "verify" not in harness.get("old")["spec"])
    with ControllerThread(admin_client_config(plane), make_installation()):
        harness.wait_for_condition("Warm", name="old")
        harness.patch({"loader": {"connections": 8}}, name="old")
        eventually(lambda: harness.status("old")["observedGeneration"] == harness.get("old")["metadata"]["generation"])
        harness.delete("old")
        eventually(lambda: harness.is_gone("old"), timeout=25)
    assert not harness.entry_states(nodes[0])


@contextlib.contextmanager
def _patched_schema(plane: ControlPlane, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Changes the schema of specs on the API server, and restores it afterwards."""
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


def _try_create(harness: OperatorHarness, spec: dict[str, Any], name: str) -> bool:
    with contextlib.suppress(OSError):
        harness.delete(name)
    try:
        made = harness.create(spec, name=name)
    except OSError:
        return False
    return made["spec"].items() >= spec.items() and ("verify" in made["spec"]) == ("verify" in spec)
