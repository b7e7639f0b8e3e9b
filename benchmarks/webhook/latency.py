"""Measures the webhook's latency at a constant rate, by the client and by the webhook's histogram.

    make bench-webhook BENCH_ARGS='--rate 50 --seconds 30'
    make bench-webhook BENCH_ARGS='--stalled 2000'

Reviews are posted directly to the webhook, so that the API server's time isn't included. The webhook reads each object
from a real API server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from operator_support import objects
from operator_support.control_plane import ControlPlane, find_programs
from operator_support.harness import OperatorHarness, admin_client_config, make_installation
from operator_support.stalled_connections import StalledConnections
from operator_support.webhook_thread import WebhookThread
from support.repository import ROOT
from tonnage_operator.api import names
from tonnage_operator.api.status import SeenRevision
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed.model_weights import parse_model_weights


def _review(namespace: str) -> bytes:
    pod = {
        "metadata": {"generateName": "p-", "annotations": {names.MODEL: "llama"}},
        "spec": {"containers": [{"name": "server", "image": "vllm"}]},
    }
    request = {"uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": namespace, "object": pod}
    return json.dumps({"request": request}).encode()


async def _post_reviews(webhook: WebhookThread, namespace: str, rate: float, seconds: float) -> list[float]:
    context = ssl.create_default_context()
    webhook.ca.configure_trust(context)
    times: list[float] = []
    body = _review(namespace)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def once() -> None:
            started = time.perf_counter()
            async with session.post(webhook.url + "/inject", data=body) as answer:
                assert (await answer.json())["response"]["allowed"]
            times.append(time.perf_counter() - started)

        tasks = []
        begun = time.perf_counter()
        for index in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + index / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(once()))
        await asyncio.gather(*tasks)
    return sorted(times)


def _fraction_within(webhook: WebhookThread, bound: float) -> float:
    counts: dict[float, float] = {}
    for metric in webhook.app.metrics.admission_seconds.collect():
        for sample in metric.samples:
            if sample.name.endswith("_bucket"):
                counts[float(sample.labels["le"])] = sample.value
    return counts[bound] / counts[float("inf")]


def _stall(webhook: WebhookThread, count: int) -> contextlib.AbstractContextManager[object]:
    if not count:
        return contextlib.nullcontext()
    context = ssl.create_default_context()
    webhook.ca.configure_trust(context)
    return StalledConnections(webhook.app.port, context, "/inject", count=count)


def run(rate: float, seconds: float, stalled: int) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    with tempfile.TemporaryDirectory() as folder:
        control_plane = ControlPlane(Path(folder), find_programs())
        try:
            control_plane.start()
            control_plane.install_crds(ROOT / "crds")
            control_plane.kubectl("create", "namespace", "bench")
            fleet = OperatorHarness(control_plane, "bench")
            body = fleet.create({"placement": {"prewarm": "None"}})
            resolved = parse_resolve_report(
                objects.resolved_report(bucket="bench", count=30), parse_model_weights(body), now="2026-01-01T00:00:00Z"
            )
            if not isinstance(resolved, SeenRevision):
                raise SystemExit(f"The report was rejected: {resolved}")
            body["status"] = {"resolved": resolved.model_dump(mode="json", by_alias=True, exclude_none=True)}
            control_plane.request("PUT", fleet.object_path() + "/status", body)
            with WebhookThread(admin_client_config(control_plane), make_installation(), Path(folder)) as webhook:
                with _stall(webhook, stalled):
                    times = asyncio.run(_post_reviews(webhook, "bench", rate, seconds))
                share = _fraction_within(webhook, 0.02)
        finally:
            control_plane.stop()
    return {
        "rate": rate,
        "stalled_connections": stalled,
        "reviews": len(times),
        "client_ms": {f"p{part}": round(times[int(len(times) * part / 100)] * 1000, 1) for part in (50, 90, 99)},
        "share_within_20_ms_inside_the_server": round(share, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=50, help="reviews per second")
    parser.add_argument("--seconds", type=float, default=30, help="duration")
    parser.add_argument("--stalled", type=int, default=0, help="connections that stall, opened before")
    options = parser.parse_args()
    print(json.dumps(run(options.rate, options.seconds, options.stalled)))


if __name__ == "__main__":
    main()
