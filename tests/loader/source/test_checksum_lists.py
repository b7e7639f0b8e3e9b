"""Lists of SHA-256 beside objects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.source.checksum_lists import lists_for, parse_lists

ONE, TWO = "1" * 64, "ab" * 32


def _parsed(contents: dict[str, bytes]) -> dict[str, str]:
    return {key: checksum.value.hex() for key, checksum in parse_lists(contents).items()}


def test_lists_of_both_forms_name_files_relative_to_their_folder() -> None:
    text = f"# made by sha256sum\n{ONE}  a.safetensors\n{TWO.upper()} *sub/b.bin\nSHA256 (./c d.json) = {ONE}\n"
    assert _parsed({"m/SHA256SUMS": text.encode()}) == {
        "m/a.safetensors": ONE,
        "m/sub/b.bin": TWO,
        "m/c d.json": ONE,
    }


def test_a_list_of_one_object_may_be_its_digest_alone() -> None:
    assert _parsed({"m/a.bin.sha256": ONE.encode()}) == {"m/a.bin": ONE}
    assert _parsed({"m/a.bin.sha256": f"{ONE}  a.bin\r\n".encode()}) == {"m/a.bin": ONE}


def test_an_object_with_two_values_has_none() -> None:
    assert _parsed({"m/SHA256SUMS": f"{ONE}  a\n{TWO}  a\n".encode()}) == {}


@given(st.binary(max_size=300))
def test_no_content_makes_it_fail(content: bytes) -> None:
    for checksum in parse_lists({"m/SHA256SUMS": content}).values():
        assert len(checksum.value) == 32


def test_only_lists_that_may_have_a_wanted_object_are_read() -> None:
    keys = ["SHA256SUMS", "m/sha256sums.txt", "m/a.bin", "m/a.bin.sha256", "m/b.bin.sha256", "n/SHA256SUMS"]
    assert lists_for(["m/a.bin"], keys) == ["SHA256SUMS", "m/sha256sums.txt", "m/a.bin.sha256"]
    assert lists_for([], keys) == []
