"""Controller and webhook, as processes, with 2,000 connections whose clients stall. No API server answers them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from local_cluster import credentials
from operator_support.control_plane import PYTHONPATH
from operator_support.harness import write_installation
from operator_support.stalled_connections import StalledConnections
from support.ports import free_ports
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(180)
"""Seconds; thousands of connections on a busy machine take more than the default."""

MAX_GROWTH_MIB = {"controller": 144, "webhook": 64}
"""A connection takes 50 KiB. The controller keeps 2,560, as each of 1,000 loaders holds two; the webhook keeps 512."""
REVIEW = json.dumps({
    "request": {
        "uid": "u", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "serving",
        "object": {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }
}).encode()  # fmt: skip


class Process:
    """A running controller or webhook."""

    def __init__(self, command: str, folder: Path) -> None:
        self.port, self.health_port, closed_port = free_ports(3)
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(str(folder / "tls.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
        authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        self.client_context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        url = f"https://127.0.0.1:{closed_port}"
        credentials.write_kubeconfig(folder / "kubeconfig", url=url, ca_file=folder / "ca.crt", token="t")
        installation = write_installation(folder)
        arguments = {
            "config": installation, "kubeconfig": folder / "kubeconfig", "host": "127.0.0.1",
            "port": self.port, "health-port": self.health_port, "tls-cert": folder / "tls.crt",
            "tls-key": folder / "tls.key",
        }  # fmt: skip
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tonnage_operator", command, *(f"--{k}={v}" for k, v in arguments.items())],
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": PYTHONPATH},
            )  # fmt: skip

    def is_healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/healthz", timeout=10) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(f"https://localhost:{self.port}{path}", data=body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.client_context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def memory_mib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) >> 10


@pytest.fixture
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    made = Process(request.param, tmp_path)
    try:
        eventually(made.is_healthy, timeout=60)
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.mark.parametrize("process", ["controller", "webhook"], indirect=True)
def test_stalled_connections_are_closed_while_others_are_served(
    process: Process, request: pytest.FixtureRequest
) -> None:
    command = request.node.callspec.params["process"]
    webhook = command == "webhook"
    path, expected = ("/inject", 200) if webhook else ("/v1/reports", 401)
    assert process.post(path, REVIEW)[0] == expected
    before = process.memory_mib()
    with StalledConnections(process.port, process.client_context, path) as stalled:
        assert process.is_healthy()
        status, answer = process.post(path, REVIEW)
        assert status == expected
        assert not webhook or json.loads(answer)["response"]["allowed"]
        assert process.memory_mib() - before <= MAX_GROWTH_MIB[command]
        asyncio.run_coroutine_threadsafe(stalled.wait_until_all_are_closed(), stalled.loop).result(60)
        assert process.memory_mib() - before <= MAX_GROWTH_MIB[command]
    assert process.post(path, REVIEW)[0] == expected


@pytest.mark.parametrize("process", ["webhook"], indirect=True)
def test_the_health_endpoint_survives_stalled_connections_of_its_own(process: Process) -> None:
    with StalledConnections(process.health_port, None, "/healthz") as stalled:
        assert process.is_healthy()
        asyncio.run_coroutine_threadsafe(stalled.wait_until_all_are_closed(), stalled.loop).result(60)
    assert process.is_healthy()
