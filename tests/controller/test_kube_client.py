"""The client's connections, against a server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from tonnage_operator.kube.client import KubeClient
from tonnage_operator.kube.credentials import ClientConfig
from tonnage_operator.kube.resources import NODES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[tuple[str, list[web.BaseRequest]]]:
    """Runs a server, an API server or a proxy as it is used. Yields its URL and the requests that it has answered."""
    requests: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        requests.append(request)
        return web.json_response({"metadata": {"name": "n1"}})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", requests
    finally:
        await runner.cleanup()


async def _get_node(host: str, *, proxy: str | None = None) -> None:
    configuration = Configuration(host=host, proxy=proxy)
    async with KubeClient(ClientConfig(configuration), field_manager="test") as client:
        assert await client.get(NODES, "n1") == {"metadata": {"name": "n1"}}


def test_requests_go_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with _server() as (proxy, requests):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            await _get_node("http://api.example:6443")
            assert [request.raw_path for request in requests] == ["http://api.example:6443/api/v1/nodes/n1"]

    asyncio.run(run())


def test_a_proxy_of_the_kubeconfig_comes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with _server() as (proxy, requests):
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
            await _get_node("http://api.example:6443", proxy=proxy)
            assert len(requests) == 1

    asyncio.run(run())


def test_hosts_in_no_proxy_are_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with _server() as (api_server, requests):
            monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
            monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
            await _get_node(api_server)
            assert [request.raw_path for request in requests] == ["/api/v1/nodes/n1"]

    asyncio.run(run())


def test_credentials_of_a_netrc_file_are_not_sent_to_the_api_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password something\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def run() -> None:
        async with _server() as (api_server, requests):
            await _get_node(api_server)
            assert "Authorization" not in requests[0].headers

    asyncio.run(run())
