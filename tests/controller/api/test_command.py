from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from operator_support.control_plane import PYTHONPATH
from operator_support.harness import write_installation
from support.ports import free_ports
from support.waiting import eventually
from tonnage_operator.api import crd
from tonnage_operator.cli import main
from tonnage_operator.kube.credentials import ClientConfigError, find_client_config, from_kubeconfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("command", ["controller", "webhook", "crd", "release"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"tonnage-operator {command}" in capsys.readouterr().out


def test_the_crds_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crd", "--output", str(tmp_path / "new")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == crd.files()
    assert main(["crd"]) == 0
    assert "kind: CustomResourceDefinition" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loader: {}", "loader.image"),
        ("loader: {image: x}\nmeida: {}", "meida"),
        ("loader: {image: x}\nmedia: {Disk: {hostPath: /a}}", "defaultMedium Memory is not among media"),
        ("loader: {image: x}\nmedia: {Memory: {hostPath: relative}}", "media.Memory.hostPath"),
        ("{", "is not YAML"),
    ],
)
def test_an_invalid_installation_file_is_named_with_its_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    path = tmp_path / "installation.yaml"
    path.write_text(text)
    assert main(["controller", "--config", str(path), "--kubeconfig", str(tmp_path / "none")]) == 2
    assert sentence in capsys.readouterr().err


async def test_without_a_cluster_the_error_lists_the_searched_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClientConfigError, match="KUBECONFIG"):
        await find_client_config()


async def test_a_kubeconfig_can_get_its_token_from_a_command(tmp_path: Path) -> None:
    script = tmp_path / "token.sh"
    script.write_text(
        '#!/bin/sh\necho "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1\\", \\"kind\\": \\"ExecCredential\\", '
        '\\"status\\": {\\"token\\": \\"$WHO-$1\\"}}"\n'
    )
    script.chmod(0o755)
    (tmp_path / "ca").touch()
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(script),
            "args": ["a"],
            "env": [{"name": "WHO", "value": "me"}],
        }
    }
    path = tmp_path / "config"
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://host:6443/", "certificate-authority": "ca"}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    configuration = (await from_kubeconfig(str(path))).configuration
    assert (configuration.host, configuration.ssl_ca_cert) == ("https://host:6443", str(tmp_path / "ca"))
    assert await configuration.get_api_key_with_prefix("BearerToken") == "Bearer me-a"
    with pytest.raises(ClientConfigError, match=r"name other in .*contexts"):
        await from_kubeconfig(str(path), "other")


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


@pytest.mark.parametrize("command", ["controller", "webhook"])
def test_sigterm_ends_a_process_that_can_not_reach_the_api_server(tmp_path: Path, command: str) -> None:
    config, kubeconfig = write_installation(tmp_path), tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    (port,) = free_ports(1)
    options = ["--config", str(config), "--kubeconfig", str(kubeconfig), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "tonnage_operator", command, *options, "--health-port", str(port)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            eventually(lambda: _is_healthy(port), timeout=30)
            process.terminate()
            # kopf waits 5 s for tasks that it takes for hung.
            _, err = process.communicate(timeout=4)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err
