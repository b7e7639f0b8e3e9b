"""A static file server that is fast enough for a loader if nginx isn't installed: GET and HEAD with `os.sendfile`.

It responds like a path-style S3 server: `/bucket/key` with one `Range`, `If-Match`, a strong ETag, and keep-alive.
All threads of all processes wait in `accept` on one socket, so the kernel distributes connections, and the data never
enters Python. Each request is logged with the time when it was read, in the format that `servers.py` parses.

Usage: sendfile_server.py ROOT PORT PROCESSES LOG
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

THREADS = 16
"""Connections that one process serves at a time; others wait in the backlog."""

SEND_BYTES = 8 << 20
"""Maximum bytes per system call."""


def parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Returns method, path without its query, and the headers by lower-case name."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return method, target.partition("?")[0], {name.strip().lower(): value.strip() for name, value in pairs}


def byte_range(value: str, size: int) -> tuple[int, int] | None:
    """Returns start and exclusive end of a `Range` header's one range; None if it can't be satisfied."""
    first, _, last = value.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None


def stated_lines(file: Path) -> list[str]:
    """Returns the header lines that a file beside this one has, such as its checksum."""
    stated = file.with_name(f"{file.name}.headers")
    return stated.read_text().splitlines() if stated.exists() else []


def respond(connection: socket.socket, root: Path, method: str, path: str, headers: dict[str, str]) -> int:
    """Responds to one request and returns the status."""
    file = (root / path.lstrip("/")).resolve()
    if method not in {"GET", "HEAD"} or not file.is_relative_to(root) or not file.is_file():
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return 404
    with file.open("rb") as stream:
        info = os.fstat(stream.fileno())
        etag = f'"{info.st_mtime_ns:x}-{info.st_size:x}"'
        if headers.get("if-match", etag) != etag:
            connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
            return 412
        status, span = 200, (0, info.st_size)
        if "range" in headers:
            wanted = byte_range(headers["range"], info.st_size)
            if wanted is None:
                connection.sendall(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n")
                return 416
            status, span = 206, wanted
        start, end = span
        lines = [
            f"HTTP/1.1 {status} {'Partial Content' if status == 206 else 'OK'}",
            f"Content-Length: {end - start}",
            f"ETag: {etag}",
            f"Last-Modified: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(info.st_mtime))}",
            "Accept-Ranges: bytes",
            "Content-Type: application/octet-stream",
            *stated_lines(file),
        ]
        if status == 206:
            lines.append(f"Content-Range: bytes {start}-{end - 1}/{info.st_size}")
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while method == "GET" and start < end:
            start += os.sendfile(connection.fileno(), stream.fileno(), start, min(SEND_BYTES, end - start))
        return status


def serve(listener: socket.socket, root: Path, log: int) -> None:
    """Accepts one connection at a time, and responds to its requests until it is closed."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffer = b""
            while data := connection.recv(65536):
                buffer += data
                while b"\r\n\r\n" in buffer:
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    began = time.time()
                    method, path, headers = parse_head(head)
                    status = respond(connection, root, method, path, headers)
                    span = headers.get("range", "-").removeprefix("bytes=")
                    os.write(log, f"{began:.4f} {method} {status} {span} {path}\n".encode())


def main() -> None:
    root, port, processes, log_path = Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            for _ in range(THREADS):
                threading.Thread(target=serve, args=(listener, root, log), daemon=True).start()
            signal.pause()
        children.append(child)

    def stop(_signal: int, _frame: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.pause()


if __name__ == "__main__":
    main()
