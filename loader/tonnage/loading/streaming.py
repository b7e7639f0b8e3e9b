"""Shows the files of a load in the entry's stream directory, as soon as each is complete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tonnage.cache import stream
from tonnage.cache.stream import StreamNotPossible, StreamTable
from tonnage.errors import CacheDamaged, CacheNotWritable, InsufficientSpace, Interrupted, Timeout
from tonnage.loading.cache_hit import missing_objects

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import FileRecord, Manifest, TensorTable
    from tonnage.contract import Plan
    from tonnage.source.resolve import ResolvedRevision

POLL_SECONDS = 0.05
_COMPANION = "companion"
_ALL_KINDS = frozenset({"companion", "index", "object", "shard"})


def open_gate(entry: Entry, plan: Plan, on_readable: Callable[[str], None]) -> StreamGate:
    """Returns the gate of a load whose caller lets readers start before it has ended.

    Raises:
        StreamNotPossible: The plan verifies what others may have written, which can be done only at the end; or this
            user may not write in the entry.
    """
    if plan.verify_on_hit:
        raise StreamNotPossible(
            f"{entry.path} is verified with the source before anyone reads it (verify_on_hit), so it can't be read "
            "while it is loaded."
        )
    return StreamGate(entry, on_readable)


class StreamGate:
    """Informs the caller of a load when readers can start, whichever loader writes the files.

    Args:
        entry: The entry, in which it asks for the stream.
        on_readable: Called once, with the entry's name.

    Raises:
        StreamNotPossible: This user may not write in the entry.
    """

    def __init__(self, entry: Entry, on_readable: Callable[[str], None]) -> None:
        self._entry = entry
        self._on_readable = on_readable
        self._open = False
        self._table: StreamTable | None = None
        self._table_identity: tuple[int, int] | None = None
        try:
            stream.request_stream(entry)
        except CacheNotWritable as error:
            raise StreamNotPossible(error.message) from error

    def open(self) -> None:
        """Lets readers start. May be called several times."""
        if not self._open:
            self._open = True
            self._on_readable(self._entry.name)

    def poll(self, resolved: ResolvedRevision) -> None:
        """Lets readers start if another loader shows all that this load wants."""
        if not self._open and self._shows(resolved, frozenset({_COMPANION})):
            self.open()

    def wait(self, resolved: ResolvedRevision, *, deadline: float | None, canceled: Callable[[], bool]) -> None:
        """Shows a published entry, or waits until another loader does, which is adding files to it.

        Raises:
            StreamNotPossible: The file system has no hard links, or the files belong to another user.
            CacheNotWritable: The stream can't be written.
            InsufficientSpace: The medium is full.
            CacheDamaged: The entry was removed, or can't be read.
            Timeout: The deadline passed.
            Interrupted: ``canceled`` returned True.
        """
        while not self._shows(resolved, _ALL_KINDS):
            lock = self._entry.try_acquire_load_lock()
            if lock is not None:
                with lock:
                    published = self._entry.read_published()
                    if published is None:
                        raise CacheDamaged(f"{self._entry.path} was removed while it was being opened.")
                    stream.show_published(self._entry, *published)
                break
            if canceled():
                raise Interrupted(f"Interrupted while another loader adds files to {self._entry.path}.")
            if deadline is not None and time.monotonic() > deadline:
                raise Timeout(f"The deadline passed while another loader added files to {self._entry.path}.")
            time.sleep(POLL_SECONDS)
        self.open()

    def _shows(self, resolved: ResolvedRevision, kinds: frozenset[str]) -> bool:
        table = self._read_table()
        return (
            table is not None
            and table.manifest.digest == resolved.digest
            and not missing_objects(table.manifest, resolved)
            and stream.shows(self._entry.stream_dir, table, kinds)
        )

    def _read_table(self) -> StreamTable | None:
        """Returns the table, which is read again only when it was replaced."""
        try:
            found = (self._entry.stream_dir / stream.STREAM_TABLE).stat()
            if (found.st_ino, found.st_mtime_ns) != self._table_identity:
                self._table = stream.read_stream_table(self._entry.stream_dir)
                self._table_identity = (found.st_ino, found.st_mtime_ns)
        except (OSError, CacheDamaged):
            return None
        return self._table


class StreamWriter:
    """Shows the files of one load, once a reader has asked for them.

    Args:
        entry: The entry, whose load lock the caller holds.
        folder: Where the load writes its files.
        published: The manifest of files that were published before; None if there are none.
        build_manifest: Returns what the entry will have.
        gate: Of this load's own caller; None if it has none. Then a file system without hard links is no error.
        on_note: Called with a sentence for the report.
        enabled: Whether files that are complete may be shown before the load has ended.
    """

    def __init__(
        self,
        entry: Entry,
        folder: Path,
        *,
        published: Manifest | None,
        build_manifest: Callable[[], tuple[Manifest, TensorTable]],
        gate: StreamGate | None,
        on_note: Callable[[str], None],
        enabled: bool = True,
    ) -> None:
        self._entry = entry
        self._folder = folder
        self._published = published
        self._build_manifest = build_manifest
        self._gate = gate
        self._on_note = on_note
        self._complete: set[str] = set()
        self._files: dict[str, FileRecord] = {}
        self._companions_left: set[str] = set()
        self._begun = False
        self._impossible = not enabled

    @property
    def begun(self) -> bool:
        """Whether a reader has asked, and files are shown."""
        return self._begun and not self._impossible

    def add(self, path: str) -> None:
        """Adds a file that is complete and verified, by its path in the entry.

        Raises:
            StreamNotPossible: The file system has no hard links.
            CacheNotWritable: The file can't be shown.
            InsufficientSpace: The medium is full.
        """
        self._complete.add(path)
        if self._begun:
            self._attempt(lambda: self._show(path))

    def poll(self) -> None:
        """Shows all files that are complete, if a reader has asked since the last call. Raises as ``add`` does."""
        if not self._begun and stream.is_stream_requested(self._entry):
            self._begun = True
            self._attempt(self._begin)

    def finish(self, manifest: Manifest, table: TensorTable) -> None:
        """Shows the published files, if a reader has asked. Raises as ``add`` does."""
        if stream.is_stream_requested(self._entry):
            self._attempt(lambda: stream.show_published(self._entry, manifest, table))
            if self._gate is not None:
                self._gate.open()

    def _begin(self) -> None:
        manifest, table = self._build_manifest()
        self._files = {file.path: file for file in manifest.files}
        before = {file.path: file for file in (() if self._published is None else self._published.files)}
        for path, file in before.items():
            if path in self._files:
                stream.add_to_stream(self._entry, file, self._entry.model_dir / path)
        companions = {file.path for file in manifest.files if file.kind == _COMPANION}
        self._companions_left = companions - before.keys()
        stream.write_stream_table(
            self._entry, StreamTable(manifest=manifest, table=table, boot_id=stream.read_boot_id())
        )
        for path in sorted(self._complete, key=lambda path: path not in companions):
            self._show(path)
        self._open_gate()

    def _show(self, path: str) -> None:
        stream.add_to_stream(self._entry, self._files[path], self._folder / path)
        self._companions_left.discard(path)
        self._open_gate()

    def _open_gate(self) -> None:
        if self._gate is not None and not self._companions_left:
            self._gate.open()

    def _attempt(self, step: Callable[[], None]) -> None:
        if self._impossible:
            return
        try:
            step()
        except (CacheNotWritable, InsufficientSpace) as error:
            if self._gate is not None:
                raise
            self._impossible = True
            self._on_note(f"Readers can't see this load before it has ended: {error.message}")
