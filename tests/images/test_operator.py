"""The operator's image at work: real containers, with a read-only root and no capability."""

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
reports: {url: "https://tonnage-controller.tonnage-system.svc:8443/v1/reports"}
"""
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "nobody",
    "contexts": [{"name": "nobody", "context": {"cluster": "nobody", "user": "nobody"}}],
    "clusters": [{"name": "nobody", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "nobody", "user": {"token": "none"}}],
}
"""An API server that refuses connections."""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """What the operator is started with."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "installation.yaml").write_text(INSTALLATION)
    (folder / "kubeconfig").write_text(json.dumps(KUBECONFIG))
    folder.chmod(0o755)
    return folder


@pytest.fixture(params=["controller", "webhook"])
def running(
    request: pytest.FixtureRequest, operator: Image, configuration: Path, tmp_path: Path
) -> Iterator[Container]:
    """Each of its two processes, as its container's first one, as soon as it serves."""
    files = ["--config", "/config/installation.yaml", "--kubeconfig", "/config/kubeconfig"]
    command = ["tonnage-operator", request.param, *files]
    mounts = {"/config": configuration}
    with start_container(operator, tmp_path, command=command, mounts=mounts, isolated_network=True) as container:
        yield container


def healthy(container: Container, image: Image) -> bool:
    """Runs the image's health check in a container."""
    return container.exec(*image.config["Healthcheck"]["Test"][1:]).returncode == 0


def test_the_health_check_passes_while_it_serves_and_sigterm_ends_it(running: Container, operator: Image) -> None:
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


def test_an_end_asked_for_at_the_very_start_is_not_lost(operator: Image, configuration: Path, tmp_path: Path) -> None:
    command = ["tonnage-operator", "controller", "--config", "/config/installation.yaml"]
    with start_container(operator, tmp_path, command=command, mounts={"/config": configuration}) as container:
        container.wait_until_running()
        container.kill(signal.SIGTERM)
        started = time.monotonic()
        container.wait(timeout=10)
        assert time.monotonic() - started < 5
        assert container.process.returncode in {0, 128 + signal.SIGTERM}


def test_help_lists_its_commands(operator: Image, tmp_path: Path) -> None:
    code, out, err = run_container(operator, tmp_path, "--help")
    assert code == 0, err
    assert all(command in out for command in ("controller", "webhook", "crd", "release"))


def test_any_user_can_run_it(operator: Image, tmp_path: Path) -> None:
    code, out, err = run_container(operator, tmp_path, "--version", user=12345)
    assert code == 0, err
    assert out == f"tonnage-operator {__version__}\n"


def test_it_writes_the_crds(operator: Image, tmp_path: Path) -> None:
    code, out, err = run_container(operator, tmp_path, "crd")
    assert code == 0, err
    assert "kind: CustomResourceDefinition" in out
