"""Sends the reports of all load pods that run, as their loaders would, and measures how fast they are answered.

PYTHONPATH=operator:loader:tests:hack python benchmarks/operator/fake_loaders.py KUBECONFIG NAMESPACE PORT CA SECONDS

Each loader has its pod's token, an address of its own and two connections with TLS that stay open: on one it reports
progress every 2 seconds, on the other it asks for peers every 5. The first 15 seconds, in which all connect, don't
count. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import ssl
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tonnage import contract
from tonnage.contract.peers import decode_peers_answer
from tonnage_operator.api import names
from tonnage_operator.kube.client import KubeClient
from tonnage_operator.kube.credentials import from_kubeconfig
from tonnage_operator.kube.resources import PODS, Resource

_INTERVALS = {contract.ReportKind.PROGRESS: 2.0, contract.ReportKind.PEERS: 5.0}
_CONNECT_SECONDS = 15.0
"""Seconds in which all loaders connect."""
_DELAY_SECONDS = 0.05
_TOTAL_BYTES = 140 << 30
_TOKENS = Resource("", "v1", "serviceaccounts/default/token", "TokenRequest")


@dataclass
class Measured:
    """Seconds until answers, by kind of report, and what went wrong."""

    since: float
    """Monotonic time of the first report that counts."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    peers: list[int] = field(default_factory=list)
    """Numbers of peers in the last answers of loaders."""
    connections: int = 0


def _percentile(values: list[float], rank: int) -> float:
    return sorted(values)[max(0, math.ceil(len(values) * rank / 100) - 1)]


async def _token(client: KubeClient, pod: dict[str, Any]) -> str:
    bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [names.TOKEN_AUDIENCE], "boundObjectRef": bound, "expirationSeconds": 3600},
    }
    answer = await client.create(_TOKENS, body, pod["metadata"]["namespace"])
    return str(answer["status"]["token"])


def _report(pod: dict[str, Any], kind: contract.ReportKind, share: float) -> bytes:
    metadata = pod["metadata"]
    uid = metadata["labels"][names.MODEL_UID]
    progress = contract.Progress(phase="loading", loaded_bytes=round(share * _TOTAL_BYTES), total_bytes=_TOTAL_BYTES)
    return contract.encode_report(
        contract.Report(
            kind=kind,
            entry=_entry(pod),
            identity=contract.Identity(namespace=metadata["namespace"], name="m", uid=uid, generation=1),
            progress=progress if kind is contract.ReportKind.PROGRESS else None,
        )
    )


def _entry(pod: dict[str, Any]) -> str:
    env = {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0]["env"]}
    return contract.decode_plan(env["TONNAGE_PLAN"].replace("$$", "$")).entry


class _Connection:
    """One connection of a loader to the controller, which stays open, as libcurl's does."""

    def __init__(self, port: int, context: ssl.SSLContext, address: str, token: str) -> None:
        self._port, self._context, self._address = port, context, address
        head = ("POST /v1/reports HTTP/1.1", f"Host: localhost:{port}", f"Authorization: Bearer {token}")
        self._head = "\r\n".join((*head, "Content-Type: application/json", "Content-Length: ")).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Returns the answer's status and body; status 0: the connection could not be opened, or was closed."""
        try:
            if self._streams is None or self._streams[0].at_eof():
                await self._open()
            return await self._post(body)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""

    async def _open(self) -> None:
        self.close()
        self.opened += 1
        self._streams = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost", local_addr=(self._address, 0)
        )

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1]) if length else 0)

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()
        self._streams = None


async def _send_all(
    connection: _Connection, pod: dict[str, Any], kind: contract.ReportKind, deadline: float, measured: Measured
) -> None:
    """Sends the reports of one kind, each in its interval, until the deadline."""
    interval, started = _INTERVALS[kind], time.monotonic()
    due, peers = started + random.random() * _CONNECT_SECONDS, 0
    while due <= deadline:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        sent = time.monotonic()
        status, body = await connection.post(_report(pod, kind, (sent - started) / (deadline - started)))
        ended = time.monotonic()
        if sent >= measured.since:
            measured.seconds[kind.value].append(ended - sent)
        measured.statuses[f"{kind.value} {status}"] += 1
        if kind is contract.ReportKind.PEERS and status == 200:
            peers = len(decode_peers_answer(body).peers)
        due = max(due + interval, ended)
    if kind is contract.ReportKind.PEERS:
        measured.peers.append(peers)
    measured.connections += connection.opened
    connection.close()


async def _measure_delays(measured: Measured) -> None:
    """Measures by how much this process is late itself, which the times of answers contain."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(_DELAY_SECONDS)
        measured.seconds["(delays of the measuring process)"].append(time.monotonic() - before - _DELAY_SECONDS)


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    gate = asyncio.Semaphore(32)
    async with KubeClient(await from_kubeconfig(str(options.kubeconfig)), field_manager="loaders") as client:
        selector = f"{names.ROLE}={names.ROLE_LOAD}"
        pods, _ = await client.list(PODS, namespace=options.namespace, label_selector=selector)
        pods = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]

        async def find_token(pod: dict[str, Any]) -> str:
            async with gate:
                return await _token(client, pod)

        tokens = await asyncio.gather(*map(find_token, pods))
    context = ssl.create_default_context(cafile=str(options.ca))
    measured = Measured(since=time.monotonic() + _CONNECT_SECONDS)
    deadline = measured.since + options.seconds
    async with asyncio.TaskGroup() as group:
        delays = group.create_task(_measure_delays(measured))
        senders = []
        for number, (pod, token) in enumerate(zip(pods, tokens, strict=True)):
            for kind in _INTERVALS:
                connection = _Connection(options.port, context, f"127.1.{number >> 8}.{number & 255}", token)
                senders.append(group.create_task(_send_all(connection, pod, kind, deadline, measured)))
        await asyncio.wait(senders)
        delays.cancel()
    return {
        "loaders": len(pods),
        "connections_opened": measured.connections,
        "answers": dict(measured.statuses),
        "milliseconds": {
            kind: {f"p{rank}": round(1000 * _percentile(values, rank), 1) for rank in (50, 90, 99, 100)}
            for kind, values in measured.seconds.items()
        },
        "peers_named": {"least": min(measured.peers, default=0), "most": max(measured.peers, default=0)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("namespace")
    parser.add_argument("port", type=int)
    parser.add_argument("ca", type=Path)
    parser.add_argument("seconds", type=float)
    print(json.dumps(asyncio.run(_run(parser.parse_args()))))


if __name__ == "__main__":
    main()
