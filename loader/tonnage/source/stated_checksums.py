"""Which checksums of an object a response states, and which of them a load uses. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from tonnage.contract import ChecksumAlgorithm, ObjectChecksum, Verify, make_checksum
from tonnage.format.checksums import can_compute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_S3_ALGORITHMS = (
    ChecksumAlgorithm.CRC64NVME,
    ChecksumAlgorithm.CRC32C,
    ChecksumAlgorithm.CRC32,
    ChecksumAlgorithm.SHA256,
    ChecksumAlgorithm.SHA1,
)
_DIGEST_NAMES = {
    "sha-256": ChecksumAlgorithm.SHA256,
    "sha-512": ChecksumAlgorithm.SHA512,
    "crc32c": ChecksumAlgorithm.CRC32C,
    "md5": ChecksumAlgorithm.MD5,
}
"""Names in ``Repr-Digest``, ``Digest`` and ``x-goog-hash``, in lower case."""
_HEX_FIELDS = {
    "x-checksum-sha256": ChecksumAlgorithm.SHA256,
    "x-checksum-sha1": ChecksumAlgorithm.SHA1,
    "x-checksum-md5": ChecksumAlgorithm.MD5,
}
"""Fields with a hash of the whole file in hexadecimal, as Artifactory sends them."""
_MD5_ETAG = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?")
_FIELD_LIMIT = 2048
"""Maximum length of a header field that is parsed, in characters."""


def stated_checksums(headers: Mapping[str, str], *, partial: bool) -> tuple[ObjectChecksum, ...]:
    """Returns the checksums of an object that the header of a response states.

    The ETag is none of them: most servers make it of something other than the bytes; see ``etag_checksum``.

    Args:
        headers: The header; names in lower case.
        partial: Whether the response is to a request for a part, of which some fields then are.
    """
    found: list[ObjectChecksum | None] = []
    if not partial:
        found += [_s3_checksum(each, headers) for each in _S3_ALGORITHMS]
        found.append(_from_base64(ChecksumAlgorithm.MD5, headers.get("content-md5", "")))
    found.append(_from_base64(ChecksumAlgorithm.MD5, headers.get("x-ms-blob-content-md5", "")))
    for name in ("x-goog-hash", "repr-digest", "digest"):
        found += _digests(headers.get(name, ""))
    for name, algorithm in _HEX_FIELDS.items():
        found.append(make_checksum(algorithm, headers.get(name, "").strip().lower()[:_FIELD_LIMIT]))
    return tuple(dict.fromkeys(each for each in found if each is not None))


def etag_checksum(etag: str, headers: Mapping[str, str]) -> ObjectChecksum | None:
    """Returns the MD5 that an S3 ETag is: of the bytes, or of the MD5s of their parts. None if it is something else.

    Args:
        etag: A strong ETag without quotes.
        headers: The response's header. Of objects that are encrypted with a key of KMS or of the client, and of those
            in directory buckets, the ETag is no MD5.
    """
    encryption = headers.get("x-amz-server-side-encryption", "").lower()
    if (
        encryption.startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
        or headers.get("x-amz-storage-class", "").upper() == "EXPRESS_ONEZONE"
    ):
        return None
    match = _MD5_ETAG.fullmatch(etag)
    return None if match is None else make_checksum(ChecksumAlgorithm.MD5, match[1], parts=int(match[2] or 0))


def choose_checksum(stated: Iterable[ObjectChecksum], level: Verify) -> ObjectChecksum | None:
    """Returns the checksum to verify an object by, the one that is quickest to check.

    At level ``SHA256``, one that reaches it is preferred. CRCs of the whole object come first, then checksums of its
    parts, which are checked in parallel; last the hashes of a whole object, which take one core.

    Args:
        stated: The object's checksums.
        level: The requested level; None is returned for levels below ``BEST``.
    """
    if level.strength < Verify.BEST.strength:
        return None
    usable = [each for each in stated if can_compute(each.algorithm)]
    strong = [each for each in usable if each.algorithm.reaches_sha256] if level is Verify.SHA256 else []
    return min(strong or usable, key=_cost, default=None)


def reaches(checksum: ObjectChecksum | None, level: Verify) -> bool:
    """Returns whether an object that matches the checksum is verified at the level."""
    if level.strength < Verify.CRC32.strength or level is Verify.BEST:
        return True
    return checksum is not None and (level is not Verify.SHA256 or checksum.algorithm.reaches_sha256)


def suffices(stated: Iterable[ObjectChecksum], level: Verify) -> bool:
    """Returns whether one of the checksums verifies an object at the level; at ``BEST`` any does."""
    chosen = choose_checksum(stated, level)
    return chosen is not None and reaches(chosen, level)


def _cost(checksum: ObjectChecksum) -> tuple[int, int]:
    algorithm = checksum.algorithm
    order = (
        ChecksumAlgorithm.CRC64NVME,
        ChecksumAlgorithm.CRC32C,
        ChecksumAlgorithm.CRC32,
        ChecksumAlgorithm.SHA256,
        ChecksumAlgorithm.SHA1,
        ChecksumAlgorithm.GITSHA1,
        ChecksumAlgorithm.SHA512,
        ChecksumAlgorithm.MD5,
    )
    group = 1 if checksum.parts else 0 if algorithm.is_crc else 2
    return group, order.index(algorithm)


def _s3_checksum(algorithm: ChecksumAlgorithm, headers: Mapping[str, str]) -> ObjectChecksum | None:
    """Returns one of S3's checksums. That of parts ends in their number."""
    value, dash, parts = headers.get(f"x-amz-checksum-{algorithm.value}", "").strip().partition("-")
    if dash and re.fullmatch(r"[1-9][0-9]{0,4}", parts) is None:
        return None
    if not dash and headers.get("x-amz-checksum-type", "FULL_OBJECT").strip().upper() != "FULL_OBJECT":
        return None  # of parts, and their number is not stated
    return _from_base64(algorithm, value, parts=int(parts or 0))


def _digests(field: str) -> Iterator[ObjectChecksum | None]:
    """Parses ``sha-256=:<base64>:, md5=<base64>``, with colons as in RFC 9530 or without as in RFC 3230."""
    for entry in field[:_FIELD_LIMIT].split(","):
        name, _, value = entry.strip().partition("=")
        algorithm = _DIGEST_NAMES.get(name.strip().lower())
        if algorithm is not None:
            yield _from_base64(algorithm, value.strip().partition(";")[0].strip().strip(":"))


def _from_base64(algorithm: ChecksumAlgorithm, text: str, *, parts: int = 0) -> ObjectChecksum | None:
    try:
        value = base64.b64decode(text.strip()[:_FIELD_LIMIT], validate=True)
    except (binascii.Error, ValueError):
        return None
    return make_checksum(algorithm, value.hex(), parts=parts) if value else None
