"""A TCP proxy on loopback that stops forwarding on demand, as a cut network does: nothing is closed."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Self

CHUNK = 16 << 10


class StallingProxy:
    """Forwards connections to an address. Use it as a context manager.

    Args:
        address: Host and port to forward to.
        limit: Bytes that it forwards to clients before it stalls; None: it never does.
    """

    def __init__(self, address: str, *, limit: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._left = limit
        self._server = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._stop, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="stalling-proxy")
        self.stalled = threading.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopped:
                    return
                if key.fileobj is self._server:
                    self._accept()
                elif key.fileobj.fileno() >= 0:  # type: ignore[union-attr]  # else its other side has closed it meanwhile
                    self._forward(key)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        target = socket.create_connection(self._target)
        self._selector.register(client, selectors.EVENT_READ, (target, False))
        self._selector.register(target, selectors.EVENT_READ, (client, True))

    def _forward(self, key: selectors.SelectorKey) -> None:
        source: socket.socket = key.fileobj  # type: ignore[assignment]
        other, to_client = key.data
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(CHUNK)
        if to_client and self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.stalled.set()
                self._selector.unregister(source)  # and nothing is closed
                return
        try:
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (source, other):
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(each)
                each.close()
