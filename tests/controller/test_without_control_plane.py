"""Tests that need a control plane, on a machine that can't run one."""

from __future__ import annotations

import pytest

from operator_support.control_plane import skip_or_fail


def test_without_a_control_plane_tests_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="No control plane: there is no Go"):
        skip_or_fail("there is no Go")


def test_in_ci_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="No control plane: there is no Go"):
        skip_or_fail("there is no Go")
