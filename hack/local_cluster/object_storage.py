"""The cluster's S3 server: SeaweedFS behind a proxy that logs each request and can hold requests back.

Both run on the node, so pods and this machine use the same URL.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_cluster import network, seaweed
from local_cluster.credentials import write_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local_cluster.process import Process

REGION = "us-east-1"
SERVER = "seaweedfs"
PROXY = "logging-proxy"
_BACKEND_PORT = 18333
_READY_BUCKET = "tonnage-ready"


@dataclass(frozen=True)
class S3User:
    """One user of the server. ``stranger`` is a valid user without permissions."""

    name: str
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"S3User({self.name!r})"


@dataclass(frozen=True)
class S3Request:
    """One request and its response. ``bytes`` counts the response's body; ``path`` is decoded, with its slash."""

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
        """The URL, for pods and for this machine."""
        return f"http://{self.address}:{network.S3_PORT}"

    @property
    def access_key(self) -> str:
        """The access key of ``admin``, which has all permissions."""
        return self.user("admin").access_key

    @property
    def secret_key(self) -> str:
        """The secret key of ``admin``, which has all permissions."""
        return self.user("admin").secret_key

    def user(self, name: str) -> S3User:
        """Returns a user: ``admin``, ``reader`` (reads all objects, lists all buckets) or ``stranger`` (nothing)."""
        for each in json.loads((self.folder / "s3.json").read_text())["identities"]:
            if each["name"] == name:
                (keys,) = each["credentials"]
                return S3User(name, keys["accessKey"], keys["secretKey"])
        raise KeyError(name)

    def requests(self) -> list[S3Request]:
        """Returns all answered requests since the cluster's start, oldest first, without those of readiness probes."""
        return list(self._requests())

    def gets(self, bucket: str, key: str) -> int:
        """Returns the number of successful GETs of an object, including range requests."""
        return sum(1 for _ in self._served_gets(bucket, key))

    def bytes_served(self, bucket: str, key: str) -> int:
        """Returns the number of bytes of an object that were sent in responses to GETs."""
        return sum(request.bytes for request in self._served_gets(bucket, key))

    @contextlib.contextmanager
    def hold(self, bucket: str, key: str, *, start: int) -> Iterator[None]:
        """Holds GETs of an object's bytes from ``start`` on back, until the block ends. Earlier bytes are served."""
        file = _holds(self.folder) / f"/{bucket}/{key}".encode().hex()
        file.write_text(str(start))
        try:
            yield
        finally:
            file.unlink()

    def stop(self) -> None:
        """Stops the server: connections are refused. Its objects stay."""
        self.proxy.stop()
        self.server.kill()

    def start(self) -> None:
        """Starts the server, and returns when it is ready.

        Raises:
            StartFailed: It was not ready within 60 seconds.
        """
        for process in (self.server, self.proxy):
            if not process.is_running:
                process.start()
        self.proxy.wait_until_ready()

    def client(self, name: str = "admin") -> Any:  # noqa: ANN401 - botocore generates the type
        """Returns a botocore client of a user. It doesn't retry, so that tests see every failure."""
        from botocore.config import Config
        from botocore.session import Session

        user = self.user(name)
        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=5,
                proxies={},
            ),
        )

    def is_ready(self) -> bool:
        """Whether the server accepts an object, which it does shortly after it accepts connections."""
        from botocore.exceptions import BotoCoreError, ClientError

        if not self._listens():
            return False
        client, key = self.client(), {"Bucket": _READY_BUCKET, "Key": "ready"}
        try:
            with contextlib.suppress(ClientError):  # an earlier probe may have created it
                client.create_bucket(Bucket=_READY_BUCKET)
            client.put_object(**key, Body=b"ready")
            client.delete_object(**key)
            client.delete_bucket(Bucket=_READY_BUCKET)
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def _listens(self) -> bool:
        try:
            with socket.create_connection((self.address, network.S3_PORT), timeout=5):
                return True
        except OSError:
            return False

    def _served_gets(self, bucket: str, key: str) -> Iterator[S3Request]:
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
                if fields["path"].split("/")[1] == _READY_BUCKET:
                    continue
                yield S3Request(fields["method"], fields["path"], fields["status"], fields["bytes"])


def request_log(folder: Path) -> Path:
    """Returns the proxy's log of requests, one JSON object per line."""
    return folder / "requests.jsonl"


def _holds(folder: Path) -> Path:
    return folder / "holds"


def write_files(folder: Path) -> None:
    """Creates the server's folder, and its users with new keys."""
    (folder / "data").mkdir(parents=True)
    _holds(folder).mkdir()
    users = {"admin": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read", "List"], "stranger": []}
    identities = [{"name": name, "credentials": [_keys(name)], "actions": actions} for name, actions in users.items()]
    write_private(folder / "s3.json", json.dumps({"identities": identities}))


def program_arguments(folder: Path, address: str) -> dict[str, list[str]]:
    """Returns the arguments of each program, by its name."""
    http = {"master": 19333, "volume": 18080, "filer": 18888, "s3": _BACKEND_PORT}
    server = seaweed.arguments(
        data=folder / "data",
        users=folder / "s3.json",
        ports={part: (port, port + 10000) for part, port in http.items()},
        sockets="/run/seaweedfs-",
    )
    listen = f"{address}:{network.S3_PORT}"
    backend = f"http://127.0.0.1:{_BACKEND_PORT}"
    return {SERVER: server, PROXY: [listen, backend, str(request_log(folder)), str(_holds(folder))]}


def _keys(name: str) -> dict[str, str]:
    return {"accessKey": f"TONNAGE{name.upper()}", "secretKey": secrets.token_urlsafe(24)}
