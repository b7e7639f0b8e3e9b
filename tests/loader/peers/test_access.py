"""Who gets what from a peer: the real server with its nginx, asked by hand, and a real S3 server for the proofs."""

from __future__ import annotations

import functools
import http.client
import json
import os
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from support.cache_entries import ENTRY_NAME
from support.peer_fleet import CALLER, SERVER_NAME, Fleet, Node, source_of
from support.s3_server import NO_PERMISSIONS, READER, S3Identity, SeaweedS3
from tonnage.contract.peers import Purpose, new_grant, sign_grant
from tonnage.peer_server.access import AccessService, ProofResult
from tonnage.peer_server.settings import PeerSettings
from tonnage.source.sigv4 import Credentials, presigned_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.faulty_server import FaultyServer
    from support.tls import CertificateAuthority


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Peer:
    """A node with an entry, and requests to its server. ``caller``: in whose name they are sent."""

    caller = CALLER

    def __init__(self, fleet: Fleet, s3: SeaweedS3, bucket: str, authority: CertificateAuthority) -> None:
        self.fleet, self.s3, self.bucket = fleet, s3, bucket
        fleet.namespace = "team"
        self.node: Node = fleet.add("holder")
        self.report = fleet.load(self.node, fleet.plan(source_of(bucket, s3.endpoint)), s3.environment())
        self.key = f"team/{self.report['entry']}"
        self._context = ssl.create_default_context(cafile=str(authority.bundle))
        self._context.check_hostname = False  # it is SERVER_NAME at 127.0.0.1

    def request(
        self, method: str, path: str, token: str = "", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPSConnection("127.0.0.1", self.node.port, context=self._context, timeout=20)
        try:
            authorization = {"Authorization": f"Bearer {token}"} if token else {}
            connection.putrequest(method, path, skip_host=True)
            for name, value in {"Host": SERVER_NAME, **authorization, **(headers or {})}.items():
                connection.putheader(name, value)
            if method == "POST":
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body if method == "POST" else None)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def ticket(self, key: str = "") -> str:
        return self.fleet.sign(key=key or self.key, caller=self.caller)

    def access(self, *proofs: str, ticket: str | None = None) -> Answer:
        ticket = self.ticket() if ticket is None else ticket
        return self.request("POST", "/v1/access", ticket, json.dumps({"proofs": proofs}).encode())

    def proof(self, identity: S3Identity = READER, *, key: str = "model/weights.tensors", endpoint: str = "") -> str:
        return presigned_url(
            "HEAD",
            f"{endpoint or self.s3.endpoint}/{self.bucket}/{key}",
            region=self.s3.region,
            credentials=Credentials(access_key=identity.access_key, secret_key=identity.secret_key),
            requester_pays=False,
            now=time.time(),
            seconds=60,
        )

    def url(self, name: str, key: str = "") -> str:
        return f"/v1/entries/memory/{key or self.key}/{name}"


@pytest.fixture(scope="module")
def shared_peer(
    s3: SeaweedS3, bucket: str, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    with Fleet(tmp_path_factory.mktemp("shared"), authority) as fleet:
        yield Peer(fleet, s3, bucket, authority)


@pytest.fixture
def peer(shared_peer: Peer, request: pytest.FixtureRequest) -> Peer:
    """A peer that tests leave as it was. Each has a caller of its own, who has proven nothing."""
    shared_peer.caller = f"{request.node.name[:60]}/default"
    return shared_peer


@pytest.fixture
def own_peer(fleet: Fleet, s3: SeaweedS3, bucket: str, authority: CertificateAuthority) -> Peer:
    """A peer that the test may change."""
    return Peer(fleet, s3, bucket, authority)


def test_a_caller_with_ticket_and_proof_reads_the_files_of_its_entry_and_nothing_else(peer: Peer) -> None:
    answer = peer.access(peer.proof())
    assert answer.status == 200, answer
    token = answer.json["token"]
    assert 500 < answer.json["expires"] - time.time() <= 600
    shard = next((peer.node.media["memory"] / peer.key / "model").glob("*.safetensors"))
    part = peer.request("GET", peer.url(f"model/{shard.name}"), token, headers={"Range": "bytes=100-199"})
    assert (part.status, part.body) == (206, shard.read_bytes()[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{shard.stat().st_size}"
    assert peer.request("GET", peer.url("manifest"), token).json["digest"] == peer.report["digest"]
    assert peer.request("GET", peer.url("headers"), token).status == 200
    # Another entry, another namespace, another medium, and what is none of the entry's files.
    for path, status in {
        peer.url("manifest", f"other/{peer.report['entry']}"): 403,
        peer.url("manifest", peer.report["entry"]): 403,
        f"/v1/entries/disk/{peer.key}/manifest": 403,
        peer.url("ranges"): 404,
        peer.url("model/"): 404,
        peer.url(".tonnage/use.lock"): 404,
        peer.url("model/../.tonnage/use.lock"): 404,
        peer.url("model/%2e%2e/.tonnage/use.lock"): 404,
        peer.url("model/..%2f.tonnage%2fuse.lock"): 404,
        peer.url("partial/0123456789abcdef/journal"): 404,
        "/v1/entries/memory/../../etc/passwd": 404,
        "/authorize": 404,
        "/": 404,
    }.items():
        assert peer.request("GET", path, token).status == status, path
    for method in ("PUT", "DELETE", "POST"):
        assert peer.request(method, peer.url("manifest"), token).status in {403, 405}, method
    for wrong in ("", "pass.x.y", peer.fleet.sign(key=peer.key)):
        assert peer.request("GET", peer.url("manifest"), wrong).status == 401, wrong
    forged = peer.fleet.sign(key=f"other/{peer.report['entry']}", purpose=Purpose.PASS)
    assert peer.request("GET", peer.url("manifest"), forged).status == 403


def test_a_file_that_was_published_stays_at_the_place_where_it_was_while_it_was_loaded(peer: Peer) -> None:
    token = peer.access(peer.proof()).json["token"]
    shard = next((peer.node.media["memory"] / peer.key / "model").glob("*.safetensors"))
    part = peer.request(
        "GET", peer.url(f"partial/0123456789abcdef/{shard.name}"), token, headers={"Range": "bytes=0-9"}
    )
    assert (part.status, part.body) == (206, shard.read_bytes()[:10])


def test_passes_end_after_ten_minutes_by_clocks_that_may_differ_by_two(peer: Peer) -> None:
    now = 1_000_000.0
    settings = PeerSettings(media={}, secrets=peer.fleet.secrets, run_dir=peer.fleet.folder)
    token = sign_grant(
        new_grant(medium="memory", key=peer.key, caller="a", now=now), Purpose.PASS, settings.ticket_keys()[0]
    )
    path = f"memory/{peer.key}"
    for clock, status in {now - 130: 401, now - 110: 204, now + 600: 204, now + 710: 204, now + 730: 401}.items():
        service = AccessService(settings, clock=functools.partial(float, clock))
        assert service.authorize(token, path) == status, clock


def test_while_keys_are_renewed_passes_by_the_key_before_count_and_then_no_longer(own_peer: Peer) -> None:
    before = own_peer.access(own_peer.proof()).json["token"]
    old, new = own_peer.fleet.key, os.urandom(32)
    (own_peer.fleet.secrets / "ticket-key-previous").write_bytes(old)
    (own_peer.fleet.secrets / "ticket-key").write_bytes(new)
    assert own_peer.request("GET", own_peer.url("manifest"), before).status == 200
    after = own_peer.access(own_peer.proof()).json["token"]  # the ticket is still signed by the key before
    own_peer.fleet.key = new
    (own_peer.fleet.secrets / "ticket-key-previous").write_bytes(b"")
    assert own_peer.request("GET", own_peer.url("manifest"), before).status == 401
    assert own_peer.request("GET", own_peer.url("manifest"), after).status == 200
    assert own_peer.access(own_peer.proof()).status == 200


def test_a_link_in_an_entry_leads_nowhere(own_peer: Peer) -> None:
    token = own_peer.access(own_peer.proof()).json["token"]
    model = own_peer.node.media["memory"] / own_peer.key / "model"
    (model / "link").symlink_to("/etc/passwd")
    (model / "folder").symlink_to("/etc")
    assert own_peer.request("GET", own_peer.url("model/link"), token).status in {403, 404}
    assert own_peer.request("GET", own_peer.url("model/folder/passwd"), token).status in {403, 404}


def test_an_identity_without_access_to_the_objects_gets_no_pass(peer: Peer) -> None:
    answer = peer.access(peer.proof(NO_PERMISSIONS))
    assert answer.status == 403
    assert "answered the proof with 403" in answer.json["message"]
    assert peer.access(peer.proof().replace("Signature=", "Signature=0")).status == 403


def test_a_proof_for_other_objects_is_no_proof(peer: Peer) -> None:
    other = peer.s3.make_bucket()
    peer.s3.put(other, {"model/weights.tensors": b"x"})
    for url in (
        peer.proof().replace(peer.bucket, other),
        peer.proof(key="model/absent.tensors"),
        peer.proof() + "&list-type=2",
        peer.proof() + "#x",
        "file:///etc/passwd",
        "http://127.0.0.1@evil.example/x",
        "",
    ):
        assert peer.access(url).status == 403, url


def test_a_peer_sends_a_proof_to_no_server_but_that_of_its_entry(peer: Peer, faulty_server: FaultyServer) -> None:
    assert peer.access(peer.proof(endpoint=faulty_server.endpoint)).status == 403
    assert faulty_server.requests == []


def test_a_peer_asks_no_store_at_an_address_of_its_own_node(own_peer: Peer, faulty_server: FaultyServer) -> None:
    own_peer.fleet.stop(own_peer.node)
    own_peer.fleet.local_stores = False
    own_peer.fleet.serve(own_peer.node)
    forged = {"digest": "", "sources": [{"place": f"{faulty_server.endpoint}/b", "key": "metadata", "size": 1}]}
    entry = own_peer.node.media["memory"] / "team" / ENTRY_NAME / ".tonnage"
    entry.mkdir(parents=True)
    (entry / "ranges.json").write_text(json.dumps({"schema_version": 1, **forged}))
    ticket = own_peer.ticket(f"team/{ENTRY_NAME}")
    answer = own_peer.access(f"{faulty_server.endpoint}/b/metadata", ticket=ticket)
    assert answer.status == 403
    assert "127.0.0.1 is one of the peer's own node" in answer.json["message"]
    assert faulty_server.requests == []


def test_a_pipe_in_place_of_a_private_file_keeps_no_request_waiting(peer: Peer) -> None:
    private = peer.node.media["memory"] / "team" / ENTRY_NAME / ".tonnage"
    private.mkdir(parents=True)
    os.mkfifo(private / "manifest.json")
    os.mkfifo(private / "ranges.json")
    answer = peer.access(ticket=peer.ticket(f"team/{ENTRY_NAME}"))
    assert (answer.status, answer.json["message"]) == (404, "This node has no such entry.")


def test_a_replaced_object_is_not_the_one_of_the_entry(peer: Peer) -> None:
    content = peer.s3.client().get_object(Bucket=peer.bucket, Key="model/weights.tensors")["Body"].read()
    try:
        peer.s3.put(peer.bucket, {"model/weights.tensors": content + b"x"})
        answer = peer.access(peer.proof())
        assert (answer.status, answer.json["message"]) == (403, "The store has another version of the object.")
    finally:
        peer.s3.put(peer.bucket, {"model/weights.tensors": content})


def test_a_proof_counts_for_ten_minutes_for_this_caller_alone(peer: Peer) -> None:
    assert peer.access().status == 503
    assert "not proven within the last 10 minutes" in peer.access().json["message"]
    first = peer.access(peer.proof())
    again = peer.access()
    assert again.status == 200
    assert again.json["expires"] == first.json["expires"]
    other = peer.fleet.sign(key=peer.key, caller="another-object/default")
    assert peer.access(ticket=other).status == 503


@pytest.mark.parametrize("jump", [-5 * 3600.0, -700.0, 700.0, 5 * 3600.0])
def test_a_proof_counts_for_ten_minutes_though_the_clock_is_set_meanwhile(
    peer: Peer, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = ProofResult(accepted=True, reached=True)
    monkeypatch.setattr("tonnage.peer_server.access.send_proof", lambda *_, **__: accepted)
    media = {medium: path for medium, path in peer.node.media.items() if medium == "memory"}
    settings = PeerSettings(media=media, secrets=peer.fleet.secrets, run_dir=peer.fleet.folder, local_stores=True)
    passed = moved = 0.0
    service = AccessService(
        settings, clock=lambda: time.time() + passed + moved, monotonic=lambda: time.monotonic() + passed
    )

    def ask(*proofs: str) -> tuple[int, float]:
        grant = new_grant(medium="memory", key=peer.key, caller=peer.caller, now=time.time() + passed + moved)
        ticket = sign_grant(grant, Purpose.TICKET, settings.ticket_keys()[0])
        verdict = service.give_pass(ticket, json.dumps({"proofs": proofs}).encode())
        if verdict.status == 200:
            assert service.authorize(verdict.answer.token, f"memory/{peer.key}") == 204
        return verdict.status, verdict.answer.expires - (time.time() + passed + moved)

    assert ask(peer.proof())[0] == 200
    passed, moved = 300.0, jump
    status, left = ask()
    assert status == 200
    assert left == pytest.approx(300, abs=3)
    passed = 610.0
    assert ask()[0] == 503
    passed, moved = 5 * 3600.0, 0.0
    assert ask()[0] == 503, "also when the clock shows the time of the proof again"


def test_a_store_that_is_down_is_no_refusal_for_who_has_proven_its_access(peer: Peer) -> None:
    unreachable = peer.proof(endpoint="http://127.0.0.1:1")
    assert peer.access(unreachable).status == 403  # not the store of the entry
    assert peer.access(peer.proof()).status == 200


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"[" * 20_000, 400), (b"x" * 70_000, 413), (b'{"proofs": ["a"]}' * 2, 400)]
)
def test_foreign_text_is_answered_and_never_ends_the_server(peer: Peer, body: bytes, status: int) -> None:
    assert peer.request("POST", "/v1/access", peer.ticket(), body).status == status
    assert peer.request("POST", "/v1/access", "ticket." + "A" * 5000, b"{}").status in {400, 401}
    assert peer.access(peer.proof()).status == 200
