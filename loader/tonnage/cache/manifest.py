"""What an entry holds: ``manifest.json``, small and read on every hit, and its table of tensors, read for checks.

The manifest's rename is the one commit point of a load: without it, an entry has nothing. It names the table's file
with its size and SHA-256, so the two always belong together.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeVar

import msgspec

from tonnage.contract import FileKind, Layout, Verify
from tonnage.errors import CacheDamaged

MANIFEST_VERSION = 1
"""The one schema version of manifests and tables that this release reads and writes."""

TABLE_NAME = "tensors.json"
"""What the table's file is called, unless a table that is still in use has that name."""

MAX_MANIFEST_BYTES = 64 << 20
MAX_TABLE_BYTES = 1 << 30
"""Bytes beyond which a file is refused unread: none of ours comes near."""

Size = Annotated[int, msgspec.Meta(ge=0)]


class SourceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object that the entry was made of, as it was pinned.

    ``place`` is the bucket, empty for HTTP; ``key`` the S3 key or the URL without query. ``verified`` is how far the
    bytes of this object were checked when they arrived, ``strongest`` how far its own hashes allow to check them.
    ``tensors`` counts those that the entry holds of it.
    """

    place: str
    key: str
    size: Size
    kind: Literal["tensors", "companion"]
    etag: str = ""
    version_id: str = ""
    rank: int | None = None
    encrypted: bool = False
    verified: Verify = Verify.SIZE
    strongest: Verify = Verify.SHA256
    tensors: Size = 0


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file below ``model/``.

    ``path`` is relative to it, with slashes. ``kind`` is ``shard`` (safetensors), ``index`` (of the shards),
    ``companion`` or ``object`` (a ``.tensors`` file as it was). ``source`` is a position in ``Manifest.sources``, None
    for files of our own making. ``rest_crc32`` is the CRC-32 of all bytes that belong to no tensor, in order (of a
    companion: the whole file), taken at publishing; None where nothing is known but the size.
    """

    path: str
    size: Size
    kind: FileKind
    source: Size | None = None
    rank: int | None = None
    rest_crc32: Size | None = None


class TableRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The table's file in ``.tonnage/``; ``sha256`` in hex."""

    name: str
    size: Size
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a published entry holds.

    ``created`` is the Unix time of publishing. ``bytes`` is the sum of the files' sizes. ``verified`` is the weakest of
    what was checked for any object with tensors. ``table`` is filled in by ``Entry.publish``.
    """

    revision: str
    digest: str
    layout: Layout
    verified: Verify
    created: float
    tonnage_version: str
    bytes: Size
    schema_version: int = MANIFEST_VERSION
    notes: tuple[str, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()
    table: TableRecord | None = None


class TensorRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One tensor of an entry. Written as a list, for a model may have tens of thousands.

    Attributes:
        name: Its flat name, as engines say it.
        path: Its nested path, where it has one that is not just the name.
        source: Position in ``Manifest.sources``.
        kind: The format's tensor kind (0 parameter, 1 buffer, 2 state dict).
        dtype: As stored in the ``.tensors`` file.
        shape: Its dimensions.
        file: Position in ``Manifest.files``; -1 if no file holds it (a meta tensor in the safetensors layout).
        offset: Where its data begins in that file, in bytes from the file's start.
        length: Bytes of data.
        header_offset: Where its header begins in the source object.
        header: The header's bytes as they take part in the hash, before the data; empty where they weren't kept.
        crc32: CRC-32 that the source states for header and data; None where there is none that holds (encrypted).
        sha256: SHA-256 likewise, in hex.
    """

    name: str
    path: tuple[str | int, ...] | None
    source: Size
    kind: Size
    dtype: str
    shape: tuple[Size, ...]
    file: Annotated[int, msgspec.Meta(ge=-1)]
    offset: Size
    length: Size
    header_offset: Size
    header: bytes
    crc32: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] | None = None
    sha256: str | None = None

    @property
    def has_checksum(self) -> bool:
        return self.crc32 is not None or self.sha256 is not None


class TensorTable(msgspec.Struct, frozen=True, kw_only=True):
    """All tensors of an entry, in the order of the sources and within one of them of the object."""

    schema_version: int = MANIFEST_VERSION
    tensors: tuple[TensorRecord, ...] = ()


_T = TypeVar("_T", Manifest, TensorTable)


class _Versioned(msgspec.Struct):
    schema_version: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Returns the manifest as JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Reads a manifest and checks that it makes sense by itself.

    Args:
        data: The file's bytes.
        where: What an error calls it.

    Raises:
        CacheDamaged: It isn't one, is of an unknown schema version, or names files that can't be.
    """
    manifest = _decode(data, Manifest, where=where)
    seen = set()
    for file in manifest.files:
        if not is_safe_relative_path(file.path) or file.path in seen:
            raise CacheDamaged(f"The manifest {where} names {file.path!r}, which is no file of its own below model/.")
        if file.source is not None and file.source >= len(manifest.sources):
            raise CacheDamaged(f"The manifest {where} says that {file.path!r} came from a source that it doesn't list.")
        seen.add(file.path)
    if manifest.table is not None and ("/" in manifest.table.name or not is_safe_relative_path(manifest.table.name)):
        raise CacheDamaged(f"The manifest {where} has a table of tensors at {manifest.table.name!r}, which is no name.")
    return manifest


def encode_table(table: TensorTable) -> bytes:
    """Returns the table as one line of JSON."""
    return msgspec.json.encode(table)


def decode_table(data: bytes, manifest: Manifest, *, where: str) -> TensorTable:
    """Reads the table of tensors that belongs to ``manifest``.

    Raises:
        CacheDamaged: It is not the one that the manifest names, or a tensor lies outside of its file.
    """
    record = manifest.table
    if record is None:
        raise CacheDamaged(f"The manifest beside {where} names no table of tensors.")
    if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
        raise CacheDamaged(
            f"{where} ({len(data):,} bytes) is not the table of tensors that the manifest was made with."
        )
    table = _decode(data, TensorTable, where=where)
    check_table(table, manifest, where=where)
    return table


def check_table(table: TensorTable, manifest: Manifest, *, where: str) -> None:
    """Refuses a table whose tensors are not in the manifest's files and sources.

    Raises:
        CacheDamaged: Naming the first such tensor.
    """
    sizes = [file.size for file in manifest.files]
    sources = len(manifest.sources)
    for tensor in table.tensors:
        if tensor.source >= sources or tensor.file >= len(sizes):
            raise CacheDamaged(f"{where} says that the tensor {tensor.name!r} is in a file or source that isn't there.")
        if tensor.file >= 0 and tensor.offset + tensor.length > sizes[tensor.file]:
            raise CacheDamaged(
                f"{where} says that the tensor {tensor.name!r} ends at {tensor.offset + tensor.length:,}, beyond the "
                f"{sizes[tensor.file]:,} bytes of {manifest.files[tensor.file].path!r}."
            )


def table_record(data: bytes, name: str = TABLE_NAME) -> TableRecord:
    """Returns what a manifest says about the encoded table ``data``."""
    return TableRecord(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def is_safe_relative_path(path: str) -> bool:
    """Says whether ``path`` is relative and stays below its folder: no ``..``, no empty part, no NUL."""
    plain = "\0" not in path and str(PurePosixPath(path)) == path
    return plain and path not in {"", "."} and not path.startswith("/") and ".." not in path.split("/")


def _decode(data: bytes, kind: type[_T], *, where: str) -> _T:
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version != MANIFEST_VERSION:
            raise CacheDamaged(
                f"{where} has schema version {version}; this release of Tonnage reads version {MANIFEST_VERSION} only."
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CacheDamaged(f"{where} can't be read: {error}.") from error
