"""Which checksums a response states, and which one is used."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract import ChecksumAlgorithm, ObjectChecksum, Verify
from tonnage.source.responses import parse_headers
from tonnage.source.stated_checksums import choose_checksum, etag_checksum, stated_checksums

MD5 = "d41d8cd98f00b204e9800998ecf8427e"


def _encoded(size: int) -> str:
    return base64.b64encode(bytes(range(size))).decode()


def _stated(headers: dict[str, str], *, partial: bool = False) -> list[str]:
    return [each.words for each in stated_checksums(headers, partial=partial)]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-amz-checksum-crc64nvme": _encoded(8), "x-amz-checksum-type": "FULL_OBJECT"}, ["CRC64NVME"]),
        ({"x-amz-checksum-crc32c": _encoded(4)}, ["CRC32C"]),
        ({"x-amz-checksum-sha256": _encoded(32) + "-3", "x-amz-checksum-type": "COMPOSITE"}, ["SHA256 of 3 parts"]),
        ({"x-amz-checksum-sha256": _encoded(32), "x-amz-checksum-type": "COMPOSITE"}, []),
        ({"x-amz-checksum-crc32": _encoded(4) + "-0"}, []),
        ({"x-amz-checksum-crc32": _encoded(8)}, []),
        ({"x-amz-checksum-crc32": "not base64"}, []),
        ({"content-md5": _encoded(16)}, ["MD5"]),
        ({"repr-digest": f"sha-256=:{_encoded(32)}:, sha-512=:{_encoded(64)}:"}, ["SHA256", "SHA512"]),
        ({"repr-digest": f"unixsum=:AAAA:, sha-256=:{_encoded(32)}:;q=1"}, ["SHA256"]),
        ({"digest": f"SHA-256={_encoded(32)},id-sha-256=AAAA"}, ["SHA256"]),
        ({"x-goog-hash": f"crc32c={_encoded(4)}, md5={_encoded(16)}"}, ["CRC32C", "MD5"]),
        ({"x-checksum-sha256": "AB" * 32, "x-checksum-md5": "-", "x-checksum-sha1": "ab" * 20}, ["SHA256", "SHA1"]),
        ({"x-ms-blob-content-md5": _encoded(16)}, ["MD5"]),
        ({"etag": f'"{MD5}"'}, []),
    ],
)
def test_a_response_states_checksums(headers: dict[str, str], expected: list[str]) -> None:
    assert _stated(headers) == expected


def test_of_a_part_only_what_is_of_the_object_counts() -> None:
    headers = {
        "content-md5": _encoded(16),
        "x-amz-checksum-crc32": _encoded(4),
        "repr-digest": f"sha-256=:{_encoded(32)}:",
    }
    assert _stated(headers, partial=True) == ["SHA256"]


def test_a_field_of_several_lines_is_one_list() -> None:
    lines = [
        b"HTTP/1.1 200 OK",
        f"x-goog-hash: crc32c={_encoded(4)}".encode(),
        b"X-Goog-Hash: md5=" + _encoded(16).encode(),
    ]
    assert _stated(parse_headers(lines)[1]) == ["CRC32C", "MD5"]


@given(
    st.dictionaries(
        st.sampled_from(["x-amz-checksum-crc32", "content-md5", "x-checksum-md5", "x-goog-hash"]), st.text()
    )
)
def test_no_header_makes_it_fail(headers: dict[str, str]) -> None:
    for checksum in stated_checksums(headers, partial=False):
        assert len(checksum.value) == checksum.algorithm.size


@pytest.mark.parametrize(
    ("etag", "headers", "expected"),
    [
        (MD5, {}, "MD5"),
        (f"{MD5}-12", {}, "MD5 of 12 parts"),
        (MD5, {"x-amz-server-side-encryption": "AES256"}, "MD5"),
        (MD5, {"x-amz-server-side-encryption": "aws:kms"}, None),
        (MD5, {"x-amz-server-side-encryption": "aws:kms:dsse"}, None),
        (MD5, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}, None),
        (MD5, {"x-amz-storage-class": "EXPRESS_ONEZONE"}, None),
        ("5f3e9b2a-1d", {}, None),
        (f"{MD5}-10001", {}, None),
        ("", {}, None),
    ],
)
def test_an_etag_is_an_md5_only_where_s3_makes_it_one(etag: str, headers: dict[str, str], expected: str | None) -> None:
    found = etag_checksum(etag, headers)
    assert (found and found.words) == expected


def _checksum(algorithm: ChecksumAlgorithm, parts: int = 0) -> ObjectChecksum:
    return ObjectChecksum(algorithm, bytes(algorithm.size), parts)


def test_the_quickest_checksum_is_used_first() -> None:
    order = [
        _checksum(ChecksumAlgorithm.CRC64NVME),
        _checksum(ChecksumAlgorithm.CRC32),
        _checksum(ChecksumAlgorithm.CRC32, 3),
        _checksum(ChecksumAlgorithm.SHA256, 3),
        _checksum(ChecksumAlgorithm.MD5, 3),
        _checksum(ChecksumAlgorithm.SHA256),
        _checksum(ChecksumAlgorithm.MD5),
    ]
    left = list(reversed(order))
    for expected in order:
        assert choose_checksum(left, Verify.BEST) == expected
        left.remove(expected)


@pytest.mark.parametrize(("level", "expected"), [(Verify.SHA256, "SHA256"), (Verify.SIZE, None), (Verify.NONE, None)])
def test_a_level_takes_what_reaches_it_first(level: Verify, expected: str | None) -> None:
    found = choose_checksum([_checksum(ChecksumAlgorithm.CRC32), _checksum(ChecksumAlgorithm.SHA256)], level)
    assert (found and found.words) == expected
