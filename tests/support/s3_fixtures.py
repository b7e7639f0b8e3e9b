"""Fixtures of S3 servers: a real SeaweedFS for the session, and a faulty server for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.faulty_server import FaultyServer
from support.s3_server import SeaweedS3, start_seaweed
from support.tls import CertificateAuthority, make_certificate_authority

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    """One SeaweedFS for all tests of this process. Each test creates its own bucket."""
    server = start_seaweed(tmp_path_factory.mktemp("seaweed"))
    yield server
    server.stop()


@pytest.fixture
def faulty_server() -> Iterator[FaultyServer]:
    """A new HTTP server that injects configured faults."""
    with FaultyServer() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """A CA that is not in the system's trust store."""
    return make_certificate_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def faulty_tls_server(authority: CertificateAuthority) -> Iterator[FaultyServer]:
    """``faulty_server`` with TLS, its certificate signed by ``authority``."""
    with FaultyServer(tls=authority.server_context()) as server:
        yield server
