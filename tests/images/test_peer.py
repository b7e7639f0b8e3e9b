"""The peers' image in a real container, with a read-only root and no capabilities: nginx serves an entry over TLS."""

from __future__ import annotations

import http.client
import signal
import ssl
from typing import TYPE_CHECKING

import pytest

from support.containers import run_container, start_container
from support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from support.containers import Image
    from support.tls import CertificateAuthority

pytestmark = pytest.mark.timeout(600)
USER = 12345


def test_a_peer_serves_in_a_container_until_it_is_stopped(
    peer: Image, tmp_path: Path, authority: CertificateAuthority
) -> None:
    folders = {name: tmp_path / name for name in ("secrets", "run", "media")}
    for folder in folders.values():
        folder.mkdir(mode=0o755)
    certificate = authority.ca.issue_cert("localhost")
    (folders["secrets"] / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    (folders["secrets"] / "tls.crt").write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
    (folders["secrets"] / "ticket-key").write_bytes(bytes(range(32)))
    (folders["secrets"] / "ticket-key-previous").write_bytes(b"")
    folders["run"].chmod(0o777)
    port = free_ports(1)[0]
    mounts = {
        "/etc/tonnage/peers": folders["secrets"],
        "/run/tonnage": folders["run"],
        "/media/memory": folders["media"],
    }
    command = ["tonnage", "peer", "serve", "--secrets=/etc/tonnage/peers", "--run-dir=/run/tonnage", f"--port={port}"]
    command.append("--media=memory=/media/memory")
    with start_container(peer, tmp_path, command=command, user=USER, mounts=mounts) as container:
        stderr = container.process.stderr
        assert stderr is not None
        assert any(line.startswith("serving") for line in stderr)
        context = ssl.create_default_context(cafile=str(authority.bundle))
        connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
        for path, status in {"/healthz": 200, "/v1/entries/memory/team/r-1/manifest": 401}.items():
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == status, path
        connection.close()
        container.kill(signal.SIGTERM)
        code, _, _ = container.wait()
        assert code == 0


def test_a_missing_key_is_named(peer: Image, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o755)
    mounts = {"/etc/tonnage/peers": secrets}
    arguments = ["peer", "serve", "--secrets=/etc/tonnage/peers", "--media=memory=/media", "--run-dir=/run/tonnage"]
    code, _, err = run_container(peer, tmp_path, *arguments, mounts=mounts)
    assert code != 0
    assert "no file ticket-key" in err
