"""A real API server, and a controller that names peers to loaders and keeps their credentials."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from operator_support.fake_kubelet import Termination
from operator_support.faulty_proxy import ErrorResponse, FaultyProxy
from operator_support.harness import (
    WITH_PEERS,
    ControllerThread,
    admin_client_config,
    make_installation,
    static_client_config,
)
from support.waiting import eventually
from tonnage import contract
from tonnage.contract.peers import (
    AWAIT_HEADERS,
    NO_PLACE,
    READ_HEADERS,
    PeersAnswer,
    Purpose,
    decode_peers_answer,
    verify_grant,
)
from tonnage_operator.api import names
from tonnage_operator.domain.peers.credentials import (
    VALIDITY,
    PeerCredentials,
    format_credentials,
    parse_credentials,
    renew_credentials,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

SERVER_NAME = "tonnage-peers.tonnage-system.svc"


class Fleet:
    """Nodes with peers, and loaders that ask for them."""

    def __init__(self, harness: OperatorHarness, controller: ControllerThread, secret: str) -> None:
        self.harness = harness
        self.plane = harness.plane
        self.controller = controller
        self.secret = secret

    def credentials(self) -> PeerCredentials | None:
        """Returns what is in the Secret."""
        return parse_credentials(self.plane.request("GET", self.secret).get("data") or {})

    def add_peer(
        self, node: str, address: str, *, ready: bool = True, namespace: str = "tonnage-system", suffix: str = ""
    ) -> str:
        """Creates the pod of a peer on a node, with the status that a kubelet would set; returns its path."""
        name = f"peer-{node}{suffix}"
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {names.ROLE: names.ROLE_PEER}},
            "spec": {"nodeName": node, "containers": [{"name": "peer", "image": "peer"}]},
        }
        self.plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.set_ready(path, address, ready=ready)
        return path

    def set_ready(self, path: str, address: str, *, ready: bool) -> None:
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        status = {"phase": "Running", "podIP": address, "hostIP": "192.0.2.1", "conditions": conditions}
        content_type = "application/strategic-merge-patch+json"
        self.plane.request("PATCH", f"{path}/status", {"status": status}, content_type=content_type)

    def delete(self, path: str) -> None:
        self.plane.request("DELETE", path, {"gracePeriodSeconds": 0})

    def token(self, pod: str) -> str:
        command = ["create", "token", "default", "-n", self.harness.namespace, f"--audience={names.TOKEN_AUDIENCE}"]
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"]
        return self.plane.kubectl(*command, *bound).stdout.strip()

    def ask(self, node: str, *, entry: str = "", headers: str = "") -> PeersAnswer:
        """Asks for peers as the loader on a node does, which has read all headers if it has their digest.

        Raises:
            urllib.error.HTTPError: The controller rejects the question.
        """
        pod = eventually(lambda: self.harness.loading_pod_name(node))
        entry = entry or self.harness.status()["resolved"]["revision"]
        uid = self.harness.get()["metadata"]["uid"]
        identity = contract.Identity(namespace=self.harness.namespace, name="llama", uid=uid, generation=1)
        report = contract.Report(kind=contract.ReportKind.PEERS, entry=entry, identity=identity, headers_digest=headers)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.controller.app.port}/v1/reports",
            data=contract.encode_report(report),
            headers={"Authorization": f"Bearer {self.token(pod)}"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
            return decode_peers_answer(response.read())

    def addresses(self, node: str) -> dict[str, str]:
        return {peer.node: peer.address for peer in self.ask(node).peers}


@pytest.fixture
def fleet(harness: OperatorHarness, fake_loaders: FakeLoaders, peers_secret: str) -> Iterator[Fleet]:
    """Three nodes that are loading, with a controller that has just filled the Secret."""
    fake_loaders.block_loads = True
    with ControllerThread(admin_client_config(harness.plane), make_installation(**WITH_PEERS)) as running:
        made = Fleet(harness, running, peers_secret)
        nodes = harness.add_nodes("a", "b", "c")
        eventually(made.credentials)
        harness.create({"placement": {"maxConcurrentNodes": 3}})
        for node in nodes:
            eventually(functools.partial(harness.loading_pod_name, node))
        yield made
    for namespace in ("tonnage-system", harness.namespace):
        harness.plane.request("DELETE", f"/api/v1/namespaces/{namespace}/pods?labelSelector={names.ROLE}%3Dpeer")


def test_loaders_learn_of_each_other_once_they_have_asked_and_their_peers_are_ready(fleet: Fleet) -> None:
    space = fleet.harness.namespace
    a, b, c = (f"{space}-{short}" for short in "abc")
    paths = {node: fleet.add_peer(node, f"192.0.2.{index}") for index, node in enumerate((a, b, c), 10)}
    fleet.add_peer(b, "192.0.2.66", namespace=space, suffix="-of-a-tenant")
    answer = fleet.ask(a)
    credentials = fleet.credentials()
    assert credentials
    assert answer.peers == (), "no other loader has asked yet"
    assert (answer.loading, answer.place, answer.headers) == (1, 0, READ_HEADERS)
    assert answer.certificates == credentials.trusted.decode()
    grant = verify_grant(answer.ticket, Purpose.TICKET, [credentials.ticket_key], now=time.time())
    revision = fleet.harness.status()["resolved"]["revision"]
    assert (grant.medium, grant.key) == ("memory", revision)
    assert grant.caller.endswith(f"{space}/default")

    assert fleet.addresses(b) == {a: "192.0.2.10:9443"}
    assert fleet.addresses(c) == {a: "192.0.2.10:9443", b: "192.0.2.11:9443"}
    answer = fleet.ask(c)
    assert (answer.loading, answer.place) == (3, 2)
    assert (answer.headers, answer.headers_digest) == (AWAIT_HEADERS, ""), "two others read them"
    assert fleet.ask(c, headers="c" * 64).headers_digest == "", "it was not chosen to read"
    fleet.ask(a, headers="a" * 64)
    answer = fleet.ask(c)
    assert (answer.headers, answer.headers_digest) == (AWAIT_HEADERS, "a" * 64), "peers have them, or will soon"
    fleet.set_ready(paths[a], "192.0.2.10", ready=False)
    eventually(lambda: fleet.addresses(c).keys() == {b})
    answer = fleet.ask(a)
    assert (answer.loading, answer.place) == (2, NO_PLACE), "it fetches nothing for others while they can't have it"
    answer = fleet.ask(c)
    assert (answer.loading, answer.place) == (2, 0), "the last one takes over its place"
    assert [peer.near for peer in answer.peers] == [True], "no zone is known"
    for node, zone in ((b, "zone-1"), (c, "zone-2")):
        fleet.harness.patch_node(node, {"metadata": {"labels": {names.ZONE_LABEL: zone}}})
    eventually(lambda: [peer.near for peer in fleet.ask(c).peers] == [False])
    # The DaemonSet is updated: the new pod is ready before or after the old one is gone.
    fleet.add_peer(b, "fd00::b", suffix="-new")
    fleet.delete(paths[b])
    eventually(lambda: fleet.addresses(c) == {b: "[fd00::b]:9443"})

    with pytest.raises(urllib.error.HTTPError) as caught:
        fleet.ask(a, entry="r-" + "0" * 32)
    with caught.value as response:
        assert response.code == 403
        assert "loads no such entry" in json.loads(response.read())["message"]


def test_warm_nodes_are_named_also_after_a_restart_and_a_deleted_node_is_not(
    fleet: Fleet, fake_loaders: FakeLoaders
) -> None:
    a, b, c = (f"{fleet.harness.namespace}-{short}" for short in "abc")
    for index, node in enumerate((a, b), 10):
        fleet.add_peer(node, f"192.0.2.{index}")
    done = contract.Report(outcome=contract.Outcome.LOADED, bytes=1, seconds=1.0, verified="crc32")
    fake_loaders.load_failures.update({a: Termination(done), b: Termination(done)})
    eventually(lambda: fleet.addresses(c).keys() == {a, b})
    with ControllerThread(admin_client_config(fleet.plane), make_installation(**WITH_PEERS)) as restarted:
        other = Fleet(fleet.harness, restarted, fleet.secret)
        assert other.addresses(c).keys() == {a, b}
        fleet.harness.delete_node(a)
        eventually(lambda: other.addresses(c).keys() == {b})


def test_namespaces_that_do_not_share_entries_are_named_other_peers(
    harness: OperatorHarness, fake_loaders: FakeLoaders, peers_secret: str
) -> None:
    fake_loaders.block_loads = True
    installation = make_installation(**WITH_PEERS, sharing="Namespace")
    with ControllerThread(admin_client_config(harness.plane), installation) as running:
        fleet = Fleet(harness, running, peers_secret)
        (node,) = harness.add_nodes("a")
        eventually(fleet.credentials)
        harness.create()
        answer = fleet.ask(node)
        credentials = fleet.credentials()
        assert credentials
        grant = verify_grant(answer.ticket, Purpose.TICKET, [credentials.ticket_key], now=time.time())
        assert grant.key == f"{harness.namespace}/{harness.status()['resolved']['revision']}"


def _check(controller: ControllerThread) -> None:
    """Lets the controller look at the Secret now, not only once a minute."""
    keeper = controller.app._peer_credentials
    assert keeper
    asyncio.run_coroutine_threadsafe(keeper.check(), controller.loop).result(30)


def _write(plane: ControlPlane, secret: str, credentials: PeerCredentials | None) -> None:
    data = format_credentials(credentials) if credentials else None
    plane.request("PATCH", secret, {"data": data}, content_type="application/merge-patch+json")


def test_credentials_are_made_once_and_renewed_with_an_overlap(
    control_plane: ControlPlane, operator_namespace: str, peers_secret: str
) -> None:
    del operator_namespace

    def read() -> PeerCredentials | None:
        return parse_credentials(control_plane.request("GET", peers_secret).get("data") or {})

    old = renew_credentials(None, SERVER_NAME, datetime.now(UTC) - VALIDITY + timedelta(days=1))
    _write(control_plane, peers_secret, old)
    with ControllerThread(admin_client_config(control_plane), make_installation(**WITH_PEERS)) as running:
        eventually(lambda: read() not in {None, old})
        renewed = read()
        assert renewed
        assert old.certificate in renewed.trusted
        assert renewed.previous_ticket_key == old.ticket_key
        keeper = running.app._peer_credentials
        assert keeper
        before = running.count_writes()
        eventually(lambda: keeper.current == renewed)
        _check(running)
        assert (read(), running.count_writes()) == (renewed, before)
        _write(control_plane, peers_secret, None)
        _check(running)
        assert read() == keeper.current != renewed


@pytest.mark.parametrize("fault", ["forbidden", "conflict"])
def test_a_secret_that_cannot_be_written_costs_peers_and_nothing_else(
    control_plane: ControlPlane, operator_namespace: str, peers_secret: str, fault: str
) -> None:
    del operator_namespace
    theirs = renew_credentials(None, SERVER_NAME, datetime.now(UTC))

    def respond(method: str, path: str) -> Any:
        if method != "PATCH" or not path.partition("?")[0].endswith("/secrets/tonnage-peers"):
            return None
        if fault == "conflict":  # another controller is first
            _write(control_plane, peers_secret, theirs)
            return None
        return ErrorResponse(403)

    with FaultyProxy(control_plane) as proxy:
        proxy.on_request = respond
        with ControllerThread(static_client_config(proxy.url), make_installation(**WITH_PEERS)) as running:
            keeper = running.app._peer_credentials
            assert keeper
            _check(running)
            if fault == "conflict":
                assert keeper.current == theirs
            else:
                assert keeper.current is None
                proxy.on_request = lambda _method, _path: None
                _check(running)
                assert keeper.current is not None
    assert base64.b64decode(control_plane.request("GET", peers_secret)["data"]["ticket-key"])
