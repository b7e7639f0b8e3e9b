"""Sends the reports of all load pods that run, as their loaders would, and measures how fast they are answered.

PYTHONPATH=operator:loader:tests:hack python benchmarks/operator/fake_loaders.py KUBECONFIG NAMESPACE PORT SECONDS

Each loader has its pod's token, reports progress every 2 seconds, and asks for peers every 5. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tonnage import contract
from tonnage.contract.peers import decode_peers_answer
from tonnage_operator.api import names
from tonnage_operator.kube.client import KubeClient
from tonnage_operator.kube.credentials import from_kubeconfig
from tonnage_operator.kube.resources import PODS, Resource

_PROGRESS_SECONDS = 2.0
_PEERS_SECONDS = 5.0
_TOTAL_BYTES = 140 << 30
_TOKENS = Resource("", "v1", "serviceaccounts/default/token", "TokenRequest")


@dataclass
class Measured:
    """Seconds until answers, by kind of report, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    peers: list[int] = field(default_factory=list)
    """Numbers of peers in the last answers of loaders."""


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


async def _run_loader(
    session: aiohttp.ClientSession, url: str, pod: dict[str, Any], token: str, deadline: float, measured: Measured
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    started, found = time.monotonic(), 0
    due = {
        contract.ReportKind.PROGRESS: started + random.random() * _PROGRESS_SECONDS,
        contract.ReportKind.PEERS: started + random.random() * _PEERS_SECONDS,
    }
    intervals = {contract.ReportKind.PROGRESS: _PROGRESS_SECONDS, contract.ReportKind.PEERS: _PEERS_SECONDS}
    while True:
        kind = min(due, key=due.__getitem__)
        if due[kind] > deadline:
            break
        await asyncio.sleep(max(0.0, due[kind] - time.monotonic()))
        share = min(1.0, (time.monotonic() - started) / (deadline - started))
        sent = time.monotonic()
        async with session.post(url, data=_report(pod, kind, share), headers=headers) as response:
            body = await response.read()
        measured.seconds[kind.value].append(time.monotonic() - sent)
        measured.statuses[f"{kind.value} {response.status}"] += 1
        if kind is contract.ReportKind.PEERS and response.status == 200:
            found = len(decode_peers_answer(body).peers)
        due[kind] = max(due[kind] + intervals[kind], time.monotonic())
    measured.peers.append(found)


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    measured, gate = Measured(), asyncio.Semaphore(32)
    async with KubeClient(await from_kubeconfig(str(options.kubeconfig)), field_manager="loaders") as client:
        selector = f"{names.ROLE}={names.ROLE_LOAD}"
        pods, _ = await client.list(PODS, namespace=options.namespace, label_selector=selector)
        pods = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]

        async def token(pod: dict[str, Any]) -> str:
            async with gate:
                return await _token(client, pod)

        tokens = await asyncio.gather(*map(token, pods))
    url = f"http://127.0.0.1:{options.port}/v1/reports"
    deadline = time.monotonic() + options.seconds
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
        loaders = (
            _run_loader(session, url, pod, token, deadline, measured) for pod, token in zip(pods, tokens, strict=True)
        )
        await asyncio.gather(*loaders)
    return {
        "loaders": len(pods),
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
    parser.add_argument("seconds", type=float)
    print(json.dumps(asyncio.run(_run(parser.parse_args()))))


if __name__ == "__main__":
    main()
