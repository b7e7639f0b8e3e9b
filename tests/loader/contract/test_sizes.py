"""Sizes as people read them, in each style."""

from __future__ import annotations

import pytest

from tonnage.contract.sizes import human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5000 << 40, "5000.0 TiB")],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert human_bytes(count) == text
    assert human_bytes(count, "exact").startswith(text)


def test_an_exact_size_ends_with_the_number_of_bytes() -> None:
    assert human_bytes(812, "exact") == "812 bytes"
    assert human_bytes(3 << 19, "exact") == "1.5 MiB (1,572,864 bytes)"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (-1, ""),
        (0, ""),
        (812, "812"),
        (1536, "1.5Ki"),
        (3 << 20, "3Mi"),
        (99 << 30, "99Gi"),
        (263 << 29, "132Gi"),
        (5000 << 40, "4.9Pi"),
    ],
)
def test_a_column_has_the_form_of_a_quantity(count: int, text: str) -> None:
    assert human_bytes(count, "column") == text
