"""What a loader shows to peers of an entry: the finished ranges of its files, and the objects that they come from.

::

    <entry>/.tonnage/ranges.json    of a load that is running, or was interrupted; see ``PeerRanges``
    <entry>/.tonnage/headers.bin    as soon as it is known; see ``loading.peers.headers_file``

Other nodes write these files. They are parsed with limits, and nothing in them is believed without a hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from tonnage.cache.filesystem import read_file, translate_os_errors, write_atomically
from tonnage.cache.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.cache.entry import Entry

RANGES_NAME = "ranges.json"
HEADERS_NAME = "headers.bin"
VERSION = 1
MAX_RANGES = 10_000
"""Ranges in a file. Loaders publish no more, and read no more."""
MAX_RANGES_BYTES = 4 << 20
MAX_SOURCES = 10_000

_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class EntrySource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object that an entry comes from; see ``ObjectPin`` and ``source_place``."""

    place: _Text
    key: _Text
    size: _Size
    etag: _Text = ""
    version_id: _Text = ""


class FileRanges(msgspec.Struct, frozen=True, kw_only=True):
    """The finished ranges of a file below ``model/``: first byte and end, in order, not touching."""

    path: _Text
    size: _Size
    ranges: list[tuple[_Size, _Size]]


class PeerRanges(msgspec.Struct, frozen=True, kw_only=True):
    """What a load has on disk.

    Attributes:
        schema_version: ``VERSION``.
        digest: Digest of the revision.
        partial: Name of the directory of the unfinished files; empty if the entry is complete.
        sources: The objects of the entry.
        files: The finished ranges.
        pending: Ranges that this load is fetching from the source, so that others need not.
        headers: SHA-256 of the headers file beside it; empty: there is none yet.
    """

    schema_version: int = VERSION
    digest: _Text
    partial: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    sources: Annotated[list[EntrySource], msgspec.Meta(max_length=MAX_SOURCES)] = []
    files: Annotated[list[FileRanges], msgspec.Meta(max_length=MAX_RANGES)] = []
    pending: Annotated[list[FileRanges], msgspec.Meta(max_length=MAX_RANGES)] = []
    headers: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


def write_ranges(entry: Entry, ranges: PeerRanges) -> None:
    """Replaces what an entry shows.

    Raises:
        CacheNotWritable: It can't be written.
        InsufficientSpace: The medium is full.
    """
    write_atomically(entry.private_dir / RANGES_NAME, msgspec.json.encode(ranges), sync=False)


def remove_ranges(entry: Entry) -> None:
    """Shows nothing any more. The entry is complete, or its unfinished files are gone."""
    (entry.private_dir / RANGES_NAME).unlink(missing_ok=True)


def remove_peer_files(entry: Entry) -> None:
    """Removes all that an entry shows to peers beside its files, because it is emptied.

    Raises:
        CacheNotWritable: That is not possible.
    """
    for name in (RANGES_NAME, HEADERS_NAME):
        with translate_os_errors(f"{entry.private_dir / name} can't be removed"):
            (entry.private_dir / name).unlink(missing_ok=True)


def decode_ranges(data: bytes) -> PeerRanges:
    """Parses what an entry shows.

    Raises:
        CacheDamaged: It is not that, or of another version; or it has more ranges than ``MAX_RANGES``.
    """
    try:
        ranges = msgspec.json.decode(data, type=PeerRanges)
    except DECODE_ERRORS as error:
        raise CacheDamaged(f"The ranges of an entry can't be read: {error}.") from error
    if ranges.schema_version != VERSION:
        raise CacheDamaged(f"The ranges of an entry have version {ranges.schema_version}, not {VERSION}.")
    if sum(len(file.ranges) for file in (*ranges.files, *ranges.pending)) > MAX_RANGES:
        raise CacheDamaged(f"The ranges of an entry are more than {MAX_RANGES:,}.")
    return ranges


def ranges_of_manifest(data: bytes) -> PeerRanges:
    """Returns what a complete entry has, from its manifest.

    Raises:
        CacheDamaged: It is no manifest, or too large.
    """
    manifest = decode_manifest(data, where="of a peer")
    if len(manifest.files) > MAX_RANGES or len(manifest.sources) > MAX_SOURCES:
        raise CacheDamaged(f"The manifest of a peer lists {len(manifest.files):,} files.")
    return PeerRanges(
        digest=manifest.digest,
        sources=sources_of_manifest(manifest),
        files=[FileRanges(path=file.path, size=file.size, ranges=[(0, file.size)]) for file in manifest.files],
    )


def sources_of_manifest(manifest: Manifest) -> list[EntrySource]:
    """Returns the objects that a complete entry comes from."""
    return [
        EntrySource(place=each.place, key=each.key, size=each.size, etag=each.etag, version_id=each.version_id)
        for each in manifest.sources
    ]


def read_entry_sources(entry: Path) -> list[EntrySource] | None:
    """Returns the objects that a node's entry comes from, whether it is complete or not; None if there is none."""
    private = entry / ".tonnage"
    for name, limit in (("manifest.json", MAX_MANIFEST_BYTES), (RANGES_NAME, MAX_RANGES_BYTES)):
        try:
            data = read_file(private / name, limit=limit)
            if data is not None:
                return (decode_ranges(data) if name == RANGES_NAME else ranges_of_manifest(data)).sources
        except CacheDamaged:
            continue
    return None
