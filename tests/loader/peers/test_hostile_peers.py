"""Whatever a peer answers that is not the server of this project, a load ends with the right bytes, and soon."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from support.faults import Fault, Request
from support.faulty_server import FaultyServer
from support.models import assert_tensors_equal, load_safetensors_dir
from support.peer_fleet import SERVER_NAME, Fleet, source_of
from support.tls import make_certificate_authority
from tonnage.contract.peers import MAX_PEERS, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from support.s3_server import SeaweedS3
    from support.tls import CertificateAuthority
    from tonnage.contract import Plan

ENDS_WITHIN = 60.0
"""Seconds in which a load of some megabytes has ended that a peer delays as long as it can."""


class Held(NamedTuple):
    """A model in a bucket, and the entry that a node has of it."""

    s3: SeaweedS3
    bucket: str
    entry: Path


@pytest.fixture(scope="module")
def held(
    s3: SeaweedS3, bucket: str, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Held]:
    with Fleet(tmp_path_factory.mktemp("held"), authority) as fleet:
        node = fleet.add("holder", serve=False)
        report = fleet.load(node, fleet.plan(source_of(bucket, s3.endpoint)), s3.environment())
        yield Held(s3, bucket, node.media["memory"] / report["entry"])


class Scene:
    """A node that loads, and one peer, which is played by a faulty server with the files of a real entry."""

    def __init__(self, fleet: Fleet, held: Held, tensors: dict[str, torch.Tensor]) -> None:
        self.fleet, self.s3, self.entry, self.tensors = fleet, held.s3, held.entry, tensors
        self.plan: Plan = fleet.plan(source_of(held.bucket, held.s3.endpoint))
        self.base = f"v1/entries/memory/{held.entry.name}"
        self.node = fleet.add("node", serve=False)

    def play(self, server: FaultyServer, **answer: Any) -> None:
        """Has a server answer as one more peer that has the entry."""
        fields = {"token": "pass.x.y", "expires": time.time() + 600, **answer}
        server.put("v1/access", json.dumps(fields).encode())
        server.put(f"{self.base}/manifest", (self.entry / ".tonnage" / "manifest.json").read_bytes())
        server.put(f"{self.base}/headers", (self.entry / ".tonnage" / "headers.bin").read_bytes())
        for path in (self.entry / "model").rglob("*"):
            if path.is_file():
                server.put(f"{self.base}/model/{path.relative_to(self.entry / 'model')}", path.read_bytes())
        host = f"[{server.host}]" if ":" in server.host else server.host
        number = len(self.fleet.extra_peers)
        self.fleet.extra_peers.append(Peer(node=f"hostile-{number}", address=f"{host}:{server.port}"))

    def load(self) -> dict[str, Any]:
        began = time.monotonic()
        report = self.fleet.load(self.node, self.plan, self.s3.environment())
        assert report["outcome"] == "loaded", json.dumps(report)
        assert time.monotonic() - began < ENDS_WITHIN
        assert_tensors_equal(load_safetensors_dir(self.fleet.model_folder(self.node, report)), self.tensors)
        return report


@pytest.fixture
def scene(fleet: Fleet, held: Held, tensors: dict[str, torch.Tensor]) -> Scene:
    return Scene(fleet, held, tensors)


@pytest.fixture
def servers(authority: CertificateAuthority) -> Iterator[list[FaultyServer]]:
    """As many servers as a load knows peers."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(FaultyServer(tls=authority.server_context(SERVER_NAME))) for _ in range(MAX_PEERS)]


def _are_of_files(request: Request) -> bool:
    return "/model/" in request.raw_path


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_peer_by_this_protocol_is_used_also_at_an_ipv6_address(
    scene: Scene, authority: CertificateAuthority, host: str
) -> None:
    with FaultyServer(tls=authority.server_context(SERVER_NAME), host=host) as server:
        scene.play(server)
        assert scene.load()["peer_bytes"] > 4 << 20


WRONG_RANGES = (
    Fault(shift=1),
    Fault(total_offset=7),
    Fault(extra=b"x" * 100_000),
    Fault(extra=b"x" * 100, announce_extra=True),
    Fault(shorten=10),
    Fault(ignore_range=True),
    Fault(data=gzip.compress(bytes(8 << 20)), headers={"Content-Encoding": "gzip"}),
    Fault(headers={"Content-Range": "bytes 0-18446744073709551616/*"}),
)
WRONG_RESPONSES = (
    Fault(headers={"Content-Range": None}),
    Fault(rate=1.0),
    Fault(stall_after=1000),
    Fault(chunked=True, extra=b"x" * 100_000),
    Fault(status=200, body=b"<html>Sign in</html>"),
    Fault(status=100),
    Fault(status=999),
    Fault(headers={"X": "y" * 300_000}),
)


@pytest.mark.parametrize("faults", [WRONG_RANGES, WRONG_RESPONSES], ids=["ranges", "responses"])
def test_peers_of_which_each_answers_wrongly_cost_no_more_than_themselves(
    scene: Scene, servers: list[FaultyServer], faults: tuple[Fault, ...]
) -> None:
    for server, fault in zip(servers, faults, strict=True):
        scene.play(server)
        server.add_fault(fault, when=_are_of_files)
    scene.load()
    assert [any(map(_are_of_files, server.requests)) for server in servers] == [True] * MAX_PEERS


def test_a_peer_redirects_nowhere(scene: Scene, servers: list[FaultyServer], faulty_server: FaultyServer) -> None:
    for server, status in zip(servers, (301, 302, 303, 307, 308), strict=False):
        scene.play(server)
        only_files = status > 302
        server.add_fault(
            Fault(status=status, headers={"Location": f"{faulty_server.url}/stolen"}),
            when=_are_of_files if only_files else None,
        )
    assert scene.load()["peer_bytes"] == 0
    assert faulty_server.requests == []


def test_a_certificate_of_a_former_authority_is_not_trusted(scene: Scene, tmp_path: Path) -> None:
    former = make_certificate_authority(tmp_path, "former")
    with FaultyServer(tls=former.server_context(SERVER_NAME)) as server:
        scene.play(server)
        assert scene.load()["peer_bytes"] == 0
        assert server.requests == []


def test_listings_that_can_not_be_true_or_are_none_are_no_obstacle(scene: Scene, servers: list[FaultyServer]) -> None:
    manifest = json.loads((scene.entry / ".tonnage" / "manifest.json").read_text())

    def listing(*ranges: Any) -> bytes:
        files = [{"path": each["path"], "size": each["size"], "ranges": ranges} for each in manifest["files"]]
        return json.dumps({"digest": manifest["digest"], "files": files, "pending": files}).encode()

    listings = [
        listing([0, 2**53], [-5, 100]),
        listing([4000, 3], [100, 0], [5 << 20, 1 << 20], [0, 2**53]),
        listing([0, 1 << 20], [5, 1 << 20], [0, 2 << 20]),
        listing(*([at, at + 1] for at in range(0, 2_000_000, 2))),
        listing([0, 1e300]),
        b"[" * 1_000_000,
        b'{"digest":' * 200_000,
        gzip.compress(listing([0, 1 << 20])),
    ]
    for server, content in zip(servers, listings, strict=True):
        scene.play(server)
        server.put(f"{scene.base}/ranges", content)
    scene.load()
    assert all(server.count_requests(key=f"{scene.base}/ranges") for server in servers)


def test_passes_that_can_not_be_any_are_sent_to_no_one(scene: Scene, servers: list[FaultyServer]) -> None:
    answers: list[dict[str, Any]] = [
        {"token": "x\r\nX-Injected: yes"},
        {"token": "pässe"},
        {"token": "x" * 5000},
        {"token": "", "message": "\x1b[31m\u202e" * 500},
        {"token": 7},
        {"token": "x", "expires": "never"},
        {"token": "", "expires": 1e300},
        {"token": "ends.long.ago", "expires": -1e300},
    ]
    for server, answer in zip(servers, answers, strict=True):
        scene.play(server, **answer)
    report = scene.load()
    requests = [request for server in servers for request in server.requests if request.method == "GET"]
    assert {request.headers["authorization"] for request in requests} == {"Bearer ends.long.ago"}
    assert not any("x-injected" in request.headers for request in requests)
    assert report["peer_bytes"] > 0, "the last one is a pass, whose end only peers know"
    assert all(note.isprintable() for note in report["notes"]), report


def test_a_node_that_is_named_twice_is_no_obstacle(scene: Scene, servers: list[FaultyServer]) -> None:
    scene.play(servers[0])
    (found,) = scene.fleet.extra_peers
    dead = Peer(node=found.node, address="127.0.0.1:1")
    scene.fleet.extra_peers = [dead, found, found, dead]
    scene.load()
