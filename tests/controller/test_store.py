"""The store agrees with the API server, in whatever order lists and watch events arrive."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tonnage_operator.kube.store import Store


def _body(uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version)}}


def _store() -> Store[str]:
    return Store(lambda body: str(body["metadata"]["resourceVersion"]))


def test_an_object_created_while_a_list_is_read_stays() -> None:
    store = _store()
    store.put(_body("new", 12))
    store.replace([_body("old", 3)], "10")
    assert store.get("new") == "12"
    store.replace([_body("old", 3)], "12")
    assert store.get("new") is None


def test_an_object_deleted_while_a_list_is_read_does_not_come_back() -> None:
    store = _store()
    store.put(_body("a", 3))
    store.remove("a", 11)
    store.replace([_body("a", 3)], "10")
    assert store.get("a") is None


def test_what_a_request_of_ours_has_changed_holds_until_the_next_version_and_calls_no_handler() -> None:
    store, seen = _store(), list[tuple[str | None, str | None]]()
    store.put(_body("a", 3))
    store.add_event_handler(lambda before, after: seen.append((before, after)))
    store.amend("a", lambda known: f"{known}, deleted")
    store.amend("gone", lambda known: known)
    store.put(_body("a", 3))
    assert (store.get("a"), seen) == ("3, deleted", [])
    store.put(_body("a", 4))
    assert seen == [("3, deleted", "4")]


@given(data=st.data(), count=st.integers(1, 12))
def test_lists_and_events_in_any_order_end_in_the_state_of_the_server(data: st.DataObject, count: int) -> None:
    """Objects are created, changed and deleted; each event may arrive late, and lists of any moment in between."""
    server: dict[str, int] = {}
    events: list[tuple[str, int, bool]] = []
    snapshots: list[tuple[int, dict[str, int]]] = [(0, {})]
    for version in range(1, count + 1):
        uid = data.draw(st.sampled_from("abc"))
        deleted = uid in server and data.draw(st.booleans())
        if deleted:
            del server[uid]
        else:
            server[uid] = version
        events.append((uid, version, deleted))
        snapshots.append((version, dict(server)))
    store, arrived, listed = _store(), 0, 0
    while arrived < len(events):
        # A list may be older than events that arrived already, but not older than the list before it.
        if data.draw(st.booleans()):
            listed = data.draw(st.integers(listed, len(events)))
            version, objects = snapshots[listed]
            store.replace([_body(uid, each) for uid, each in objects.items()], str(version))
        else:
            uid, version, deleted = events[arrived]
            arrived += 1
            if deleted:
                store.remove(uid, version)
            else:
                store.put(_body(uid, version))
    assert {uid: found for uid in "abc" if (found := store.get(uid))} == {
        uid: str(version) for uid, version in server.items()
    }
