"""The ``stream/`` directory of an entry: what readers see that start before the load has ended.

::

    <entry>/stream/tonnage-stream.json    all files and tensors that the entry will have
    <entry>/stream/config.json, …         companions
    <entry>/stream/tonnage-shards/…       files with tensors, each as soon as it is complete and verified

It exists only if a reader has asked for it. All files are hard links of those that the load writes, and later of those
in ``model/``: they need no space of their own, and appear whole. Files with tensors are in a folder that engines don't
list, because an engine that doesn't wait would take some of the shards for all of them.

The loader that holds ``load.lock`` writes here; so does a loader that finds a published entry. The directory itself is
never removed, because pods have it mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.filesystem import (
    PUBLISHED_MODE,
    TEMPORARY_SUFFIX,
    file_identity,
    make_directory,
    open_for_reading,
    read_file,
    remove_tree,
    translate_os_errors,
    write_atomically,
)
from tonnage.cache.manifest import (
    MANIFEST_VERSION,
    MAX_MANIFEST_BYTES,
    MAX_TABLE_BYTES,
    Manifest,
    TensorTable,
    check_table,
    is_safe_relative_path,
)
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import CacheDamaged, CacheNotWritable, Reason, error_for

if TYPE_CHECKING:
    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import FileRecord
    from tonnage.errors import TonnageError

STREAM_TABLE = "tonnage-stream.json"
STREAM_SHARDS = "tonnage-shards"
FAILED = "failed"
"""First line of a status file of a failed load."""
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_MAX_FAILURE_BYTES = 16 << 10
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StreamTable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a stream directory has, or will have.

    Attributes:
        manifest: Its files. The levels at which sources are verified have no meaning before the load has ended.
        table: Its tensors, without hashes before the load has ended.
        boot_id: The boot of the machine on which the load runs; empty once all files are published. Readers of another
            boot ignore the table: the files may not be on the disk.
        schema_version: As in manifests.
    """

    manifest: Manifest
    table: TensorTable
    boot_id: str = ""
    schema_version: int = MANIFEST_VERSION

    @property
    def is_published(self) -> bool:
        """Whether all files are published."""
        return not self.boot_id

    @property
    def ranks(self) -> frozenset[int]:
        """The ranks that the files are sharded by; empty if they are not."""
        return frozenset(file.rank for file in self.manifest.files if file.rank is not None)


class StreamNotPossible(CacheNotWritable):
    """The file system can't show a load before it has ended."""

    remedy = "Load without streaming: remove the annotation tonnage.dev/wait, or --stream."


def read_boot_id() -> str:
    """Returns an identifier of this boot of the machine; ``unknown`` where Linux has none."""
    try:
        return _BOOT_ID.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def stream_path(directory: Path, file: FileRecord) -> Path:
    """Returns where a file is in a stream directory. Companions keep their place, unless it is a reserved one."""
    keeps_place = file.kind == "companion" and file.path.partition("/")[0] not in {STREAM_TABLE, STREAM_SHARDS}
    return directory / file.path if keeps_place else directory / STREAM_SHARDS / file.path


def read_stream_table(directory: Path) -> StreamTable | None:
    """Returns the table of a stream directory; None if there is none, or one of another boot of the machine.

    Raises:
        CacheDamaged: It can't be read.
    """
    path = directory / STREAM_TABLE
    data = read_file(path, limit=MAX_MANIFEST_BYTES + MAX_TABLE_BYTES)
    if data is None:
        return None
    try:
        found = msgspec.json.decode(data, type=StreamTable)
    except DECODE_ERRORS as error:
        raise CacheDamaged(f"{path} can't be read: {error}.") from error
    if found.schema_version != MANIFEST_VERSION:
        raise CacheDamaged(
            f"{path} has schema version {found.schema_version}; this release of Tonnage reads {MANIFEST_VERSION} only."
        )
    unsafe = next((file.path for file in found.manifest.files if not is_safe_relative_path(file.path)), None)
    if unsafe is not None:
        raise CacheDamaged(f"{path} lists {unsafe!r}, which is not a path below its directory.")
    check_table(found.table, found.manifest, where=str(path))
    return found if found.is_published or found.boot_id == read_boot_id() else None


def request_stream(entry: Entry) -> None:
    """Asks the loader that works on the entry, now or later, to show its files before it has ended.

    Raises:
        CacheNotWritable: The directory can't be created.
    """
    make_directory(entry.stream_dir)


def is_stream_requested(entry: Entry) -> bool:
    """Returns whether a reader has asked for the stream."""
    return entry.stream_dir.is_dir()


def reset_stream(entry: Entry, published: Manifest | None = None) -> None:
    """Removes what the stream directory has of unfinished loads, but not the directory. Open files stay valid.

    Args:
        entry: The entry, in which no other loader is at work.
        published: Its manifest, whose files are kept; None removes all.

    Raises:
        CacheNotWritable: Something can't be removed.
    """
    if not entry.stream_dir.is_dir():
        return
    if published is None:
        remove_tree(entry.stream_dir / STREAM_TABLE)
    files = () if published is None else published.files
    kept = {entry.stream_dir / STREAM_TABLE, *(stream_path(entry.stream_dir, file) for file in files)}
    for folder, _, names in os.walk(entry.stream_dir):
        for name in names:
            if Path(folder, name) not in kept:
                remove_tree(Path(folder, name))


def add_to_stream(entry: Entry, file: FileRecord, source: Path) -> None:
    """Shows a complete file, which becomes read-only.

    Raises:
        StreamNotPossible: The file system has no hard links, or the file belongs to another user.
        CacheNotWritable: It can't be linked.
        InsufficientSpace: The medium is full.
    """
    target = stream_path(entry.stream_dir, file)
    if file_identity(target) == file_identity(source):
        return
    for folder in reversed(target.relative_to(entry.stream_dir).parents):
        make_directory(entry.stream_dir / folder)
    temporary = target.with_name(f"{target.name}.{os.urandom(8).hex()}{TEMPORARY_SUFFIX}")
    with translate_os_errors(f"{target} can't be created"):
        if source.stat().st_mode & 0o777 != PUBLISHED_MODE:
            with contextlib.suppress(PermissionError):
                source.chmod(PUBLISHED_MODE)
        try:
            os.link(source, temporary, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise StreamNotPossible(
                f"{source} can't be linked to {target}: the file system has no hard links, or the file belongs to "
                "another user."
            ) from error
        temporary.rename(target)


def write_stream_table(entry: Entry, table: StreamTable) -> None:
    """Writes the table.

    Raises:
        CacheNotWritable: It can't be written.
        InsufficientSpace: The medium is full.
    """
    write_atomically(entry.stream_dir / STREAM_TABLE, msgspec.json.encode(table), mode=PUBLISHED_MODE, sync=False)


def show_published(entry: Entry, manifest: Manifest, table: TensorTable) -> None:
    """Makes a stream directory show the files of a published entry.

    Raises:
        StreamNotPossible: The file system has no hard links, or the files belong to another user.
        CacheNotWritable: It can't be written.
        InsufficientSpace: The medium is full.
    """
    for file in manifest.files:
        add_to_stream(entry, file, entry.model_dir / file.path)
    write_stream_table(entry, StreamTable(manifest=manifest, table=table))


def shows(directory: Path, table: StreamTable, kinds: frozenset[str]) -> bool:
    """Returns whether all files of these kinds are there."""
    return all(stream_path(directory, file).is_file() for file in table.manifest.files if file.kind in kinds)


def record_failure(entry: Entry, error: TonnageError) -> None:
    """Records why a load failed, for readers that wait for it and see the whole entry.

    Raises:
        CacheNotWritable: It can't be written.
        InsufficientSpace: The medium is full.
    """
    write_atomically(failure_path(entry), format_failure(error.reason, error.message).encode(), sync=False)


def forget_failure(entry: Entry) -> None:
    """Removes the record of an earlier load's failure.

    Raises:
        CacheNotWritable: It can't be removed.
    """
    remove_tree(failure_path(entry))


def read_failure(path: Path) -> TonnageError | None:
    """Returns the failure in a status file; None if it has none, or doesn't exist."""
    try:
        with os.fdopen(open_for_reading(path), "rb") as file:
            text = file.read(_MAX_FAILURE_BYTES).decode(errors="replace")
    except OSError:
        return None
    lines = text.splitlines()
    if len(lines) < 2 or lines[0] != FAILED:
        return None
    reason = next((each for each in Reason if each.value == lines[1]), Reason.INTERNAL_ERROR)
    return error_for(reason, " ".join(lines[2:]) or "The load failed.")


def format_failure(reason: str, message: str) -> str:
    """Returns the contents of a status file for a failure: ``failed``, the reason and the message, one per line."""
    return f"{FAILED}\n{reason}\n{' '.join(message.split())}\n"


def failure_path(entry: Entry) -> Path:
    """Returns where the failure of the entry's last load is recorded, if it failed."""
    return entry.private_dir / "failure"
