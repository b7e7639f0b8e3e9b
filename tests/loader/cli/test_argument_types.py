"""Parsers of option values: sizes, durations, ranks."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.cli import argument_types
from tonnage.contract import Layout
from tonnage.contract.ranks import MAX_RANK

BOUNDED = settings(deadline=None, max_examples=50)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("16Mi", 16 << 20),
        ("16MiB", 16 << 20),
        ("16mib", 16 << 20),
        ("5GiB", 5 << 30),
        ("5Gi/s", 5 << 30),
        ("400MB", 400_000_000),
        ("400M", 400_000_000),
        ("1.5Gi", 3 << 29),
        ("2 TiB", 2 << 40),
        ("0.5", 0),
        ("1k", 1000),
        ("7B", 7),
        ("7i", None),
        ("", None),
        ("Mi", None),
        ("-1", None),
        ("1.5.2Mi", None),
        ("16 Quux", None),
        ("٣", None),
        ("9" * 30, None),
    ],
)
def test_a_size_is_bytes_with_decimal_or_binary_units(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ArgumentTypeError, match=r"size|bytes"):
            argument_types.parse_size(text)
    else:
        assert argument_types.parse_size(text) == expected


@BOUNDED
@given(st.integers(0, 1 << 40), st.sampled_from([("", 1), ("k", 1000), ("Ki", 1024), ("MB", 10**6), ("MiB", 1 << 20)]))
def test_a_whole_number_of_units_is_exact(count: int, unit: tuple[str, int]) -> None:
    assert argument_types.parse_size(f"{count}{unit[0]}") == count * unit[1]


@BOUNDED
@given(st.integers(0, 10**6), st.integers(0, 999))
def test_a_fraction_of_a_size_is_rounded_down_exactly(whole: int, thousandths: int) -> None:
    assert argument_types.parse_size(f"{whole}.{thousandths:03}Gi") == (whole * 1000 + thousandths) * (1 << 30) // 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90.0),
        ("2.5", 2.5),
        ("500ms", 0.5),
        ("90s", 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1H", 3600.0),
        ("2d", 172_800.0),
        ("0", 0.0),
        ("", None),
        ("m", None),
        ("10 m", None),
        ("1h-3m", None),
        ("-5", None),
        ("inf", None),
        ("nan", None),
        ("10y", None),
        ("400d", None),
    ],
)
def test_a_duration_is_seconds_or_parts_with_units(text: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ArgumentTypeError, match=r"duration|year"):
            argument_types.parse_duration(text)
    else:
        assert argument_types.parse_duration(text) == pytest.approx(expected)


@BOUNDED
@given(st.integers(0, 300), st.integers(0, 59), st.integers(0, 59))
def test_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert argument_types.parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("0,2,5-7", (0, 2, 5, 6, 7)),
        ("7, 1-2 ,1", (1, 2, 7)),
        ("3-3", (3,)),
        ("", None),
        ("3-1", None),
        ("1,", None),
        ("a", None),
        ("-1", None),
        ("0-99999999", None),
        ("99999999999999999999", None),
    ],
)
def test_ranks_are_a_list_of_numbers_and_ranges(text: str, expected: tuple[int, ...] | None) -> None:
    if expected is None:
        with pytest.raises(ArgumentTypeError, match="rank"):
            argument_types.parse_ranks(text)
    else:
        assert argument_types.parse_ranks(text) == expected


@BOUNDED
@given(st.sets(st.integers(0, MAX_RANK), min_size=1, max_size=20))
def test_every_set_of_ranks_can_be_written_and_read(ranks: set[int]) -> None:
    assert argument_types.parse_ranks(",".join(map(str, ranks))) == tuple(sorted(ranks))


@BOUNDED
@given(st.text(max_size=12))
def test_any_text_is_a_value_or_rejected_with_a_message(text: str) -> None:
    for read in (
        argument_types.parse_size,
        argument_types.parse_duration,
        argument_types.parse_ranks,
        argument_types.parse_bool,
        argument_types.int_range(0, 256),
    ):
        refusal = ""
        try:
            read(text)
        except ArgumentTypeError as error:
            refusal = str(error)
        assert not refusal or repr(text) in refusal


def test_names_are_accepted_in_any_case_and_others_rejected_with_the_list() -> None:
    read = argument_types.enum_choice(Layout)
    assert read("TensorIzer") is Layout.TENSORIZER
    with pytest.raises(ArgumentTypeError, match="'zip' is not one of safetensors, tensorizer"):
        read("zip")


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("Yes", True), ("off", False), ("FALSE", False), ("", False)]
)
def test_a_switch_in_the_environment_is_true_or_false(text: str, expected: bool) -> None:
    assert argument_types.parse_bool(text) is expected
    with pytest.raises(ArgumentTypeError):
        argument_types.parse_bool("maybe")


def test_whole_numbers_have_bounds() -> None:
    read = argument_types.int_range(0, 256)
    assert (read("0"), read("256")) == (0, 256)
    for text in ("257", "-1", "1.5", "", "1_0"):
        with pytest.raises(ArgumentTypeError, match="from 0 to 256"):
            read(text)
