"""A fleet of nodes for tests: each has a cache, a peer's server (the real nginx) and loads, all as processes.

The controller's part is a report server that answers with the contract's own code: it names the other nodes, and signs
tickets.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from support.ports import free_ports
from support.report_server import ReportServer
from support.tonnage_cli import command_environment
from tonnage.contract import (
    Identity,
    Limits,
    PeerAccess,
    Plan,
    Report,
    S3Source,
    Source,
    Verify,
    encode_plan,
)
from tonnage.contract.peers import NO_PLACE, READ_HEADERS, Grant, Peer, PeersAnswer, Purpose, new_grant, sign_grant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.tls import CertificateAuthority

SERVER_NAME = "tonnage-peer.fleet.svc"
CALLER = "object-uid/default"
START_SECONDS = 30.0


@dataclass
class Node:
    """A node: its name, its caches by medium, and its server if one runs."""

    name: str
    folder: Path
    port: int
    media: dict[str, Path] = field(default_factory=dict)
    server: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Fleet:
    """Nodes with one controller and one CA. Use it as a context manager.

    Attributes:
        nodes: The nodes by name.
        hidden: Names of nodes that the controller does not name.
        headers_digest: What the controller knows of the entry's headers file.
        tasks: What loads do about headers, by the node's name. The digest that a reading one reports is then known.
        grant: Changes the grants that the controller signs.
        share: How many nodes load, by the controller, and the places that it gives by name; none: not known.
        local_stores: Whether the peers send proofs to stores on this machine, as those of the tests are.
        namespace: The namespace that has its entries to itself; empty: all share them.
    """

    def __init__(self, folder: Path, authority: CertificateAuthority) -> None:
        self.folder = folder
        self.nodes: dict[str, Node] = {}
        self.hidden: set[str] = set()
        self.headers_digest = ""
        self.tasks: dict[str, str] = {}
        self.share: tuple[int, dict[str, int]] = 0, {}
        self.local_stores = True
        self.namespace = ""
        self.medium = "memory"
        self.interval = 0.5
        self.caller = CALLER
        self.extra_peers: list[Peer] = []
        self.key = os.urandom(32)
        self.clock_offset = 0.0
        self._authority = authority
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        (self.secrets / "ticket-key").write_bytes(self.key)
        self.new_certificate()
        self.controller = ReportServer(folder)
        self.controller.answer_peers = self._answer
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.controller)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            self.stop(node)
        self._stack.close()

    def new_certificate(self) -> None:
        """Writes a new certificate of the servers."""
        certificate = self._authority.ca.issue_cert(SERVER_NAME)
        (self.secrets / "tls.key").write_bytes(certificate.private_key_pem.bytes())
        (self.secrets / "tls.crt").write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))

    def add(self, name: str, *, serve: bool = True, options: tuple[str, ...] = ()) -> Node:
        """Adds a node, and starts its server."""
        folder = self.folder / name
        media = {medium: folder / medium for medium in ("memory", "disk")}
        for path in media.values():
            path.mkdir(parents=True)
        node = self.nodes[name] = Node(name, folder, free_ports(1)[0], media)
        if serve:
            self.serve(node, *options)
        return node

    def serve(self, node: Node, *options: str) -> None:
        """Starts a node's server, and waits until it accepts connections."""
        run = node.folder / "run"
        run.mkdir(exist_ok=True)
        local = ["--local-stores"] if self.local_stores else []
        arguments = ["--secrets", str(self.secrets), "--port", str(node.port), "--run-dir", str(run), *options]
        for medium, path in node.media.items():
            arguments += ["--media", f"{medium}={path}"]
        node.server = subprocess.Popen(
            [sys.executable, "-m", "tonnage", "peer", "serve", "--address", "127.0.0.1", *local, *arguments],
            env=command_environment({"NO_PROXY": "*"}),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert node.server.stderr is not None
        for line in node.server.stderr:
            if line.startswith("serving"):
                return
        raise AssertionError(f"the server of {node.name} ended with {node.server.wait()}")

    def stop(self, node: Node, *, kill: bool = False) -> None:
        """Stops a node's server, or kills it with its nginx."""
        process, node.server = node.server, None
        if process is None:
            return
        if kill:
            for each in _freeze(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        else:
            process.terminate()
        process.wait(30)
        assert process.stderr is not None
        process.stderr.close()

    def plan(self, source: Source, **options: Any) -> Plan:
        """Returns the plan of a load that asks peers."""
        limits = options.pop("limits", Limits(workers=2, connections=4, part_size=256 << 10))
        return Plan(
            sources=(source,),
            reporting=self.controller.reporting_config(interval=0.5),
            peers=PeerAccess(server_name=SERVER_NAME),
            identity=Identity(namespace=self.namespace or "team", name="model", uid="object-uid", generation=1),
            limits=limits,
            verify=options.pop("verify", Verify.BEST),
            **options,
        )

    @contextlib.contextmanager
    def loading(
        self, node: Node, plan: Plan, environment: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Starts a load on a node."""
        path = node.folder / "plan.json"
        path.write_bytes(encode_plan(plan))
        cache = node.media[self.medium] / self.namespace if self.namespace else node.media[self.medium]
        process = subprocess.Popen(
            [sys.executable, "-m", "tonnage", "load", "--plan", str(path), "--cache", str(cache), "--progress", "off"],
            env=command_environment({"TONNAGE_NODE": node.name, "TONNAGE_STALL_SECONDS": "2", **(environment or {})}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def load(self, node: Node, plan: Plan, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Loads on a node, and returns the report."""
        with self.loading(node, plan, environment) as process:
            return finish(process)

    def model_folder(self, node: Node, report: Mapping[str, Any]) -> Path:
        """Returns the folder with the files of a load."""
        root = node.media[self.medium]
        return root / self.namespace / str(report["entry"]) / "model"

    def sign(self, *, key: str, caller: str = CALLER, medium: str = "memory", purpose: Purpose = Purpose.TICKET) -> str:
        """Returns a ticket, or a pass."""
        return sign_grant(new_grant(medium=medium, key=key, caller=caller, now=time.time()), purpose, self.key)

    def _answer(self, report: Report) -> PeersAnswer:
        key = f"{self.namespace}/{report.entry}" if self.namespace else report.entry
        grant: Grant = new_grant(medium=self.medium, key=key, caller=self.caller, now=time.time() + self.clock_offset)
        peers = [
            Peer(node=node.name, address=node.address)
            for node in self.nodes.values()
            if node.name not in self.hidden and node.name != report.node
        ]
        if self.tasks.get(report.node) == READ_HEADERS:
            self.headers_digest = self.headers_digest or report.headers_digest
        return PeersAnswer(
            peers=(*peers, *self.extra_peers),
            ticket=sign_grant(grant, Purpose.TICKET, self.key),
            headers_digest=self.headers_digest,
            certificates=self._authority.bundle.read_text(),
            interval=self.interval,
            loading=self.share[0],
            place=self.share[1].get(report.node, NO_PLACE),
            headers=self.tasks.get(report.node, ""),
        )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for a load to end, and returns its report."""
    out, err = process.communicate(timeout=90)
    assert out, err
    report: dict[str, Any] = json.loads(out.rstrip("\n").rpartition("\n")[2])
    return report


def source_of(bucket: str, endpoint: str) -> S3Source:
    """Returns the source of a model below ``model/`` in a bucket."""
    return S3Source(bucket=bucket, prefix="model/", endpoint=endpoint, region="us-east-1")


def _freeze(pid: int) -> list[int]:
    """Stops a process and all below it, and returns them. nginx would replace a worker that is killed before itself."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        direct = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [pid, *(each for child in direct for each in _freeze(child))]
    return []
