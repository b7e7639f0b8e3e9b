"""Thousands of connections whose clients send nothing, half a head, or half a body."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import TYPE_CHECKING

from operator_support.background_thread import EventLoopThread

if TYPE_CHECKING:
    import ssl

COUNT = 2000
_ADDRESSES = 40
_AT_A_TIME = 50


class StalledConnections(EventLoopThread):
    """Connections from 40 addresses of loopback. The ``with`` block begins when all have been opened."""

    def __init__(self, port: int, context: ssl.SSLContext | None, path: str, *, count: int = COUNT) -> None:
        super().__init__()
        self._port, self._context, self._count = port, context, count
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
        self._sent = (b"", head, head + b"Content-Length: 5000\r\n\r\nhalf")
        self._streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def main(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * self._count + 1000), hard))
        limit = asyncio.Semaphore(_AT_A_TIME)
        await asyncio.gather(*(self._open(number, limit) for number in range(self._count)))
        self._stopping = asyncio.Event()
        self.started.set()
        await self._stopping.wait()
        for _, writer in self._streams:
            writer.transport.abort()

    def request_stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stopping.set)

    def start(self) -> None:
        self._thread.start()
        assert self.started.wait(120)
        self.raise_error()

    async def wait_until_all_are_closed(self) -> None:
        """Returns when the server has closed every connection."""
        await asyncio.gather(*(_read_to_the_end(reader) for reader, _ in self._streams))

    async def _open(self, number: int, limit: asyncio.Semaphore) -> None:
        """Opens one connection. Every second one does the handshake, if the server has TLS."""
        context = self._context if number % 2 else None
        async with limit:
            # The server may close it before it is open.
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, ssl=context, server_hostname="localhost" if context else None,
                    local_addr=(f"127.0.3.{number % _ADDRESSES + 1}", 0),
                )  # fmt: skip
                self._streams.append((reader, writer))
                if context or not self._context:
                    writer.write(self._sent[number % len(self._sent)])
                    await writer.drain()


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1024):
            pass
