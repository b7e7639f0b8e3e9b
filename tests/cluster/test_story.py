"""The story of `make demo-cluster` is true."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from demo_cluster.story import STEPS, run_walkthrough

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from cluster_support.site import Site


def test_the_demos_story_comes_true_and_leaves_nothing(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_walkthrough(site, tmp_path / "models", small=True)
    said = capsys.readouterr().out
    assert re.findall(rf"^(\d)/{STEPS} ", said, re.MULTILINE) == [str(number + 1) for number in range(STEPS)]
    assert said.count("a hit") == 6
    assert site.api.find("Namespace", "demo") is None
