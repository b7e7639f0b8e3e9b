"""Near caches between loaders and a store: a real nginx with the example's configuration, and a real SeaweedFS."""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tonnage
from support.models import assert_tensors_equal, load_safetensors_dir, make_tensors, to_tensors_file
from support.ports import free_ports
from support.repository import ROOT
from support.s3_server import ADMIN, NO_PERMISSIONS, S3Identity, SeaweedS3, run_weed_shell, start_seaweed
from tonnage.contract import Limits, Report
from tonnage.errors import AccessDenied, ChecksumMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""What nginx has folders for, in /var if it is installed as a package."""
EXAMPLE = ROOT / "examples" / "near-cache" / "nginx.conf"
LIMITS = Limits(workers=2, connections=4, part_size=256 << 10)


@dataclass
class NearCache:
    """A running nginx in front of a store."""

    endpoint: str
    folder: Path
    store: SeaweedS3
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def load(self, bucket: str, *, identity: S3Identity = ADMIN, endpoint: str = "") -> Report:
        """Loads a bucket's model as another node would, into a cache of its own."""
        return tonnage.load(
            f"s3://{bucket}/model/",
            cache=self.folder / f"node-{next(self._numbers)}",
            endpoint_url=endpoint or self.endpoint,
            environment=self.store.environment(identity),
            limits=LIMITS,
        )

    def take_log(self) -> list[list[str]]:
        """Returns the words of the log's lines since the last call."""
        lines = (self.folder / "access.log").read_text().splitlines()
        (self.folder / "access.log").write_text("")
        return [line.split() for line in lines]


def read(report: Report) -> dict[str, torch.Tensor]:
    return load_safetensors_dir(Path(report.path))


@pytest.fixture
def near_cache(s3: SeaweedS3, tmp_path: Path) -> Iterator[NearCache]:
    """The example's configuration, with other addresses and folders, and without TLS."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    (port,) = free_ports(1)
    text = EXAMPLE.read_text()
    for before, after in (
        ("server s3.example.com:443", f"server 127.0.0.1:{s3.port}"),
        ("https://store", "http://store"),
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        ("/var/cache/nginx/models", f"{tmp_path}/models"),
        ("/tmp/nginx.pid", f"{tmp_path}/pid"),
        ("/dev/stdout", f"{tmp_path}/access.log"),
        ("/dev/stderr", f"{tmp_path}/error.log"),
        ("worker_processes auto", "daemon off; master_process off; worker_processes 1"),
        ("slice 16m", "slice 512k"),  # so that a small model has several
        ("http {", f"http {{ {' '.join(f'{each}_temp_path {tmp_path}/{each};' for each in _TEMPORARY)}"),
    ):
        assert before in text, before
        text = text.replace(before, after)
    (tmp_path / "nginx.conf").write_text(text)
    command = [program, "-e", f"{tmp_path}/error.log", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    with subprocess.Popen(command) as process:
        try:
            _wait_for(port, process)
            yield NearCache(f"http://127.0.0.1:{port}", tmp_path, s3)
        finally:
            process.send_signal(signal.SIGTERM)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    pytest.fail("nginx did not start")


def test_the_second_node_gets_all_from_the_cache_and_a_user_without_the_right_nothing(near_cache: NearCache) -> None:
    store, tensors = near_cache.store, make_tensors(count=24)
    bucket = store.make_bucket()
    store.put(bucket, {"model/weights.tensors": to_tensors_file(tensors), "model/config.json": b"{}"})
    first = near_cache.load(bucket)
    assert_tensors_equal(read(first), tensors)
    near_cache.take_log()
    second = near_cache.load(bucket)
    assert_tensors_equal(read(second), tensors)
    asked = [line for line in near_cache.take_log() if "weights.tensors" in line[3] and line[2] == "GET"]
    assert asked
    assert {line[1] for line in asked} == {"HIT"}

    with pytest.raises(AccessDenied):
        near_cache.load(bucket, identity=NO_PERMISSIONS)

    changed = make_tensors(count=24, seed=7)
    store.put(bucket, {"model/weights.tensors": to_tensors_file(changed)})
    third = near_cache.load(bucket)
    assert_tensors_equal(read(third), changed)
    assert third.revision != first.revision


def test_bytes_that_the_cache_has_damaged_are_never_loaded(near_cache: NearCache) -> None:
    bucket = near_cache.store.make_bucket()
    near_cache.store.put(bucket, {"model/weights.tensors": to_tensors_file(make_tensors(count=24))})
    near_cache.load(bucket)
    for path in (each for each in (near_cache.folder / "models").rglob("*") if each.is_file()):
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)
    with pytest.raises(ChecksumMismatch):
        near_cache.load(bucket)


def test_a_seaweedfs_near_the_nodes_serves_a_bucket_that_is_away(tmp_path: Path) -> None:
    """As docs/guides/many-nodes.md shows it; the near one has users of its own."""
    tensors = make_tensors(count=24)
    on_loopback = [f"-{part}.allowUntrustedRemoteEndpoints" for part in ("filer", "s3", "volume")]
    far, near = (start_seaweed(_folder(tmp_path, name), *on_loopback) for name in ("far", "near"))
    try:
        far_bucket = far.make_bucket()
        far.put(far_bucket, {"model/weights.tensors": to_tensors_file(tensors)})
        output = run_weed_shell(
            near,
            f"remote.configure -name=far -type=s3 -s3.endpoint={far.endpoint} -s3.region={far.region}"
            f" -s3.access_key={far.access_key} -s3.secret_key={far.secret_key} -s3.force_path_style=true",
            f"remote.mount -dir=/buckets/models -remote=far/{far_bucket}",
            "remote.cache -dir=/buckets/models -deleteLocalExtra=false",
        )
        assert "error" not in output, output
        harness = NearCache(near.endpoint, tmp_path, near)
        assert_tensors_equal(read(harness.load("models")), tensors)
        far.stop()
        assert_tensors_equal(read(harness.load("models")), tensors)
    finally:
        far.stop()
        near.stop()


def _folder(base: Path, name: str) -> Path:
    (base / name).mkdir()
    return base / name
