"""Watch events may be lost, repeated and reordered: a full look at the API server makes up for all of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from operator_support.injection import annotated_pod, inject_pod, resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.controller.event_handlers import EventHandlers
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.domain.specs import jobs
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS

if TYPE_CHECKING:
    from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
    from tonnage_operator.kube.resources import Resource

Body = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REVISION = objects.resolved_report().revision


def _weights(uid: str, variant: int) -> Body:
    resolved = resolved_modelweights(uid=uid, name=uid).status.resolved
    status = {"resolved": resolved.model_dump(mode="json", by_alias=True, exclude_none=True)} if resolved else {}
    more: Body = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if variant == 2 else {}
    return objects.modelweights_manifest(uid=uid, name=uid, status=status if variant else {}, **more)


def _node(uid: str, variant: int) -> Body:
    body = objects.node(uid, boot_id=f"boot-{variant}", ready=variant != 2)
    body["metadata"]["uid"] = uid
    return body


def _job(uid: str, variant: int) -> Body:
    weights = resolved_modelweights(uid="w0", name="w0")
    job = jobs.build_resolve_job(weights, objects.INSTALLATION, round_="", attempt=1 + variant)
    job["metadata"]["uid"] = uid
    if variant:
        done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        job["status"] = {"conditions": [done]}
    return job


def _pod(uid: str, variant: int) -> Body:
    pod = inject_pod(annotated_pod(), resolved_modelweights(uid="w0", name="w0"))
    pod["metadata"] |= {"uid": uid, "name": uid, "creationTimestamp": "2026-01-01T00:00:00Z"}
    pod["spec"]["nodeName"] = ["", "n0", "n1"][variant]
    pod["status"] = {"phase": "Running" if variant else "Pending"}
    return pod


def _node_cache(uid: str, variant: int) -> Body:
    entry = {
        "name": REVISION,
        "medium": "Memory",
        "state": ["Loading", "Ready", "Evicting"][variant],
        "models": ["serving/w0"],
    }
    name = uid.replace("c", "n")
    metadata = {"name": name, "uid": uid, "labels": {names.HOSTNAME_LABEL: name}}
    return {"metadata": metadata, "status": {"bootID": "boot-1", "entries": [entry]}}


MAKERS = {
    MODEL_WEIGHTS: (_weights, ("w0", "w1")),
    NODES: (_node, ("n0", "n1")),
    JOBS: (_job, ("j0", "j1")),
    PODS: (_pod, ("p0", "p1")),
    NODE_CACHES: (_node_cache, ("c0", "c1")),
}
Event = tuple["Resource", bool, Body]


class _Server:
    """The API server's objects, and the events of all their changes."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, str], Body] = {}
        self.events: list[Event] = []
        self.version = 0

    def change(self, resource: Resource, uid: str, variant: int) -> None:
        """Creates or changes an object; variant 3 deletes it. A deleted object's uid is not used again."""
        key = (resource, uid)
        self.version += 1
        if variant == 3:
            if body := self.objects.pop(key, None):
                gone = copy.deepcopy(body)
                gone["metadata"]["resourceVersion"] = str(self.version)
                self.events.append((resource, True, gone))
            return
        if key not in self.objects and any(
            each[0] is resource and each[2]["metadata"]["uid"] == uid for each in self.events
        ):
            return
        body = MAKERS[resource][0](uid, variant)
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = body
        self.events.append((resource, False, copy.deepcopy(body)))

    def look(self, state: ControllerState) -> None:
        """Replaces all stores by whole lists, as the controller does every minute."""
        for resource in MAKERS:
            bodies = [copy.deepcopy(body) for (kind, _), body in self.objects.items() if kind is resource]
            state.store_for(resource).replace(bodies, str(self.version))


def _deliver(state: ControllerState, event: Event) -> None:
    resource, deleted, body = event
    store = state.store_for(resource)
    if deleted:
        store.remove(body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]))
    else:
        store.put(copy.deepcopy(body))


def _without_releases(snapshot: NodeSnapshot) -> NodeSnapshot:
    """Leaves out what objects released earlier: only the process that saw it remembers it, and no look shows it."""
    kept = [each for each in snapshot.references if each.entries or each.deleting or not each.is_valid]
    return replace(snapshot, references=[replace(each, released=frozenset()) for each in kept])


def _picture(state: ControllerState) -> dict[str, Any]:
    """Returns everything on which decisions about objects and nodes depend, and that the API server shows."""
    found: dict[str, Any] = {}
    for record in state.weights:
        assert record.weights
        snapshot = state.snapshot(record, record.weights, NOW)
        found[record.uid] = (
            record, sorted(snapshot.nodes), snapshot.jobs, snapshot.pods, snapshot.consumers, snapshot.shared_entries,
        )  # fmt: skip
        found[f"{record.uid} nodes"] = sorted(state.cache_index.nodes_referencing(record.ref))
    for node in state.nodes:
        found[node.name] = _without_releases(state.node_snapshot(node, NOW))
    for medium in state.installation.media:
        found[f"{medium} entries"] = dict(state.cache_index.nodes_with(REVISION, medium))
    return found


CHANGES = st.lists(
    st.sampled_from(list(MAKERS)).flatmap(
        lambda resource: st.tuples(st.just(resource), st.sampled_from(MAKERS[resource][1]), st.integers(0, 3))
    ),
    max_size=25,
)


@settings(max_examples=100)
@given(changes=CHANGES, later=CHANGES, data=st.data())
def test_after_a_full_look_the_state_is_the_servers_whatever_happened_to_events(
    changes: list[Any], later: list[Any], data: st.DataObject
) -> None:
    """Also if there was an earlier look, and if old events arrive after the last one."""
    server, state = _Server(), ControllerState(objects.INSTALLATION)
    enqueued: set[str] = set()
    handlers = EventHandlers(state, enqueue_weights=enqueued.add, enqueue_node=enqueued.add)
    handlers.register()
    for round_ in (changes, later):
        for resource, uid, variant in round_:
            server.change(resource, uid, variant)
        arriving = data.draw(st.lists(st.sampled_from(server.events), max_size=40)) if server.events else []
        for event in arriving:
            _deliver(state, event)
        server.look(state)
    for event in data.draw(st.lists(st.sampled_from(server.events), max_size=20)) if server.events else []:
        _deliver(state, event)
    fresh = ControllerState(objects.INSTALLATION)
    server.look(fresh)
    assert _picture(state) == _picture(fresh)
    enqueued.clear()
    handlers.enqueue_all()
    expected = {uid for kind, uid in server.objects if kind is MODEL_WEIGHTS} | {
        body["metadata"]["name"] for (kind, _), body in server.objects.items() if kind is NODES
    }
    assert enqueued >= expected


@given(changes=CHANGES, data=st.data())
def test_every_object_whose_state_a_lost_event_changed_is_enqueued_by_the_full_look(
    changes: list[Any], data: st.DataObject
) -> None:
    """The look alone enqueues what it changes, before everything is enqueued."""
    server, state = _Server(), ControllerState(objects.INSTALLATION)
    enqueued: set[str] = set()
    EventHandlers(state, enqueue_weights=enqueued.add, enqueue_node=enqueued.add).register()
    for resource, uid, variant in changes:
        server.change(resource, uid, variant)
        if data.draw(st.booleans()) and server.events:
            _deliver(state, server.events[-1])
    before = {record.uid: record for record in state.weights}
    enqueued.clear()
    server.look(state)
    changed = {record.uid for record in state.weights if before.get(record.uid) != record}
    assert enqueued >= changed
