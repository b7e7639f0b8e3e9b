"""Simulates the kubelets of the benchmark's nodes: peers are ready, loaders end at once, and nothing runs.

Loaders of the bucket ``held`` stay: ``fake_loaders.py`` sends their reports.

PYTHONPATH=operator:loader:tests:hack python benchmarks/operator/fake_kubelets.py KUBECONFIG
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path
from typing import Any

from operator_support import objects
from operator_support.injection import plain_env
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.kube.client import ApiError, KubeClient
from tonnage_operator.kube.credentials import from_kubeconfig
from tonnage_operator.kube.resources import PODS

_CONCURRENCY = 16
_HELD_BUCKET = "held"
"""The bucket of the model whose loaders keep running."""


def _final_report(pod: dict[str, Any]) -> contract.Report:
    """Returns the final report of the pod's loader."""
    if pod["metadata"]["labels"][names.ROLE] != names.ROLE_RESOLVE:
        return contract.Report(outcome=contract.Outcome.LOADED, bytes=2 * objects.GIB, seconds=1.0, verified="crc32")
    return objects.resolved_report(bucket=_bucket(pod))


def _status(pod: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns the status of a pod that has started: a peer or a held loader runs, all others have ended."""
    role = pod["metadata"]["labels"][names.ROLE]
    if role == names.ROLE_PEER:
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        ready = [{"type": "Ready", "status": "True"}]
        return {"status": {"phase": "Running", "podIP": address, "hostIP": address, "conditions": ready}}
    if role == names.ROLE_LOAD and _bucket(pod) == _HELD_BUCKET:
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        return {"status": {"phase": "Running", "containerStatuses": [_container(state, ready=True)]}}
    return _ended(pod)


def _bucket(pod: dict[str, Any]) -> str:
    source = contract.decode_plan(plain_env(pod["spec"]["containers"][0])["TONNAGE_PLAN"]).sources[0]
    return source.bucket if isinstance(source, contract.S3Source) else ""


def _container(state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    return {
        "name": names.LOADER_CONTAINER,
        "image": "loader",
        "imageID": "loader",
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        "state": state,
    }


def _ended(pod: dict[str, Any]) -> dict[str, Any]:
    message = contract.termination_message(_final_report(pod)).decode()
    container = _container({"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}, ready=False)
    return {"status": {"phase": "Succeeded", "containerStatuses": [container]}}


class FakeKubelets:
    """Sets the status of every pod that has a node."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._seen: set[str] = set()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._started = 0

    async def run(self) -> None:
        """Runs until canceled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_CONCURRENCY):
                group.create_task(self._run_worker())
            while True:
                with contextlib.suppress(ApiError):
                    await self._watch()

    async def _watch(self) -> None:
        items, version = await self._client.list(PODS, label_selector=names.ROLE)
        for pod in items:
            self._enqueue(pod)
        async for kind, pod in self._client.watch(PODS, version, label_selector=names.ROLE):
            if kind == "DELETED":
                self._seen.discard(pod["metadata"]["uid"])
            elif kind != "BOOKMARK":
                self._enqueue(pod)

    def _enqueue(self, pod: dict[str, Any]) -> None:
        uid, phase = pod["metadata"]["uid"], pod.get("status", {}).get("phase")
        if pod["spec"].get("nodeName") and uid not in self._seen and phase == "Pending":
            self._seen.add(uid)
            self._queue.put_nowait(pod)

    async def _run_worker(self) -> None:
        while True:
            pod = await self._queue.get()
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            with contextlib.suppress(ApiError):
                self._started += 1
                status = _status(pod, self._started)
                await self._client.merge_patch(PODS, name, namespace, status, subresource="status")


async def _run(kubeconfig: Path) -> None:
    async with KubeClient(await from_kubeconfig(str(kubeconfig)), field_manager="kubelet") as client:
        await FakeKubelets(client).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kubeconfig", type=Path)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args().kubeconfig))


if __name__ == "__main__":
    main()
