"""Simulates the kubelets and loaders of the benchmark's nodes: reports every pod as succeeded, and runs nothing.

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


def _final_report(pod: dict[str, Any]) -> contract.Report:
    """Returns the final report of the pod's loader."""
    if pod["metadata"]["labels"][names.ROLE] != names.ROLE_RESOLVE:
        return contract.Report(outcome=contract.Outcome.LOADED, bytes=2 * objects.GIB, seconds=1.0, verified="crc32")
    source = contract.decode_plan(plain_env(pod["spec"]["containers"][0])["TONNAGE_PLAN"]).sources[0]
    bucket = source.bucket if isinstance(source, contract.S3Source) else ""
    return objects.resolved_report(bucket=bucket)


def _ended(pod: dict[str, Any]) -> dict[str, Any]:
    message = contract.termination_message(_final_report(pod)).decode()
    container = {
        "name": names.LOADER_CONTAINER,
        "image": "loader",
        "imageID": "loader",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}},
    }
    return {"status": {"phase": "Succeeded", "containerStatuses": [container]}}


class FakeKubelets:
    """Reports every pod that has a node as succeeded."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._seen: set[str] = set()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

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
                await self._client.merge_patch(PODS, name, namespace, _ended(pod), subresource="status")


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
