"""Asks S3 for the parts in which objects were uploaded: their sizes, and their checksums where the store keeps them."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from tonnage.source.client import Request
from tonnage.source.xml_document import read_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.contract import ChecksumAlgorithm, ObjectChecksum
    from tonnage.source.client import Client
    from tonnage.source.credentials import CredentialProvider
    from tonnage.source.request_target import RequestTarget

ANSWER_LIMIT = 4 << 20
"""Maximum size of an answer in bytes; a thousand parts take about 200 KB."""
PARTS_PER_ANSWER = 1000
MIB = 1 << 20


class Part(NamedTuple):
    """A part of an object: its size in bytes, and its checksum; empty if the store doesn't state it."""

    size: int
    checksum: bytes = b""


class PartsRequest(NamedTuple):
    """An object whose parts are asked for: its target, who asks, and its checksum of so many parts."""

    target: RequestTarget
    provider: CredentialProvider
    checksum: ObjectChecksum


class FoundParts(NamedTuple):
    """The parts of an object. ``certain``: as the store states them; otherwise guessed."""

    parts: tuple[Part, ...]
    certain: bool


def find_parts(client: Client, wanted: Sequence[PartsRequest]) -> list[FoundParts]:
    """Returns the parts of each object.

    GetObjectAttributes has sizes and checksums, but takes a permission of its own. Without it, the size of the first
    part is that of a HEAD of ``partNumber=1``, which the others have, too, if their number fits; otherwise each part is
    asked for. Without that, all parts have the size that the fewest MiB make.
    """
    found: dict[int, FoundParts] = {
        at: FoundParts(parts, certain=True) for at, parts in _by_attributes(client, wanted).items()
    }
    left = [at for at in range(len(wanted)) if at not in found]
    firsts = _part_sizes(client, [(wanted[at], 1) for at in left])
    uneven: list[int] = []
    for at, first in zip(left, firsts, strict=True):
        size, count = wanted[at].target.size, wanted[at].checksum.parts
        if first is not None and count == -(-size // first):
            found[at] = FoundParts(equal_parts(size, first), certain=True)
        elif first is not None and 0 < first < size and count > 1:
            uneven.append(at)
    for at in uneven:
        each = wanted[at]
        sizes = [size for size in _part_sizes(client, [(each, n + 1) for n in range(each.checksum.parts)]) if size]
        if len(sizes) == each.checksum.parts and sum(sizes) == each.target.size:
            found[at] = FoundParts(tuple(Part(size) for size in sizes), certain=True)
    for at, each in enumerate(wanted):
        if at not in found:
            size = guessed_part_size(each.target.size, each.checksum.parts)
            found[at] = FoundParts(equal_parts(each.target.size, size), certain=each.checksum.parts == 1)
    return [found[at] for at in range(len(wanted))]


def equal_parts(size: int, part_size: int) -> tuple[Part, ...]:
    """Returns parts of ``part_size`` bytes; the last one may be smaller."""
    return tuple(Part(min(part_size, size - start)) for start in range(0, size, part_size))


def guessed_part_size(size: int, count: int) -> int:
    """Returns the size of ``count`` equal parts, rounded up to whole MiB, as tools for uploads choose it."""
    return max(1, -(-size // (count * MIB))) * MIB


def _by_attributes(client: Client, wanted: Sequence[PartsRequest]) -> dict[int, tuple[Part, ...]]:
    """Returns the parts of those objects of which the store states all.

    A store that doesn't know the request may answer it with the object, of which ``ANSWER_LIMIT`` is read.
    """
    collected: dict[int, dict[int, Part]] = {at: {} for at in range(len(wanted))}
    markers = dict.fromkeys(collected, "0")
    complete: dict[int, tuple[Part, ...]] = {}
    while markers:
        numbers = list(markers)
        responses = client.run(
            [
                Request(
                    target=_with_query(wanted[at].target, "attributes"),
                    provider=wanted[at].provider,
                    limit=ANSWER_LIMIT,
                    optional=True,
                    amz_headers=(
                        ("x-amz-max-parts", str(PARTS_PER_ANSWER)),
                        ("x-amz-object-attributes", "ObjectParts"),
                        ("x-amz-part-number-marker", markers[at]),
                    ),
                )
                for at in numbers
            ]
        )
        markers = {}
        for at, response in zip(numbers, responses, strict=True):
            page: dict[int, Part] | None = None
            if response.failure is None and "xml" in response.headers.get("content-type", "xml"):
                page = parse_parts(response.body, wanted[at].checksum.algorithm)
            if page is None or not page.keys() - collected[at].keys():
                continue
            collected[at] |= page
            if len(collected[at]) < wanted[at].checksum.parts:
                markers[at] = str(max(collected[at]))
                continue
            parts = tuple(part for _, part in sorted(collected[at].items()))
            if len(parts) == wanted[at].checksum.parts and sum(each.size for each in parts) == wanted[at].target.size:
                complete[at] = parts
    return complete


def _part_sizes(client: Client, wanted: Sequence[tuple[PartsRequest, int]]) -> list[int | None]:
    """Returns the size of numbered parts; None for those that the store doesn't state."""
    responses = client.run(
        [
            Request(
                target=_with_query(each.target, f"partNumber={number}"),
                provider=each.provider,
                head=True,
                optional=True,
            )
            for each, number in wanted
        ]
    )
    sizes: list[int | None] = []
    for (each, _), response in zip(wanted, responses, strict=True):
        length = response.headers.get("content-length", "")
        known = response.failure is None and response.status == 206 and length.isascii() and length.isdigit()
        count = response.headers.get("x-amz-mp-parts-count", str(each.checksum.parts))
        sizes.append(int(length) if known and 0 < len(length) < 19 and count == str(each.checksum.parts) else None)
    return [size or None for size in sizes]


def _with_query(target: RequestTarget, query: str) -> RequestTarget:
    return structs.replace(target, url=f"{target.url}{'&' if '?' in target.url else '?'}{query}")


def parse_parts(body: bytes, algorithm: ChecksumAlgorithm) -> dict[int, Part] | None:
    """Returns the parts in an answer to GetObjectAttributes, by number; None if it is something else."""
    reader = _Reader(f"Checksum{algorithm.name}")
    try:
        read_document(body, reader)
    except ValueError:
        return None
    return reader.parts


class _Reader:
    """Collects the ``Part`` elements of a document. Elements with other names don't matter, nor how deep they are."""

    def __init__(self, checksum_name: str) -> None:
        self._checksum_name = checksum_name
        self._fields: dict[str, str] | None = None
        self._text = ""
        self.parts: dict[int, Part] = {}

    def start(self, name: str, _attributes: object) -> None:
        self._text = ""
        if name == "Part":
            self._fields = {}

    def text(self, text: str) -> None:
        self._text += text[:1024]

    def end(self, name: str) -> None:
        if self._fields is None:
            return
        if name != "Part":
            self._fields[name] = self._text.strip()
            return
        number, size = (self._fields.get(each, "") for each in ("PartNumber", "Size"))
        if not (_is_number(number) and _is_number(size)):
            raise ValueError("a part without number or size")
        try:
            checksum = base64.b64decode(self._fields.get(self._checksum_name, ""), validate=True)
        except (binascii.Error, ValueError):
            checksum = b""
        self.parts[int(number)] = Part(int(size), checksum)
        self._fields = None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19
