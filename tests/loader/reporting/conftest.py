from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.report_desk import ReportDesk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tls import TestAuthority


@pytest.fixture
def desk(tmp_path: Path, authority: TestAuthority) -> Iterator[ReportDesk]:
    """An endpoint with TLS."""
    with ReportDesk(tmp_path, authority) as made:
        yield made
