"""The reads at the API server before a Job is created or deleted: its state counts, not that of the cache."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from operator_support import objects
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.controller.job_control import JobControl, Precondition
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.controller.workqueue import StaleCache
from tonnage_operator.domain import signing
from tonnage_operator.domain.observed.job import parse_job
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import JOBS, NODE_CACHES, NODES

if TYPE_CHECKING:
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource

Body = dict[str, Any]
KEY = EntryKey("r-1", Medium.MEMORY)


class FakeApiServer:
    """An in-memory API server with the few requests that are needed; it records the calls."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, str], Body] = {}
        self.calls: list[str] = []

    def put(self, resource: Resource, name: str, version: int, **more: Any) -> None:
        metadata = {"name": name, "namespace": "serving", "uid": f"uid-{name}", "resourceVersion": str(version)}
        self.objects[resource, name] = {"metadata": metadata, **more}

    async def get_or_none(self, resource: Resource, name: str, _namespace: str = "") -> Body | None:
        self.calls.append(f"get {resource.plural}")
        return self.objects.get((resource, name))

    async def get_resource_version(self, resource: Resource, name: str, _namespace: str = "") -> str:
        self.calls.append(f"version of {resource.plural}")
        found = self.objects.get((resource, name))
        return str(found["metadata"]["resourceVersion"]) if found else ""

    async def list(self, _resource: Resource, **_: Any) -> tuple[list[Body], str]:
        """Lists what limits a namespace: nothing."""
        return [], "1"

    async def delete(self, resource: Resource, name: str, _namespace: str = "", *, uid: str) -> None:
        self.calls.append(f"delete {resource.plural}")
        assert self.objects[resource, name]["metadata"]["uid"] == uid
        del self.objects[resource, name]

    async def create(self, resource: Resource, body: Body, _namespace: str = "", **_: Any) -> Body:
        self.calls.append(f"create {resource.plural}")
        if (resource, body["metadata"]["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists", "It exists.")
        self.put(resource, body["metadata"]["name"], 100)
        return self.objects[resource, body["metadata"]["name"]]

    def server_time(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def api_server() -> FakeApiServer:
    return FakeApiServer()


@pytest.fixture
def job_control(api_server: FakeApiServer) -> JobControl:
    state = ControllerState(objects.INSTALLATION)
    state.weights.put(objects.modelweights_manifest(resourceVersion="1"))
    return JobControl(state, cast("KubeClient", api_server))


def _put_node_cache(server: FakeApiServer, version: int, state: str, **more: Any) -> None:
    entries = [{"name": KEY.cache_key, "medium": KEY.medium.value, "state": state, **more}]
    server.put(NODE_CACHES, "n0", version, status={"entries": entries})


def _put_job(server: FakeApiServer) -> None:
    """Stores a Job that the operator has created."""
    owner = {"uid": objects.UID, "controller": True}
    metadata: Body = {
        "name": "load",
        "namespace": "serving",
        "uid": "uid-load",
        "resourceVersion": "5",
        "labels": {names.ROLE: names.ROLE_LOAD, names.MODEL_UID: objects.UID},
        "ownerReferences": [owner],
    }
    metadata["annotations"] = {names.SIGNATURE: objects.KEYS.sign(*signing.job_parts(metadata))}
    server.objects[JOBS, "load"] = {"metadata": metadata}


JOB: Body = {"metadata": {"name": "load", "namespace": "serving", "annotations": {}}, "spec": {"template": {}}}
PRECONDITION = Precondition(NODE_CACHES, "n0", "7", entry_key=KEY)


async def test_the_job_is_read_before_the_precondition(api_server: FakeApiServer, job_control: JobControl) -> None:
    api_server.put(NODE_CACHES, "n0", 7)
    assert await job_control.create(JOB, PRECONDITION)
    assert api_server.calls == ["get jobs", "version of nodecaches", "create jobs"]


async def test_a_job_that_exists_is_not_created(api_server: FakeApiServer, job_control: JobControl) -> None:
    _put_job(api_server)
    assert not await job_control.create(JOB, PRECONDITION)
    assert api_server.calls == ["get jobs"]


async def test_a_job_of_a_tenant_under_our_name_is_deleted_and_then_replaced(
    api_server: FakeApiServer, job_control: JobControl
) -> None:
    api_server.put(JOBS, "load", 5)
    api_server.put(NODE_CACHES, "n0", 7)
    with pytest.raises(StaleCache):
        await job_control.create(JOB, PRECONDITION)
    assert api_server.calls == ["get jobs", "delete jobs"]
    assert await job_control.create(JOB, PRECONDITION)


@pytest.mark.parametrize(
    ("state", "created"), [("Ready", False), ("Evicting", False), ("Loading", True), ("Partial", True)]
)
async def test_unrelated_changes_of_the_nodecache_do_not_matter(
    api_server: FakeApiServer, job_control: JobControl, state: str, created: bool
) -> None:
    _put_node_cache(api_server, 8, state)
    if created:
        assert await job_control.create(JOB, PRECONDITION)
        return
    with pytest.raises(StaleCache):
        await job_control.create(JOB, PRECONDITION)
    assert (JOBS, "load") not in api_server.objects


async def test_a_ready_entry_that_appeared_after_the_decision_counts_even_if_it_is_cached(
    api_server: FakeApiServer, job_control: JobControl
) -> None:
    _put_node_cache(api_server, 7, "Ready")
    with pytest.raises(StaleCache):
        await job_control.create(JOB, Precondition(NODE_CACHES, "n0", "6", entry_key=KEY))
    with pytest.raises(StaleCache):
        await job_control.create(JOB, PRECONDITION)


async def test_a_ready_entry_with_some_ranks_is_not_complete(
    api_server: FakeApiServer, job_control: JobControl
) -> None:
    _put_node_cache(api_server, 8, "Ready", ranks="0-3")
    assert await job_control.create(JOB, PRECONDITION)


async def test_any_change_matters_without_an_entry_key(api_server: FakeApiServer, job_control: JobControl) -> None:
    api_server.put(NODE_CACHES, "n0", 8)
    with pytest.raises(StaleCache):
        await job_control.create(JOB, Precondition(NODE_CACHES, "n0", "7"))


@pytest.mark.parametrize(
    ("precondition", "obsolete"),
    [
        (Precondition(NODE_CACHES, "n0", "7"), True),
        (Precondition(NODE_CACHES, "n0", "6"), False),
        (Precondition(NODES, "n1", ""), True),
        (Precondition(NODES, "n0", ""), False),
    ],
    ids=["record as known", "newer record", "no node", "a node that was not known"],
)
async def test_a_job_is_deleted_only_if_what_makes_it_obsolete_is_unchanged(
    api_server: FakeApiServer, job_control: JobControl, precondition: Precondition, obsolete: bool
) -> None:
    _put_job(api_server)
    api_server.put(NODES, "n0", 3)
    _put_node_cache(api_server, 7, "Evicting")
    job = parse_job(api_server.objects[JOBS, "load"])
    if obsolete:
        await job_control.delete(job, precondition)
    else:
        with pytest.raises(StaleCache):
            await job_control.delete(job, precondition)
    assert ((JOBS, "load") not in api_server.objects) == obsolete
