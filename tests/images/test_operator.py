"""The operator's image in real containers, with a read-only root and no capabilities."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

from support.containers import run_container, start_container
from tonnage import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.containers import Container, Image

pytestmark = pytest.mark.timeout(600)

INSTALLATION = """\
namespace: tonnage-system
media:
  Memory: {hostPath: /dev/shm/tonnage, reserved: false}
defaultMedium: Memory
sharing: Cluster
loader: {image: "tonnage-loader:0.1.0", uid: 0}
signingFolder: .
reports: {url: "https://tonnage-controller.tonnage-system.svc:8443/v1/reports"}
"""
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "unreachable",
    "contexts": [{"name": "unreachable", "context": {"cluster": "unreachable", "user": "unreachable"}}],
    "clusters": [{"name": "unreachable", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "unreachable", "user": {"token": "none"}}],
}
"""An API server that refuses connections."""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A folder with the operator's configuration files."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "installation.yaml").write_text(INSTALLATION)
    (folder / "kubeconfig").write_text(json.dumps(KUBECONFIG))
    (folder / "current").write_text("k" * 64)
    folder.chmod(0o755)
    return folder


@pytest.fixture(params=["controller", "webhook"])
def running(
    request: pytest.FixtureRequest, operator: Image, configuration: Path, tmp_path: Path
) -> Iterator[Container]:
    """A container of each command as PID 1, once it is ready."""
    files = ["--config", "/config/installation.yaml", "--kubeconfig", "/config/kubeconfig"]
    command = ["tonnage-operator", request.param, *files]
    mounts = {"/config": configuration}
    with start_container(operator, tmp_path, command=command, mounts=mounts, isolated_network=True) as container:
        yield container


def healthy(container: Container, image: Image) -> bool:
    """Runs the image's health check in a container."""
    return container.exec(*image.config["Healthcheck"]["Test"][1:]).returncode == 0


def test_the_health_check_passes_until_sigterm(running: Container, operator: Image) -> None:
    deadline = time.monotonic() + 60
    while not healthy(running, operator):
        assert running.process.poll() is None, running.wait()
        assert time.monotonic() < deadline
    running.kill(signal.SIGTERM)
    started = time.monotonic()
    code, _, err = running.wait(timeout=20)
    assert code == 0, err
    assert time.monotonic() - started < 5
    assert "Traceback" not in err


def test_a_sigterm_right_after_the_start_is_not_lost(operator: Image, configuration: Path, tmp_path: Path) -> None:
    command = ["tonnage-operator", "controller", "--config", "/config/installation.yaml"]
    with start_container(operator, tmp_path, command=command, mounts={"/config": configuration}) as container:
        container.wait_until_running()
        container.kill(signal.SIGTERM)
        started = time.monotonic()
        container.wait(timeout=10)
        assert time.monotonic() - started < 5
        assert container.process.returncode in {0, 128 + signal.SIGTERM}


def test_help_lists_the_commands(operator: Image, tmp_path: Path) -> None:
    code, out, err = run_container(operator, tmp_path, "--help")
    assert code == 0, err
    assert all(command in out for command in ("controller", "webhook", "crd", "release"))


def test_any_user_can_run_the_operator(operator: Image, tmp_path: Path) -> None:
    code, out, err = run_container(operator, tmp_path, "--version", user=12345)
    assert code == 0, err
    assert out == f"tonnage-operator {__version__}\n"


def test_crds_are_written(operator: Image, tmp_path: Path) -> None:
    code, out, err = run_container(operator, tmp_path, "crd")
    assert code == 0, err
    assert "kind: CustomResourceDefinition" in out
