from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.report_server import ReportServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tls import CertificateAuthority


@pytest.fixture
def report_server(tmp_path: Path, authority: CertificateAuthority) -> Iterator[ReportServer]:
    """An endpoint with TLS."""
    with ReportServer(tmp_path, authority) as made:
        yield made
