"""Reasons and exit codes are stable and documented."""

from __future__ import annotations

from pathlib import Path

from tonnage.cli import reasons_table
from tonnage.errors import Reason, error_classes

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "reasons.md"


def test_every_reason_has_one_class_and_its_own_exit_code() -> None:
    classes = error_classes()
    assert set(classes) == set(Reason)
    codes = [cls.exit_code for cls in classes.values()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes), "0 is success, 126 and more belong to the shell"
    assert 1 not in codes, "Python leaves with 1 when it can't even start"


def test_every_reason_has_a_meaning_and_a_remedy_in_sentences() -> None:
    for reason, _, meaning, remedy in reasons_table.reason_rows():
        assert meaning.endswith("."), reason
        assert remedy.endswith("."), reason


def test_the_page_of_reasons_is_up_to_date() -> None:
    assert PAGE.read_text() == reasons_table.markdown(), (
        "generate it: python -m tonnage.cli.reasons_table > docs/reference/reasons.md"
    )


def test_the_help_lists_every_code_once() -> None:
    lines = "\n".join(reasons_table.exit_code_lines())
    for reason, code, _, _ in reasons_table.reason_rows():
        assert lines.count(f"{code:>3} {reason}") == 1
