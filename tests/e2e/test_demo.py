"""The walkthrough of `make demo-cluster`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from demo_cluster.walkthrough import STEPS, run_walkthrough

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from e2e_support.e2e_cluster import E2ECluster


def test_the_demo_runs_all_steps_and_leaves_nothing(
    e2e: E2ECluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_walkthrough(e2e, tmp_path / "models", small=True)
    output = capsys.readouterr().out
    assert re.findall(rf"^(\d)/{STEPS} ", output, re.MULTILINE) == [str(number + 1) for number in range(STEPS)]
    assert output.count(": hit in ") == 6
    assert e2e.api.get_or_none("Namespace", "demo") is None
