"""The loader's image in real containers, with a real S3 server and a file that tensorizer wrote."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tensorizer import TensorSerializer

from support.containers import run_container, start_container
from support.models import assert_tensors_equal, load_safetensors_dir
from tonnage import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from support.containers import Image
    from support.s3_server import SeaweedS3

pytestmark = pytest.mark.timeout(600)

STRANGER = 12345
"""A UID without an entry in /etc/passwd."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A small model."""
    generator = torch.Generator().manual_seed(7)
    return {f"layers.{number}.weight": torch.randn((64, 64), generator=generator) for number in range(4)}


@pytest.fixture(scope="module")
def source(s3: SeaweedS3, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model in a bucket, with a companion."""
    file = tmp_path_factory.mktemp("model") / "model.tensors"
    serializer = TensorSerializer(str(file))
    serializer.write_state_dict(tensors)
    serializer.close()
    bucket = s3.make_bucket()
    s3.put(bucket, {"tiny/model.tensors": file, "tiny/config.json": b"{}"})
    return f"s3://{bucket}/tiny/"


@pytest.fixture
def environment(s3: SeaweedS3) -> dict[str, str]:
    """The S3 server's environment variables."""
    return s3.environment()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def last_line(text: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text.strip().rpartition("\n")[2])
    return report


@pytest.mark.parametrize("user", [0, 65532, STRANGER])
def test_any_user_can_load_with_a_read_only_root_and_no_capabilities(
    user: int,
    loader: Image,
    source: str,
    environment: dict[str, str],
    tensors: dict[str, torch.Tensor],
    cache: Path,
    tmp_path: Path,
) -> None:
    # Root without capabilities can only access its own files.
    import os

    os.chown(cache, user, user)
    args = ["load", source, "--cache", "/cache", "--progress", "off"]
    settings: dict[str, Any] = {"user": user, "environment": environment, "mounts": {"/cache": cache}}
    code, out, err = run_container(loader, tmp_path, *args, **settings)
    assert code == 0, err
    report = last_line(out)
    assert report["outcome"] == "loaded"
    assert report["verified"] == "crc32"
    assert_tensors_equal(load_safetensors_dir(cache / report["entry"] / "model"), tensors)
    code, out, err = run_container(loader, tmp_path, *args, **settings)
    assert code == 0, err
    assert last_line(out)["outcome"] == "hit"


def test_a_load_needs_no_home_folder(
    loader: Image, source: str, environment: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    cache.chmod(0o777)
    del environment["AWS_CONFIG_FILE"], environment["AWS_SHARED_CREDENTIALS_FILE"], environment["AWS_REGION"]
    command = ["env", "-u", "HOME", "tonnage", "load", source, "--cache", "/cache", "--progress", "off"]
    with start_container(
        loader, tmp_path, command=command, user=STRANGER, environment=environment, mounts={"/cache": cache}
    ) as container:
        code, out, err = container.wait()
    assert code == 0, err
    assert last_line(out)["outcome"] == "loaded"


def test_a_hit_takes_less_than_two_seconds(
    loader: Image, source: str, environment: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    args = ["load", source, "--cache", "/cache", "--progress", "off"]
    settings: dict[str, Any] = {"user": 0, "environment": environment, "mounts": {"/cache": cache}}
    assert run_container(loader, tmp_path, *args, **settings)[0] == 0
    timed = (
        "import subprocess, sys, time; start = time.perf_counter(); done = subprocess.run(sys.argv[1:]); "
        "print(time.perf_counter() - start); sys.exit(done.returncode)"
    )
    command = ["python3", "-c", timed, "tonnage", *args]
    with start_container(loader, tmp_path, command=command, **settings) as container:
        code, out, err = container.wait()
    assert code == 0, err
    assert float(out.strip().rpartition("\n")[2]) < 2  # 0.15 s on an idle machine


def test_a_holder_as_pid_1_exits_on_sigterm(
    loader: Image, source: str, environment: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    command = ["tonnage", "load", source, "--cache", "/cache", "--progress", "off", "--hold"]
    with start_container(
        loader, tmp_path, command=command, user=0, environment=environment, mounts={"/cache": cache}
    ) as container:
        assert container.process.stdout
        report = json.loads(container.process.stdout.readline())
        assert report["outcome"] == "loaded"
        first = container.exec("cat", "/proc/1/cmdline").stdout.split("\0")
        assert "hold.py" in first[3]
        container.kill(signal.SIGTERM)
        started = time.monotonic()
        code, _, err = container.wait(timeout=10)
        assert (code, err) == (0, "")
        assert time.monotonic() - started < 2


def test_a_sigterm_right_after_the_start_is_not_lost(loader: Image, tmp_path: Path, cache: Path) -> None:
    # Nothing responds at this address, so only the signal ends the load.
    command = ["tonnage", "load", "http://192.0.2.1/model.tensors", "--cache", "/cache", "--progress", "off"]
    for _ in range(3):
        with start_container(loader, tmp_path, command=command, user=0, mounts={"/cache": cache}) as container:
            container.wait_until_running()
            container.kill(signal.SIGTERM)
            started = time.monotonic()
            container.wait(timeout=10)
            assert time.monotonic() - started < 2
            assert container.process.returncode in {32, 143}


def test_version_is_printed(loader: Image, tmp_path: Path) -> None:
    code, out, err = run_container(loader, tmp_path, "version", "--json")
    assert code == 0, err
    assert json.loads(out)["tonnage"] == __version__


def test_without_arguments_help_is_printed(loader: Image, tmp_path: Path) -> None:
    with start_container(loader, tmp_path) as container:
        code, out, _ = container.wait()
    assert code == 0
    assert "load" in out


def test_the_command_of_startup_probes_works(loader: Image, tmp_path: Path) -> None:
    with start_container(loader, tmp_path, command=["test", "-e", "/usr/local/bin/tonnage"]) as container:
        assert container.wait()[0] == 0


def test_checksums_of_stores_are_computed_by_the_compiled_part(loader: Image, tmp_path: Path) -> None:
    script = "from tonnage.format.checksums import load_library; print(load_library().crc64nvme(b'123456789', 9, 0))"
    with start_container(loader, tmp_path, command=["/opt/tonnage/bin/python", "-c", script]) as container:
        code, out, err = container.wait()
    assert code == 0, err
    assert int(out) == 0xAE8B14860A799888  # the check value of CRC-64/NVME
