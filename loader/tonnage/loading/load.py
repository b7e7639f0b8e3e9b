"""Runs a load: resolve, lock, hit or transfer, publish, report."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.cache import Cache
from tonnage.cache.medium import inspect_medium
from tonnage.cache.verified_by import verified_by
from tonnage.contract import Outcome, Progress, Report, Verify, entry_name
from tonnage.errors import (
    CacheDamaged,
    CacheInUse,
    CacheNotWritable,
    InsufficientSpace,
    InternalError,
    Interrupted,
    TonnageError,
    escape_unprintable,
)
from tonnage.loading.cache_hit import (
    Shortfall,
    check_sources,
    find_shortfall,
    has_computed_buffers_elsewhere,
    recorded_pins,
)
from tonnage.loading.resolve_only import check_digest, deadline_of, resolve_or_ask_peers
from tonnage.planning.file_names import is_own_file
from tonnage.record import MutableRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry, Published
    from tonnage.cache.locks import FileLock
    from tonnage.cache.manifest import Manifest, TensorTable
    from tonnage.cache.partial import PartialDirectory
    from tonnage.contract import Plan
    from tonnage.loading.fill import FillResult
    from tonnage.loading.streaming import StreamGate
    from tonnage.source.resolve import ResolvedRevision


class LoadResult(MutableRecord):
    """The result of a load: its report, and the entry's use lock if ``keep_lock`` was set."""

    report: Report
    lock: FileLock | None = None


def run_plan(
    plan: Plan,
    *,
    cache: Path | str | Cache,
    environment: Mapping[str, str],
    on_progress: Callable[[Progress], None] = lambda _: None,
    canceled: Callable[[], bool] = lambda: False,
    keep_lock: bool = False,
    on_readable: Callable[[str], None] | None = None,
    may_fork: bool = False,
) -> LoadResult:
    """Loads the plan's sources into the cache, unless they are already there.

    Args:
        plan: The plan.
        cache: The cache's root directory, created if missing; or a ``flat.Folder`` that gets the files themselves.
        environment: Environment variables with credentials, endpoints and proxies.
        on_progress: Called with the progress a few times a second.
        canceled: Polled several times a second; return True to cancel. Data on disk is kept.
        keep_lock: Keep the entry's use lock and return it in the result.
        on_readable: Called once with the entry's name, when readers that wait can start: all companions are there, and
            the table of files. None: nothing is shown before the load has ended, unless another reader has asked.
        may_fork: Whether this process may be forked, because it runs nothing else: the load then starts sooner.

    Raises:
        TonnageError: The load failed. ``details`` has fields for the report.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    load = _Load(plan, cache, environment, on_progress, canceled, on_readable, may_fork=may_fork)
    return load.run(keep_lock=keep_lock)


class _Load:
    """The state of one load."""

    def __init__(
        self,
        plan: Plan,
        cache: Cache,
        environment: Mapping[str, str],
        on_progress: Callable[[Progress], None],
        canceled: Callable[[], bool],
        on_readable: Callable[[str], None] | None,
        *,
        may_fork: bool,
    ) -> None:
        self._plan = plan
        self._cache = cache
        self._environment = environment
        self._send_progress = on_progress
        self._canceled = canceled
        self._on_readable = on_readable
        self._may_fork = may_fork
        self._gate: StreamGate | None = None
        self._started = time.monotonic()
        self._deadline = deadline_of(plan, self._started)
        self._resolved: ResolvedRevision | None = None
        self._entry: Entry | None = None
        self._notes: list[str] = []
        self._retries = 0
        self._found_damaged: tuple[Manifest, CacheDamaged] | None = None

    def run(self, *, keep_lock: bool) -> LoadResult:
        try:
            return self._run(keep_lock=keep_lock)
        except TonnageError as error:
            error.details.setdefault("seconds", self._elapsed_seconds())
            error.details.setdefault("retries", self._retries)
            if self._resolved is not None:
                error.details.setdefault("revision", self._resolved.revision)
                error.details.setdefault("digest", self._resolved.digest)
            if self._entry:
                error.details.setdefault("entry", "" if self._entry.is_flat else self._entry.name)
                from tonnage.cache.capacity import bytes_on_disk  # not imported for a hit

                with contextlib.suppress(OSError):
                    error.details.setdefault("medium", inspect_medium(self._entry.path))
                    error.details.setdefault("bytes", bytes_on_disk(self._entry))
            raise

    def _run(self, *, keep_lock: bool) -> LoadResult:
        plan = self._plan
        self._on_progress(Progress(phase="resolving"))
        resolved = self._resolved = resolve_or_ask_peers(
            self._pin_as_recorded(plan),
            self._cache,
            environment=self._environment,
            deadline=self._deadline,
            canceled=self._canceled,
            on_retry=self._count_retry,
        )
        check_digest(plan, resolved)
        self._cache.create()
        entry = self._entry = self._cache.entry(
            plan.entry or entry_name(resolved.revision, plan.layout, plan.computed_buffers)
        )
        entry.create()
        use_lock = entry.acquire_use_lock(deadline=self._deadline, canceled=self._canceled)
        try:
            if self._on_readable is not None:
                from tonnage.loading.streaming import open_gate  # not imported for a load without readers

                self._gate = open_gate(entry, self._plan, self._on_readable)
            manifest = self._find_hit(entry, resolved)
            if manifest is None:
                report = self._fill_entry(entry, resolved, use_lock)
            else:
                report = self._build_report(Outcome.HIT, entry, manifest)
            if self._gate is not None:
                self._gate.wait(resolved, deadline=self._deadline, canceled=self._canceled)
        except BaseException:
            use_lock.release()
            raise
        if keep_lock:
            return LoadResult(report, use_lock)
        use_lock.release()
        return LoadResult(report)

    def _pin_as_recorded(self, plan: Plan) -> Plan:
        """Returns the plan with the pins that its entry recorded, if the plan has only their digest.

        A hit then needs no listing, and stays one when the source gets more objects or other versions. Access is still
        checked for each object. Plans of several sources are not changed.
        """
        if len(plan.sources) != 1 or plan.sources[0].objects is not None or not (plan.entry and plan.expected_digest):
            return plan
        try:
            manifest = self._cache.entry(plan.entry).read_manifest()
        except CacheDamaged:
            return plan
        pins = recorded_pins(manifest, plan.expected_digest) if manifest is not None else None
        if pins is None:
            return plan
        return msgspec.structs.replace(plan, sources=(msgspec.structs.replace(plan.sources[0], objects=pins),))

    def _on_progress(self, progress: Progress) -> None:
        """Passes progress on, with the remarks of resolving."""
        notes = self._resolved.notes if self._resolved is not None else ()
        self._send_progress(msgspec.structs.replace(progress, notes=notes) if notes else progress)

    def _count_retry(self) -> None:
        """Counts a retry of a listing, of resolving or of reading an index."""
        self._retries += 1

    def _find_hit(self, entry: Entry, resolved: ResolvedRevision) -> Manifest | None:
        """Returns the manifest if the entry has all requested objects as planned, verified at the requested level."""
        try:
            manifest = entry.read_manifest()
            if manifest is None or manifest.digest != resolved.digest:
                return None
            entry.check_files(manifest)
            check_sources(manifest, resolved, where=entry.path)
            if self._has_computed_buffers_elsewhere(entry, manifest):
                return None
            shortfall = find_shortfall(manifest, resolved, self._plan.verify)
            if (
                shortfall is Shortfall.CHECKSUMS
                and self._plan.verify is Verify.BEST
                and not os.access(entry.path, os.W_OK)
            ):
                shortfall = Shortfall.NOTHING
            if shortfall is not Shortfall.NOTHING:
                return None
            self._verify_on_hit(entry, manifest, resolved)
        except CacheDamaged:
            return None
        return manifest

    def _verify_on_hit(self, entry: Entry, manifest: Manifest, resolved: ResolvedRevision) -> None:
        """Verifies an entry with the source, if the plan wants that.

        Raises:
            CacheDamaged: It is not what the source has. So is any call with the same manifest after that.
        """
        if not self._plan.verify_on_hit or manifest.digest != resolved.digest:
            return
        if self._found_damaged is not None and self._found_damaged[0] == manifest:
            raise self._found_damaged[1]
        from tonnage.loading import verify_on_hit  # not imported for other hits

        settings = verify_on_hit.Settings(
            self._environment, self._deadline, self._on_progress, self._canceled, self._count_retry
        )
        try:
            copied = verify_on_hit.verify_with_source(entry, manifest, resolved, self._plan, settings)
        except CacheDamaged as error:
            self._found_damaged = manifest, error
            raise
        self._notes.append(
            "The entry was verified with the source"
            + (f", which has no SHA-256 of {copied:,} bytes: they were read again." if copied else ".")
        )

    def _has_computed_buffers_elsewhere(self, entry: Entry, manifest: Manifest) -> bool:
        def read_table() -> TensorTable | None:
            return published.table if (published := entry.read_published()) is not None else None

        return has_computed_buffers_elsewhere(manifest, self._plan.computed_buffers, read_table)

    def _fill_entry(self, entry: Entry, resolved: ResolvedRevision, use_lock: FileLock) -> Report:
        """Acquires the load lock and loads what is missing."""

        def canceled() -> bool:
            if self._gate is not None:
                self._gate.poll(resolved)
            return self._canceled()

        with entry.acquire_load_lock(
            deadline=self._deadline,
            canceled=canceled,
            on_wait=lambda: self._report_waiting(entry, resolved),
        ) as load_lock:
            manifest = self._find_hit(entry, resolved)
            if manifest is not None:
                return self._build_report(Outcome.HIT, entry, manifest)
            from tonnage.cache.partial import find_partials

            self._require_writable(entry)
            found = find_partials(entry)
            partials = found if self._is_alone(entry, load_lock) else None
            manifest = self._recover_entry(entry, resolved, partials)
            if manifest is not None and find_shortfall(manifest, resolved, self._plan.verify) is not Shortfall.OBJECTS:
                return self._build_report(Outcome.HIT, entry, self._verify_again(entry, manifest, resolved))
            existing = None if manifest is None else entry.read_published()
            earlier = next((partial for partial in partials or () if partial.path.exists()), None)
            locks = (load_lock.fileno(), use_lock.fileno())
            try:
                fill_result = self._fill(entry, resolved, existing, earlier, locks)
            except CacheInUse:  # locks lock nothing here, and another loader has loaded the same
                manifest = self._find_hit(entry, resolved)
                if manifest is None:
                    raise
                return self._build_report(Outcome.HIT, entry, manifest)
            except TonnageError as error:
                self._record_failure(entry, error)
                raise
            if fill_result.outcome.resumed:
                fill_result = self._verify_resumed(entry, resolved, fill_result, locks)
            return self._build_report(Outcome.LOADED, entry, fill_result.manifest, fill_result)

    def _fill(
        self,
        entry: Entry,
        resolved: ResolvedRevision,
        existing: Published | None,
        earlier: PartialDirectory | None,
        locks: tuple[int, ...],
    ) -> FillResult:
        from tonnage.loading.start_fill import start_fill  # not imported for a hit

        return start_fill(
            self._plan,
            entry,
            resolved,
            existing=existing,
            earlier=earlier,
            environment=self._environment,
            deadline=self._deadline,
            on_progress=self._on_progress,
            on_note=self._notes.append,
            canceled=self._canceled,
            on_retry=self._count_retry,
            lock_descriptors=locks,
            gate=self._gate,
            may_fork=self._may_fork,
        )

    def _verify_resumed(
        self, entry: Entry, resolved: ResolvedRevision, filled: FillResult, locks: tuple[int, ...]
    ) -> FillResult:
        """Verifies with the source what a load has resumed, if the plan wants that: the journal proves nothing then."""
        from tonnage.cache import commit

        try:
            self._verify_on_hit(entry, filled.manifest, resolved)
        except CacheDamaged as error:
            commit.clear(entry)
            self._notes.append(f"What an earlier load had left was damaged, and was loaded again: {error.message}")
            return self._fill(entry, resolved, None, None, locks)
        return filled

    def _require_writable(self, entry: Entry) -> None:
        """Checks that the entry can be written to; if not, and it was found damaged, that is the error."""
        from tonnage.cache.partial import require_writable

        try:
            require_writable(entry)
        except CacheNotWritable:
            if self._found_damaged is not None:
                raise self._found_damaged[1] from None
            raise

    def _record_failure(self, entry: Entry, error: TonnageError) -> None:
        """Records a failure for readers that wait. An interrupted one may go on, in this pod or another."""
        from tonnage.cache.stream import is_stream_requested, record_failure

        with contextlib.suppress(CacheNotWritable, InsufficientSpace):
            if is_stream_requested(entry) and not isinstance(error, Interrupted):
                record_failure(entry, error)

    def _is_alone(self, entry: Entry, load_lock: FileLock) -> bool:
        """Returns whether no other loader is at work in the entry: the lock keeps others out, or nothing is written."""
        from tonnage.cache.lock_scope import excludes_all_others
        from tonnage.cache.partial import IDLE_SECONDS, seconds_since_last_write

        if excludes_all_others(load_lock) or seconds_since_last_write(entry) > IDLE_SECONDS:
            return True
        self._notes.append(
            f"Locks may not work on the file system of {entry.path}, and a load has written there within the last "
            f"{IDLE_SECONDS / 60:.0f} minutes: this one started over, beside it."
        )
        return False

    def _report_waiting(self, entry: Entry, resolved: ResolvedRevision) -> None:
        from tonnage.cache.lock_holders import describe_lock_holders, find_lock_holders

        self._on_progress(
            Progress(
                phase="waiting",
                total_bytes=sum(item.pin.size for item in resolved.objects),
                waiting_for=describe_lock_holders(find_lock_holders(entry.load_lock_path)),
            )
        )

    def _recover_entry(
        self, entry: Entry, resolved: ResolvedRevision, partials: Sequence[PartialDirectory] | None
    ) -> Manifest | None:
        """Recovers the entry, and returns the manifest of published files to keep.

        A damaged entry is cleared even while it is in use: processes keep the files that they have open or mapped. A
        complete entry of another revision or of another plan, with a name chosen by the user, is not changed. An entry
        of a release that had computed buffers in the shards is cleared, to be loaded as planned.

        Args:
            entry: The entry.
            resolved: The revision to load.
            partials: What unfinished loads have left; None if another loader may be at work, so that nothing of it may
                be changed.

        Raises:
            CacheInUse: The name is used by another revision, or has computed buffers elsewhere than planned.
        """
        from tonnage.cache import commit  # not imported for a hit

        elsewhere = False
        try:
            manifest = entry.read_manifest()
            if manifest is not None:
                entry.check_files(manifest)
                check_sources(manifest, resolved, where=entry.path)
                self._verify_on_hit(entry, manifest, resolved)
                if find_shortfall(manifest, resolved, self._plan.verify) is Shortfall.CHECKSUMS:
                    self._verify_again(entry, manifest, resolved)
                elsewhere = self._has_computed_buffers_elsewhere(entry, manifest)
        except CacheDamaged as error:
            commit.clear(entry)
            self._notes.append(f"The entry was damaged and has been reloaded: {error.message}")
        if partials is not None:
            commit.recover(entry, partials)
        if (manifest := entry.read_manifest()) is None:
            return None
        if manifest.digest == resolved.digest and not elsewhere:
            return manifest
        if entry.is_flat:
            from tonnage.loading.folder import replace_revision

            self._notes.append(replace_revision(entry, manifest))
            return None
        if manifest.digest == resolved.digest:
            if manifest.computed_buffers is not None:
                raise CacheInUse(
                    f"{entry.path} contains this revision with --computed-buffers {manifest.computed_buffers.value}: "
                    f"remove it with `tonnage rm {entry.name}` first, or choose another name."
                )
            commit.clear(entry)
            self._notes.append(
                "The entry was loaded by an earlier release, with buffers in the shards that engines compute "
                "themselves; it has been reloaded without them."
            )
            return None
        raise CacheInUse(
            f"{entry.path} contains revision {manifest.revision}, but {resolved.revision} should be loaded there: "
            f"remove it with `tonnage rm {entry.name}` first."
        )

    def _verify_again(self, entry: Entry, manifest: Manifest, resolved: ResolvedRevision) -> Manifest:
        """Verifies an entry that lacks nothing else at the requested level, without loading it, if it was at a lower.

        Raises:
            CacheDamaged: It is damaged, or can't be verified without loading it again.
            NoChecksum: The source states no checksum for that.
        """
        from tonnage.loading import reverification  # not imported for a hit

        shortfall, level = find_shortfall(manifest, resolved, self._plan.verify), self._plan.verify
        if shortfall is Shortfall.VERIFICATION:
            return reverification.verify_by_own_hashes(entry, manifest, level, self._on_progress, self._canceled)
        if shortfall is Shortfall.CHECKSUMS:
            return reverification.compare_with_checksums(
                entry, manifest, resolved, level, self._on_progress, self._canceled
            )
        return manifest

    def _build_report(
        self, outcome: Outcome, entry: Entry, manifest: Manifest, fill_result: FillResult | None = None
    ) -> Report:
        if self._resolved is None:
            raise InternalError("A report was requested before the source was resolved.")
        return Report(
            outcome=outcome,
            revision=self._resolved.revision,
            digest=self._resolved.digest,
            entry="" if entry.is_flat else entry.name,
            path=str(entry.model_dir),
            bytes=manifest.bytes,
            downloaded_bytes=fill_result.outcome.downloaded if fill_result else 0,
            resumed_bytes=fill_result.outcome.resumed if fill_result else 0,
            peer_bytes=fill_result.outcome.peer_bytes if fill_result else 0,
            dropped_peers=tuple(fill_result.outcome.dropped_peers) if fill_result else (),
            headers_digest=fill_result.headers_digest if fill_result else "",
            retries=self._retries + (fill_result.outcome.retries if fill_result else 0),
            seconds=self._elapsed_seconds(),
            tensors=sum(source.tensors for source in manifest.sources),
            segments=(
                fill_result.segments
                if fill_result
                else sum(file.kind in {"shard", "object"} and not is_own_file(file.path) for file in manifest.files)
            ),
            verified=manifest.verified,
            verified_by=verified_by(manifest.sources),
            notes=tuple(map(escape_unprintable, dict.fromkeys((*self._resolved.notes, *manifest.notes, *self._notes)))),
            served_by=escape_unprintable(manifest.served_by),
            medium=inspect_medium(entry.path),
            identity=self._plan.identity,
        )

    def _elapsed_seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)
