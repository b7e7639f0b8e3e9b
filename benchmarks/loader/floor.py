"""The floor: the minimal work of a loader, as a lower bound.

One process per core, each with one socket: `recv_into` a buffer of 1 MiB, CRC-32 by isal, `pwrite` into its own file.
No retries, no formats, and of the response only the status is checked.

Usage: floor.py URL SIZE PROCESSES DIRECTORY
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from isal.isal_zlib import crc32, crc32_combine

BUFFER_BYTES = 1 << 20


def fetch(url: str, start: int, end: int, target: Path) -> int:
    """Writes the object's bytes from `start` to `end` (exclusive) to `target`, and returns their CRC-32."""
    parts = urlsplit(url)
    assert parts.hostname
    path = parts.path + ("?" + parts.query if parts.query else "")
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    with (
        socket.create_connection((parts.hostname, parts.port or 80)) as connection,
        target.open("wb", buffering=0) as out,
    ):
        head = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nRange: bytes={start}-{end - 1}\r\n\r\n"
        connection.sendall(head.encode())
        received = connection.recv_into(view)
        while (body := buffer.find(b"\r\n\r\n", 0, received)) < 0:
            received += connection.recv_into(view[received:])
        status = bytes(buffer[9:12])
        if status != b"206":
            raise RuntimeError(f"the server answered {status!r}")
        view_of_body = view[body + 4 : received]
        crc, offset, descriptor = 0, 0, out.fileno()
        while True:
            crc = crc32(view_of_body, crc)
            offset += os.pwrite(descriptor, view_of_body, offset)
            if offset >= end - start:
                return crc
            received = connection.recv_into(view)
            if not received:
                raise RuntimeError("the server closed the connection early")
            view_of_body = view[:received]


def main() -> None:
    url, size, processes, directory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    bounds = [size * number // processes for number in range(processes + 1)]
    children: list[tuple[int, int]] = []
    for number in range(processes):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            crc = fetch(url, bounds[number], bounds[number + 1], directory / f"part-{number:03d}")
            os.write(writer, crc.to_bytes(4, "little"))
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    whole = 0
    for number, (child, reader) in enumerate(children):
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"process {number} failed")
        crc = int.from_bytes(os.read(reader, 4), "little")
        whole = crc32_combine(whole, crc, bounds[number + 1] - bounds[number])
    print(f"{whole:08x}")


if __name__ == "__main__":
    main()
