"""The programs run with exactly what the chart configures: arguments, files, certificates, permissions."""

from __future__ import annotations

import functools
import os
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from chart_support.component_process import ComponentProcess, write_volumes
from chart_support.helm import find_one
from operator_support.control_plane import PYTHONPATH
from support.waiting import eventually
from tonnage_operator.cli import main
from tonnage_operator.config import ConfigError, read_installation
from tonnage_operator.tls import CaWatcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chart_support.helm import Helm, Object
    from operator_support.control_plane import ControlPlane
    from tonnage_operator.domain.installation import Installation

HERE = {"service": {"clusterIP": "127.0.0.1"}}
VALUES: dict[str, Any] = {"controller": HERE, "webhook": HERE, "reports": {"host": "127.0.0.1"}}
"""Values with certificates for loopback; the Services could not be installed with them."""


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except OSError:
        return 0, ""


def _post(url: str) -> int:
    """Posts something that is no review; 400 if the webhook reads it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, data=b"x", timeout=5, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def objects(helm: Helm) -> list[Object]:
    return helm.template(VALUES)


def _ready_or_ended(program: ComponentProcess, process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None or _get(f"http://127.0.0.1:{program.ports['health']}/readyz")[0] == 200


def _reloaded_certificates(program: ComponentProcess) -> bool:
    return "Reloaded the CA" in program.log and "Reloaded the certificate" in program.log


@pytest.fixture
def components(
    helm_with_cluster: Helm, plane: ControlPlane, tmp_path: Path, objects: list[Object]
) -> Iterator[dict[str, ComponentProcess]]:
    """Controller and webhook, running and ready."""
    helm_with_cluster.install()
    made = {}
    for name in ("controller", "webhook"):
        (tmp_path / name).mkdir()
        made[name] = ComponentProcess.create(plane, tmp_path / name, objects, "Deployment", name)
        made[name].start()
    try:
        for name, program in made.items():
            process = program.process
            assert process
            eventually(functools.partial(_ready_or_ended, program, process), timeout=30)
            assert process.poll() is None, f"{name}: {program.log}"
        yield made
    finally:
        codes = {name: program.stop() for name, program in made.items()}
    assert codes == {"controller": 0, "webhook": 0}


def _check(
    plane: ControlPlane, folder: Path, objects: list[Object], programs: dict[str, ComponentProcess]
) -> tuple[int, str]:
    """Runs the command of `helm test`."""
    folder.mkdir()
    command = ComponentProcess.create(plane, folder, objects, "Pod", "test").command()
    ports = (("webhook", 443), ("reports", 8443))
    for (endpoint, port), program in zip(ports, (programs["webhook"], programs["controller"]), strict=True):
        (index,) = [index for index, each in enumerate(command) if each.startswith(f"--{endpoint}=")]
        path = command[index].partition(f":{port}")[2]
        command[index] = f"--{endpoint}=https://127.0.0.1:{program.ports[endpoint]}{path}"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([*command, "--within=1"], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_controller_and_webhook_start_and_reload_certificates(
    components: dict[str, ComponentProcess], plane: ControlPlane, helm: Helm, objects: list[Object], tmp_path: Path
) -> None:
    assert _check(plane, tmp_path / "first", objects, components) == (0, "webhook: responds\ncontroller: responds\n")
    for program in components.values():
        status, text = _get(f"http://127.0.0.1:{program.ports['health']}/metrics")
        assert status == 200
        assert "tonnage_build_info" in text
        (end,) = re.findall(r"^tonnage_certificate_expiry_timestamp_seconds (.*)$", text, re.MULTILINE)
        assert abs(float(end) - time.time() - 3650 * 86400) < 3600

    address = f"https://127.0.0.1:{components['webhook'].ports['webhook']}"
    path = find_one(objects, "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["service"]["path"]
    assert [_post(f"{address}{each}") for each in ("/inject", "/consent", "/inject/0", path)] == [403, 403, 403, 400]

    renewed = helm.render(VALUES)
    code, output = _check(plane, tmp_path / "second", renewed, components)
    assert code == 1
    assert output.count("did not respond") == 2
    assert "CERTIFICATE_VERIFY_FAILED" in output

    for program in components.values():
        write_volumes(renewed, program.pod, program.root)
    for program in components.values():
        eventually(functools.partial(_reloaded_certificates, program))
    assert _check(plane, tmp_path / "third", renewed, components)[0] == 0


def test_check_names_endpoints_that_fail_or_respond_differently(
    components: dict[str, ComponentProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = components["webhook"].root / "etc/tonnage/reports-ca/ca.crt"
    url = f"https://127.0.0.1:{components['controller'].ports['reports']}"
    assert main(["check", "--webhook", "https://127.0.0.1:1/readyz", "--within", "0"]) == 1
    assert "webhook: https://127.0.0.1:1/readyz did not respond" in capsys.readouterr().out
    assert main(["check", "--reports", f"{url}/elsewhere", "--reports-ca", str(ca), "--within", "0"]) == 1
    assert "returned 404, expected 401" in capsys.readouterr().out
    assert main(["check", "--webhook", url, "--webhook-ca", str(tmp_path / "none")]) == 2
    assert "the CA of the webhook, can't be used" in capsys.readouterr().err


# The CA of the report endpoint


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_bytes(trustme.CA().cert_pem.bytes())
    return path


def _installation(ca_file: Path) -> Installation:
    path = ca_file.parent / "installation.yaml"
    (ca_file.parent / "current").write_text("k" * 64)
    path.write_text(
        f"loader: {{image: x}}\nsigningFolder: {ca_file.parent}\nreports: {{url: 'https://c', caFile: {ca_file}}}\n"
    )
    return read_installation(path)


def test_the_ca_is_read_from_its_file(ca_file: Path) -> None:
    assert _installation(ca_file).reports.ca_pem == ca_file.read_text()


@pytest.mark.parametrize(
    "content", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None]
)
def test_a_file_without_a_ca_is_named(ca_file: Path, content: str | None) -> None:
    ca_file.unlink()
    if content is not None:
        ca_file.write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        _installation(ca_file)


def test_a_new_ca_is_reloaded_and_a_damaged_one_is_ignored(ca_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken: list[Installation] = []
    follower = CaWatcher(_installation(ca_file), taken.append)
    follower.reload_if_changed()
    assert not taken
    ca_file.write_text("no PEM")
    follower.reload_if_changed()
    follower.reload_if_changed()
    assert not taken
    assert len(caplog.records) == 1
    ca_file.write_bytes(trustme.CA().cert_pem.bytes())
    follower.reload_if_changed()
    assert [each.reports.ca_pem for each in taken] == [ca_file.read_text()]
    assert taken[0].reports.url == "https://c"
