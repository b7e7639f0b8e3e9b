"""An HTTP/1.1 server on a real socket that serves objects and injects configured faults.

    with FaultyServer() as server:
        server.put("bucket/model.tensors", data)
        server.add_fault(Fault(reset_after=1000), key="bucket/model.tensors", skip=2, times=1)
        … load from server.url …
        assert server.count_requests(method="GET") == 7

It implements as much of S3 as path-style ``s3://`` sources need: HEAD and GET with Range, If-Match, If-Unmodified-Since
and versionId, ListObjectsV2 with continuation, and XML errors. Signatures are recorded but not verified; tests against
SeaweedFS verify them. Each connection has a thread; ``close`` ends all.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from support.faults import (
    EXPIRED_TOKEN,
    NO_FAULT,
    SLOW_DOWN,
    Fault,
    Request,
    Rule,
    StoredObject,
    expired_token,
    slow_down,
)
from support.faulty_responses import S3_LISTING, ListingDialect, Response, StoreSnapshot, blocks, build_response

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = [
    "EXPIRED_TOKEN",
    "SLOW_DOWN",
    "Fault",
    "FaultyServer",
    "Request",
    "StoredObject",
    "expired_token",
    "slow_down",
]

LAST_MODIFIED = "Tue, 01 Jul 2025 12:00:00 GMT"


class _CloseConnection(Exception):
    """Closes the current connection."""


class FaultyServer:
    """The server, running from its creation until ``close``. ``endpoint`` is ``url`` under its S3 name.

    Requests for hosts below ``domain`` are of virtual-hosted style, and are recorded with the bucket in their path.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        page_size: int = 1000,
        listing: ListingDialect = S3_LISTING,
        domain: str = "",
    ) -> None:
        self.listing = listing
        self.domain = domain
        self.requests: list[Request] = []
        self.objects: dict[str, list[StoredObject]] = {}
        self.buckets: set[str] = set()
        self.page_size = page_size
        self.bytes_sent = 0
        self.connections = 0
        self.open_connections = 0
        self.peak_connections = 0
        self._tls = tls
        self._rules: list[Rule] = []
        self._sockets: set[socket.socket] = set()
        self._released = threading.Event()
        self._closed = threading.Event()
        self._changed = threading.Condition()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=512)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="faulty-accept", daemon=True)
        self._threads: list[threading.Thread] = []
        self._acceptor.start()

    # For tests

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else self.host}:{self.port}"

    endpoint = url

    def put(
        self,
        key: str,
        data: Any,
        *,
        etag: str | None = None,
        last_modified: str = LAST_MODIFIED,
        version_id: str = "",
        headers: dict[str, str] | None = None,
    ) -> StoredObject:
        """Stores ``data`` (bytes or any buffer) at ``key``, which is ``bucket/key`` for S3 sources.

        ``etag`` includes the quotes; None: the MD5 of the data; empty: not sent. An empty ``last_modified`` is not
        sent. With a ``version_id``, older versions stay readable by theirs.
        """
        digest = hashlib.md5(memoryview(data), usedforsecurity=False).hexdigest() if etag is None else ""
        stored = StoredObject(
            data=data,
            etag=f'"{digest}"' if etag is None else etag,
            last_modified=last_modified,
            version_id=version_id,
            headers=headers or {},
        )
        with self._changed:
            self.buckets.add(key.partition("/")[0])
            self.objects[key] = [stored, *self.objects.get(key, [])] if version_id else [stored]
        return stored

    def delete(self, key: str) -> None:
        """Removes the object. Its bucket stays."""
        with self._changed:
            del self.objects[key]

    def add_fault(
        self,
        fault: Fault,
        *,
        when: Callable[[Request], bool] | None = None,
        method: str | None = None,
        key: str | None = None,
        skip: int = 0,
        times: int | None = None,
    ) -> Rule:
        """Injects a fault into requests that match all conditions; the first rule that applies wins.

        The first ``skip`` matching requests get a normal response, then ``times`` of them the fault (None: all).
        """
        rule = Rule(fault=fault, when=when, method=method, key=key, skip=skip, times=times)
        with self._changed:
            self._rules.append(rule)
        return rule

    def clear_faults(self) -> None:
        """Removes all faults. Stalled responses stay stalled until ``release_stalled``."""
        with self._changed:
            self._rules.clear()

    def release_stalled(self) -> None:
        """Continues every stalled response; later ones don't stall."""
        self._released.set()

    def find_requests(self, *, method: str | None = None, key: str | None = None) -> list[Request]:
        """Returns the recorded requests, in order of arrival."""
        with self._changed:
            return [
                each
                for each in self.requests
                if (method is None or each.method == method) and (key is None or each.key == key)
            ]

    def count_requests(self, *, method: str | None = None, key: str | None = None) -> int:
        return len(self.find_requests(method=method, key=key))

    def wait_for(self, condition: Callable[[FaultyServer], bool], timeout: float = 20.0) -> None:
        """Waits until ``condition(server)`` is true, evaluated after each request and each sent block.

        Raises:
            TimeoutError: It is still false after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"waited {timeout} s; {len(self.requests)} requests, {self.bytes_sent} bytes sent")

    def wait_for_requests(self, count: int, timeout: float = 20.0, **match: str) -> None:
        """Waits until ``count`` requests with this ``method`` or ``key`` have arrived."""
        self.wait_for(lambda server: server.count_requests(**match) >= count, timeout)

    def wait_for_bytes(self, count: int, timeout: float = 20.0) -> None:
        """Waits until ``count`` bytes of bodies were passed to the kernel."""
        self.wait_for(lambda server: server.bytes_sent >= count, timeout)

    def close(self) -> None:
        """Closes all connections and joins all threads."""
        self._closed.set()
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        with self._changed:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Connections

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                number = self.connections
                self.open_connections += 1
                self.peak_connections = max(self.peak_connections, self.open_connections)
                self._sockets.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket, number: int) -> None:
        connection = plain
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(plain, server_side=True)
                with self._changed:
                    self._sockets.add(connection)
            with connection.makefile("rb") as stream:
                while not self._closed.is_set():
                    request = self._read_request(stream, number)
                    if request is None:
                        break
                    self._respond(connection, request)
        except (OSError, ValueError, _CloseConnection):
            pass
        finally:
            with self._changed:
                self.open_connections -= 1
                self._sockets.discard(plain)
                self._sockets.discard(connection)
            connection.close()
            plain.close()

    def _read_request(self, stream: Any, connection: int) -> Request | None:
        line = stream.readline(65536).decode("latin-1").rstrip("\r\n")
        if not line:
            return None
        method, target, _ = line.split(" ", 2)
        headers: dict[str, str] = {}
        while header := stream.readline(65536).decode("latin-1").rstrip("\r\n"):
            name, _, value = header.partition(":")
            headers[name.strip().lower()] = value.strip()
        path, _, query = target.partition("?")
        host = headers.get("host", "").partition(":")[0]
        if self.domain and host.endswith(f".{self.domain}"):
            path = f"/{host.removesuffix(f'.{self.domain}')}{path}"
        body = stream.read(min(int(headers.get("content-length", "0")), 1 << 20))
        with self._changed:
            request = Request(len(self.requests), connection, method, path, query, headers, time.monotonic(), body)
            self.requests.append(request)
            self._changed.notify_all()
        return request

    def _respond(self, connection: socket.socket, request: Request) -> None:
        with self._changed:
            fault = next((rule.fault for rule in self._rules if rule.consume(request)), NO_FAULT)
        if fault.stall_before:
            self._released.wait()
        if fault.drop_connection or self._closed.is_set():
            raise _CloseConnection
        response = build_response(request, fault, self._snapshot())
        self._send(connection, request, response, fault)
        if fault.close or request.headers.get("connection", "").lower() == "close":
            raise _CloseConnection

    def _snapshot(self) -> StoreSnapshot:
        with self._changed:
            objects = {key: tuple(versions) for key, versions in self.objects.items()}
            return StoreSnapshot(objects, frozenset(self.buckets), self.page_size, self.listing)

    def _send(self, connection: socket.socket, request: Request, response: Response, fault: Fault) -> None:
        head = [f"HTTP/1.1 {response.status} {response.reason}"]
        head += [f"{name}: {value}" for name, value in response.headers.items()]
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        if request.method == "HEAD":
            return
        for block in blocks(memoryview(response.body), fault):
            if block is None:
                self._released.wait()
                if self._closed.is_set():
                    raise _CloseConnection
                continue
            started = time.monotonic()
            connection.sendall(b"%x\r\n" % len(block) + block + b"\r\n" if fault.chunked else block)
            with self._changed:
                self.bytes_sent += len(block)
                self._changed.notify_all()
            if fault.rate is not None and self._closed.wait(started + len(block) / fault.rate - time.monotonic()):
                raise _CloseConnection
        if fault.reset_after is not None:
            _reset(connection)
            raise _CloseConnection
        if fault.close_after is not None:
            raise _CloseConnection
        connection.sendall(fault.extra)
        if fault.chunked:
            connection.sendall(b"0\r\n\r\n")
        if fault.extra and not fault.announce_extra:
            raise _CloseConnection


def _reset(connection: socket.socket) -> None:
    """Has the next close send an RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
