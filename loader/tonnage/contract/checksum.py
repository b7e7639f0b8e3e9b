"""Checksums of whole objects that a source states, as text: ``crc64nvme:8e49c46600c8d49d`` or ``md5:<hex>-12``."""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

MAX_PARTS = 10_000
"""Maximum number of parts of an object in S3."""
CHECKSUM_PATTERN = r"^((crc64nvme|crc32c|crc32|md5|sha1|sha256|sha512|gitsha1):[0-9a-f]{8,128}(-[1-9][0-9]{0,4})?)?\Z"
"""The text of a checksum, or nothing."""


class ChecksumAlgorithm(enum.StrEnum):
    """Algorithms of objects' checksums."""

    CRC64NVME = "crc64nvme"
    CRC32C = "crc32c"
    CRC32 = "crc32"
    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA512 = "sha512"
    GITSHA1 = "gitsha1"
    """The object ID that Git gives a file: SHA-1 of a header with its size, and its bytes."""

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return _SIZES[self]

    @property
    def words(self) -> str:
        """Its name in messages and reports."""
        return "Git SHA1" if self is ChecksumAlgorithm.GITSHA1 else self.name

    @property
    def reaches_sha256(self) -> bool:
        """Whether an object that matches is verified at level ``SHA256``; otherwise it is at ``CRC32``."""
        return self in {ChecksumAlgorithm.SHA256, ChecksumAlgorithm.SHA512}

    @property
    def is_crc(self) -> bool:
        """Whether values of adjacent ranges combine to that of both, so that parts are checked as they arrive."""
        return self.value.startswith("crc")


_SIZES = {
    ChecksumAlgorithm.CRC64NVME: 8,
    ChecksumAlgorithm.CRC32C: 4,
    ChecksumAlgorithm.CRC32: 4,
    ChecksumAlgorithm.MD5: 16,
    ChecksumAlgorithm.SHA1: 20,
    ChecksumAlgorithm.SHA256: 32,
    ChecksumAlgorithm.SHA512: 64,
    ChecksumAlgorithm.GITSHA1: 20,
}


class ObjectChecksum(NamedTuple):
    """A checksum of an object.

    Attributes:
        algorithm: Its algorithm.
        value: Big-endian for a CRC.
        parts: 0 for a checksum of the object's bytes. Otherwise the number of parts in which the store received the
            object: the value is that of the parts' values, one after the other.
    """

    algorithm: ChecksumAlgorithm
    value: bytes
    parts: int = 0

    @property
    def words(self) -> str:
        """Its kind, such as ``CRC64NVME`` or ``MD5 of 12 parts``."""
        return self.algorithm.words + (f" of {self.parts} parts" if self.parts else "")

    def __str__(self) -> str:
        return f"{self.algorithm.value}:{self.value.hex()}" + (f"-{self.parts}" if self.parts else "")


def parse_checksum(text: str) -> ObjectChecksum | None:
    """Returns the checksum that ``str(ObjectChecksum)`` wrote; None if it is empty or not valid."""
    if not text or re.match(CHECKSUM_PATTERN, text) is None:
        return None
    name, _, rest = text.partition(":")
    digits, _, parts = rest.partition("-")
    return make_checksum(ChecksumAlgorithm(name), digits, parts=int(parts or 0))


def make_checksum(algorithm: ChecksumAlgorithm, digits: str, *, parts: int = 0) -> ObjectChecksum | None:
    """Returns a checksum of a value in hexadecimal digits; None if they are not as many as it has."""
    if re.fullmatch(r"[0-9A-Fa-f]+", digits) is None or len(digits) != 2 * algorithm.size or parts > MAX_PARTS:
        return None
    return ObjectChecksum(algorithm, bytes.fromhex(digits), parts)
