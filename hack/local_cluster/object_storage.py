"""An S3 server for the cluster: SeaweedFS, behind a proxy that notes each request.

Both run on the node's machine, so pods and this machine reach it at the same URL.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_cluster import network
from local_cluster.credentials import write_private
from local_cluster.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local_cluster.process import Process

REGION = "us-east-1"
SERVER = "seaweedfs"
PROXY = "logging-proxy"
_BEHIND = 18333
_START_TIMEOUT = 60.0


@dataclass(frozen=True)
class S3Identity:
    """One user of the server. ``stranger`` is a valid one without any permission."""

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...]

    def __repr__(self) -> str:
        return f"S3Identity({self.name!r})"


@dataclass(frozen=True)
class S3Request:
    """One request as it was answered. ``bytes`` counts the body that was sent; ``path`` is decoded, with its slash."""

    method: str
    path: str
    status: int
    bytes: int


@dataclass
class ObjectStorage:
    """The cluster's S3 server, path style, SigV4, on the node's ``address``."""

    folder: Path
    address: str
    server: Process
    proxy: Process
    region: str = REGION

    @property
    def endpoint(self) -> str:
        """Its URL, for pods and for this machine."""
        return f"http://{self.address}:{network.S3_PORT}"

    @property
    def access_key(self) -> str:
        """The access key of the user who may do everything."""
        return self.identity("admin").access_key

    @property
    def secret_key(self) -> str:
        """The secret key of the user who may do everything."""
        return self.identity("admin").secret_key

    def identity(self, name: str) -> S3Identity:
        """Returns a user: ``admin``, ``reader`` (reads all objects, lists all buckets) or ``stranger`` (nothing)."""
        for each in json.loads((self.folder / "s3.json").read_text())["identities"]:
            if each["name"] == name:
                (keys,) = each["credentials"]
                return S3Identity(name, keys["accessKey"], keys["secretKey"], tuple(each["actions"]))
        raise KeyError(name)

    def requests(self) -> list[S3Request]:
        """Returns all requests that were answered since the cluster's start, the oldest first."""
        return list(self._requests())

    def gets(self, bucket: str, key: str) -> int:
        """Returns how many GETs of an object (of parts, too) were answered with its bytes."""
        return sum(1 for _ in self._served(bucket, key))

    def bytes_served(self, bucket: str, key: str) -> int:
        """Returns how many bytes of an object were sent in answer to GETs."""
        return sum(request.bytes for request in self._served(bucket, key))

    def stop(self) -> None:
        """Takes the server down: connections are refused. Its objects stay."""
        self.proxy.stop()
        self.server.kill()

    def start(self) -> None:
        """Brings the server up; returns when it answers.

        Raises:
            StartFailed: It did not within 60 seconds.
        """
        if not self.server.runs:
            self.server.start()
        if not self.proxy.runs:
            self.proxy.start()

    def await_ready(self) -> None:
        """Returns when the server answers.

        Raises:
            StartFailed: It ended, or did not answer within 60 seconds.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            for process in (self.server, self.proxy):
                if not process.runs or time.monotonic() > deadline:
                    raise StartFailed(f"The S3 server does not answer; the log of {process.name}:\n{process.tail()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Whether an unsigned request is refused by the server itself, which means that it knows its users."""
        try:
            with socket.create_connection((self.address, network.S3_PORT), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\nHost: s3\r\n\r\n")
                status = connection.recv(64).split(b" ")
        except OSError:
            return False
        return len(status) > 1 and status[1] == b"403"

    def _served(self, bucket: str, key: str) -> Iterator[S3Request]:
        path = f"/{bucket}/{key}"
        return (
            request
            for request in self._requests()
            if request.method == "GET" and request.path == path and request.status in {200, 206}
        )

    def _requests(self) -> Iterator[S3Request]:
        file = request_log(self.folder)
        if file.exists():
            for line in file.read_text().splitlines():
                fields: dict[str, Any] = json.loads(line)
                yield S3Request(fields["method"], fields["path"], fields["status"], fields["bytes"])


def request_log(folder: Path) -> Path:
    """Returns the file where the proxy notes requests, one JSON object a line."""
    return folder / "requests.jsonl"


def write_files(folder: Path) -> None:
    """Makes the server's folder and users with new keys."""
    (folder / "data").mkdir(parents=True)
    users = {
        "admin": ["Admin", "Read", "Write", "List", "Tagging"],
        "reader": ["Read", "List"],
        "stranger": [],
    }
    identities = [{"name": name, "credentials": [_keys(name)], "actions": actions} for name, actions in users.items()]
    write_private(folder / "s3.json", json.dumps({"identities": identities}))


def commands(folder: Path, address: str) -> dict[str, list[str]]:
    """Returns the arguments of each program, by its name."""
    ports = {"master": 19333, "volume": 18080, "filer": 18888}
    listening = [f"-{name}.port={port}" for name, port in ports.items()]
    listening += [f"-{name}.port.grpc={port + 10000}" for name, port in ports.items()]
    server = [
        "-logtostderr=true",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder / 'data'}",
        *listening,
        "-filer",
        "-filer.localSocket=/run/seaweedfs-filer.sock",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        "-volume.minFreeSpace=1MiB",
        "-volume.preStopSeconds=0",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.port={_BEHIND}",
        f"-s3.port.grpc={_BEHIND + 10000}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.localSocket=/run/seaweedfs-s3.sock",
    ]
    listen = f"{address}:{network.S3_PORT}"
    return {
        SERVER: server,
        PROXY: [listen, f"http://127.0.0.1:{_BEHIND}", str(request_log(folder))],
    }


def _keys(name: str) -> dict[str, str]:
    return {
        "accessKey": f"TONNAGE{name.upper()}",
        "secretKey": secrets.token_urlsafe(24),
    }
