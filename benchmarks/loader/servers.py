"""The servers of the benchmark, on loopback: nginx, `sendfile_server.py`, or SeaweedFS.

The first two serve files like a path-style S3 server, and log the time of each request. They don't check signatures:
clients sign as usual, but the server doesn't use CPU for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_file import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_file import ModelFile

HERE = Path(__file__).parent

NGINX_CONFIG = """
daemon off; worker_processes {workers}; pid {directory}/nginx.pid; error_log {directory}/error.log;
{user}
events {{ worker_connections 4096; }}
http {{
    log_format requests "$msec $request_time $request_method $status $http_range $uri";
    access_log {log} requests;
    sendfile on; sendfile_max_chunk 2m; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 60s;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096; listen 127.0.0.2:{port} backlog=4096; root {root};
        {files}
        location = /api/models/{repo}/revision/main {{ default_type application/json; return 200 '{info}'; }}
        location /api/models/{repo}/tree/ {{ default_type application/json; return 200 '{tree}'; }}
        location /{repo}/resolve/ {{
            add_header X-Repo-Commit {commit} always; add_header X-Linked-Size {size} always;
            add_header X-Linked-ETag '"{sha256}"' always;
            return 302 http://127.0.0.2:{port}/{bucket}/{key};
        }}
    }}
}}
"""
"""nginx as an S3 server, which states checksums of safetensors files, and as a hub that has the one of all tensors."""
STATED = "x-amz-checksum-crc64nvme: {crc64nvme}\nx-amz-checksum-type: FULL_OBJECT\n"

REPO, COMMIT, HUB_FILE = "bench/llama", "b" * 40, "model.safetensors"


@dataclass(frozen=True)
class Request:
    """One request in the server's log; `time` is Unix time in seconds."""

    time: float
    method: str
    path: str


@dataclass(frozen=True)
class Server:
    """A running server. `tensors_url` needs no credentials; `environment` configures S3 clients for the server."""

    kind: str
    endpoint: str
    tensors_url: str
    environment: dict[str, str]
    log: Path | None

    def log_offset(self) -> int:
        """Returns the current size of the log; 0 without a log."""
        return self.log.stat().st_size if self.log and self.log.exists() else 0

    def requests_since(self, offset: int) -> list[Request]:
        """Returns the requests after `offset` in the log, earliest first; none without a log."""
        if self.log is None:
            return []
        time.sleep(0.1)  # the last lines are written after the client has the response
        with self.log.open() as stream:
            stream.seek(offset)
            requests = [parse_request(line) for line in stream]
        return sorted(requests, key=lambda request: request.time)


def parse_request(line: str) -> Request:
    """Parses a line of a log: `END DURATION METHOD STATUS RANGE PATH` or `START METHOD STATUS RANGE PATH`."""
    moment, *fields = line.split()
    duration = 0.0 if fields[0].isalpha() else float(fields.pop(0))
    return Request(time=float(moment) - duration, method=fields[0], path=fields[-1])


@contextlib.contextmanager
def serve(kind: str, model: ModelFile, *, workers: int, directory: Path, nginx: str) -> Iterator[Server]:
    """Runs a server within the context."""
    directory.mkdir()
    if kind == "seaweedfs":
        with _seaweedfs(model, directory) as server:
            yield server
        return
    port, log = _free_port(), directory / "requests.log"
    if kind == "nginx":
        user = "user root;" if os.geteuid() == 0 else ""
        config = directory / "nginx.conf"
        config.write_text(
            NGINX_CONFIG.format(
                workers=workers,
                directory=directory,
                root=model.root,
                port=port,
                log=log,
                user=user,
                **_stated(model),
            )
        )
        command = [nginx, "-c", str(config), "-p", str(directory), "-e", f"{directory}/error.log"]
    else:
        script = str(HERE / "sendfile_server.py")
        for file in model.safetensors_files:
            path = model.path(file)
            path.with_name(f"{path.name}.headers").write_text(STATED.format(crc64nvme=file.crc64nvme))
        command = [sys.executable, script, str(model.root), str(port), str(workers), str(log)]
    process = subprocess.Popen(command)
    try:
        _wait_for(port, process)
        endpoint = f"http://127.0.0.1:{port}"
        yield Server(
            kind=kind,
            endpoint=endpoint,
            tensors_url=f"{endpoint}/{model.bucket}/{model.tensors_key}",
            environment=_environment(endpoint, "bench", "anything") | _hub_environment(endpoint, directory),
            log=log,
        )
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _seaweedfs(model: ModelFile, directory: Path) -> Iterator[Server]:
    sys.path[:0] = [str(HERE.parents[1] / part) for part in ("tests", "hack")]
    from support.s3_server import start_seaweed

    server = start_seaweed(directory)
    try:
        server.client().create_bucket(Bucket=model.bucket)
        server.put(model.bucket, {model.tensors_key: model.tensors})
        for file in model.safetensors_files:
            with model.path(file).open("rb") as body:
                server.client().put_object(Bucket=model.bucket, Key=file.key, Body=body, ChecksumAlgorithm="CRC64NVME")
        yield Server(
            kind="seaweedfs",
            endpoint=server.endpoint,
            tensors_url=server.presign(model.bucket, model.tensors_key, expires=86400),
            environment=_environment(server.endpoint, server.access_key, server.secret_key),
            log=None,
        )
    finally:
        server.stop()


def find_nginx() -> str | None:
    """Returns the path of nginx, which may be in /usr/sbin, outside a user's PATH; None if it isn't installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _environment(endpoint: str, access_key: str, secret_key: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "S3_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }


def _hub_environment(endpoint: str, directory: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(directory / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }


def _stated(model: ModelFile) -> dict[str, str]:
    """Returns what nginx states of the safetensors files, in both roles."""
    headers = [line.replace(":", "", 1) for line in STATED.splitlines()]
    add_headers = " ".join(f"add_header {line};" for line in headers)
    whole = model.whole or SafetensorsFile(model.safetensors_key, 0, "", "")
    lfs = {"size": whole.size, "pointerSize": 134}
    sibling = {"rfilename": HUB_FILE, "size": whole.size, "blobId": "0" * 40, "lfs": {**lfs, "sha256": whole.sha256}}
    item = {"type": "file", "path": HUB_FILE, "size": whole.size, "oid": "0" * 40, "lfs": {**lfs, "oid": whole.sha256}}
    return {
        "files": "\n".join(
            f"location = /{model.bucket}/{file.key} {{ {add_headers.format(crc64nvme=file.crc64nvme)} }}"
            for file in model.safetensors_files
        ),
        "bucket": model.bucket,
        "key": whole.key,
        "sha256": whole.sha256,
        "size": str(whole.size),
        "repo": REPO,
        "commit": COMMIT,
        "info": json.dumps({"id": REPO, "sha": COMMIT, "siblings": [sibling]}),
        "tree": json.dumps([item]),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"The server {process.args!r} did not start within 30 s.")
