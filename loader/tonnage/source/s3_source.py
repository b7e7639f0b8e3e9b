"""Pins the objects of one bucket: list, select, HEAD. Pins that the plan already has are checked by HEAD."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from tonnage.contract import AddressingStyle, ObjectPin, StoreBehavior, Verify, source_place
from tonnage.contract.selection import key_directory
from tonnage.errors import (
    AccessDenied,
    BucketNotFound,
    EndpointUnreachable,
    InvalidPlan,
    NoTensorFiles,
    ObjectNotFound,
    Reason,
    RequestRejected,
    SourceChanged,
    StoreUnsupported,
    TLSVerificationFailed,
    TonnageError,
    escape_unprintable,
)
from tonnage.source.aws_config import s3_settings
from tonnage.source.checksum_lists import MAX_LIST_BYTES, lists_for, parse_lists
from tonnage.source.client import Request
from tonnage.source.endpoint_urls import bucket_url, check_bucket, quote, quote_key
from tonnage.source.head_objects import check_encoding, head_objects, head_or_raise
from tonnage.source.index_files import (
    IndexFile,
    check_indexes,
    check_shards,
    read_index_files,
    select_listed,
    with_pinned_indexes,
)
from tonnage.source.listing import FIRST_PAGE, PAGE_LIMIT, Cursor, Listing, Page, list_query, parse_page
from tonnage.source.pinned import PinnedObject, PinnedSource, RequestContext, pin_checksum
from tonnage.source.request_failure import RequestFailure
from tonnage.source.request_target import RequestTarget, allows_inner_redirects
from tonnage.source.responses import strong_etag
from tonnage.source.selection import check_pins_selected, check_requestable, filter_ranks, select
from tonnage.source.small_objects import read_objects
from tonnage.source.stated_checksums import suffices

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.contract import FileSelection, ObjectChecksum, S3Source
    from tonnage.source.aws_config import S3Settings
    from tonnage.source.head_objects import ObjectHead
    from tonnage.source.selection import SelectedObject, Selection

MAX_OBJECTS = 100_000
"""A prefix with more objects is not the prefix of one model."""
_NO_LIST_V2 = {Reason.REQUEST_REJECTED, Reason.STORE_UNSUPPORTED}
"""Reasons of a first page for which ListObjects is tried in place of ListObjectsV2."""

_NOT_BY_VERSION = {
    Reason.ACCESS_DENIED,
    Reason.OBJECT_NOT_FOUND,
    Reason.REQUEST_REJECTED,
    Reason.STORE_UNSUPPORTED,
}
"""Reasons why an object that exists can't be requested by its version."""
_FORBIDDEN_BY_VERSION = (
    "Versions are pinned by ETag only: this identity may not read them by their IDs (s3:GetObjectVersion)."
)
_UNKNOWN_BY_VERSION = "Versions are pinned by ETag only: the store names them, but does not give them by their IDs."
_MISADDRESSED = (
    AccessDenied,
    BucketNotFound,
    EndpointUnreachable,
    ObjectNotFound,
    RequestRejected,
    SourceChanged,
    StoreUnsupported,
    TLSVerificationFailed,
)
"""What a request ends with if the store is no longer at the address that resolving found."""


class _OtherAddress(Exception):  # control flow within this module
    """The bucket must be requested in another region, or with its name in the host name."""

    def __init__(self, settings: S3Settings, failure: RequestFailure) -> None:
        super().__init__(failure.message)
        self.settings = settings
        self.failure = failure


def pin_s3(
    source: S3Source,
    files: FileSelection,
    context: RequestContext,
    *,
    need_tensors: bool,
    asks: bool = True,
) -> PinnedSource:
    """Lists and pins a source's objects, in the region and with the addressing style that the store asks for.

    Those that ``source.behavior`` has are tried first, and the store is asked again if that fails. If ``asks`` is
    False, the source has pins, and the store is not asked about them.

    Raises:
        TonnageError: The source is not valid, or its objects can't be pinned.
    """
    if (source.prefix is None) == (source.keys is None):
        raise InvalidPlan(f"The source in bucket {source.bucket!r} must have either a prefix or keys.")
    settings = s3_settings(source, context.environment, context.botocore.settings)
    check_bucket(source.bucket, aws=settings.aws)
    configured = _Pinning(source, files, context, settings, need_tensors, asks)
    known = _as_found(settings, source.behavior)
    if known == settings:
        return _pin_where_asked(configured, settings)
    try:
        return _pin_where_asked(configured, known)
    except _MISADDRESSED as error:
        try:
            return _pin_where_asked(configured, settings)
        except TonnageError:
            raise error from None


def _as_found(settings: S3Settings, behavior: StoreBehavior | None) -> S3Settings:
    """Returns the settings with what resolving found; an addressing style that is configured is kept."""
    if behavior is None:
        return settings
    if behavior.region:
        settings = settings.with_region(behavior.region)
    if settings.addressing_style is AddressingStyle.AUTO:
        settings = settings._replace(addressing_style=behavior.addressing_style)
    return settings


def _pin_where_asked(configured: _Pinning, settings: S3Settings) -> PinnedSource:
    """Pins a source, first with these settings, then with those that the store asks for."""
    tried: list[S3Settings] = []
    while True:
        tried.append(settings)
        try:
            pinned = configured._replace(settings=settings).run()
        except _OtherAddress as other:
            if other.settings in tried:
                raise other.failure.to_exception() from None
            settings = other.settings
        else:
            return pinned._replace(behavior=_found(configured.settings, settings, pinned.behavior))


def _found(configured: S3Settings, used: S3Settings, behavior: StoreBehavior | None) -> StoreBehavior | None:
    """Returns how the store must be asked, compared with the configured settings; None: in the ordinary way."""
    is_asked = configured.addressing_style is AddressingStyle.AUTO
    found = StoreBehavior(
        addressing_style=used.addressing_style if is_asked else AddressingStyle.AUTO,
        region=used.region if used.region != configured.region else "",
        etag_only=behavior is not None and behavior.etag_only,
    )
    return found if found != StoreBehavior() else None


class _Pinning(NamedTuple):
    """One attempt to pin a source, at one address."""

    source: S3Source
    files: FileSelection
    context: RequestContext
    settings: S3Settings
    need_tensors: bool
    asks: bool = True

    @property
    def key_prefix(self) -> str:
        """The part of the keys that is not part of the paths: empty, or a directory with its slash."""
        return key_directory(self.source.prefix, self.source.keys or ())

    @property
    def where(self) -> str:
        """The source's name in messages."""
        keys = self.source.keys
        return (
            f"s3://{self.source.bucket}/{escape_unprintable(keys[0] if keys and len(keys) == 1 else self.key_prefix)}"
        )

    def run(self) -> PinnedSource:
        """Pins the source. A prefix that doesn't end in a slash may be the key of one object."""
        source, prefix = self.source, self.source.prefix
        if not prefix or prefix.endswith("/"):
            return with_pinned_indexes(self._run)
        key = structs.replace(source, prefix=None, keys=(prefix,))
        if source.objects is not None:
            is_key = [pin.key for pin in source.objects] == [prefix]
            return self._replace(source=key).run() if is_key else self._run()
        try:
            return with_pinned_indexes(self._run)
        except (ObjectNotFound, AccessDenied) as error:
            try:
                found = self._replace(source=key, need_tensors=False).run()
            except (ObjectNotFound, AccessDenied):
                if isinstance(error, AccessDenied):
                    raise error from None
                raise ObjectNotFound(
                    f"{self._label(prefix)}: there is neither an object of this name nor one below it."
                ) from None
        if self.need_tensors and not any(each.selected.kind == "tensors" for each in found.objects):
            raise NoTensorFiles(
                f"{self._label(prefix)} is not a .tensors or .safetensors file, and there are no objects below it."
            )
        return found

    def _run(self) -> PinnedSource:
        source = self.source
        remarks: tuple[str, ...] = ()
        if source.objects is not None:
            keys = [pin.key for pin in source.objects]
        elif source.keys is not None:
            keys = list(source.keys)
        else:
            keys, remarks = self._list()
        outside = [key for key in keys if not key.startswith(self.key_prefix)]
        if outside:
            raise InvalidPlan(f"{self.where}: the pinned object {outside[0]!r} is not below this prefix.")
        indexes: Mapping[str, IndexFile] = {}
        if source.objects is None:
            selection, indexes = select_listed(partial(self._select, keys), self._read_indexes, where=self.where)
        else:
            selection = self._select(keys, [self._path(key) for key in keys])
        if source.objects is None and source.keys is None:
            check_shards(selection, where=self.where)
        if source.objects is not None:
            check_pins_selected(source.objects, selection, where=self.where)
            found, notes = self._check_pins(source.objects)
            all_pins = tuple(source.objects)
        else:
            found, notes = self._pin(selection.objects, keys)
            all_pins = tuple(pin for pin, _ in found.values())
            check_indexes(indexes, {each.path: found[each.key][0] for each in selection.objects}, where=self.where)
        # The store is asked for the objects of all ranks: an entry shows those of other ranks, if they were loaded.
        objects = filter_ranks(selection.objects, self.files.ranks, where=self.where)
        return PinnedSource(
            place=source_place(self.settings.configured_endpoint, source.bucket),
            pins=all_pins,
            objects=tuple(PinnedObject(each, *found[each.key]) for each in objects),
            notes=(*remarks, *selection.notes, *notes),
            behavior=StoreBehavior(
                etag_only=any(pin.version_id and not target.version_id for pin, target in found.values())
            ),
        )

    def _path(self, key: str) -> str:
        return key[len(self.key_prefix) :]

    def _select(self, keys: Sequence[str], listed: Collection[str]) -> Selection:
        selection = select(
            [(key, self._path(key)) for key in keys],
            self.files,
            where=self.where,
            explicit=self.source.keys is not None,
            need_tensors=self.need_tensors,
            listed=listed,
        )
        check_requestable(selection.objects, where=self.where)
        return selection

    def _read_indexes(self, indexes: Sequence[SelectedObject]) -> dict[str, IndexFile]:
        """Returns the indexes of safetensors files, by path."""
        found, failure = read_index_files(
            self.context, {each.path: self._object_target(each.key) for each in indexes}, s3=True
        )
        if failure is not None:
            self._raise_if_elsewhere(failure)
            raise failure.to_exception()
        return found

    def _list(self) -> tuple[list[str], tuple[str, ...]]:
        """Returns all keys below the prefix, except the empty objects that mark directories, and remarks."""
        listing = Listing(self.key_prefix, label=self.where)
        cursor: Cursor | None = FIRST_PAGE
        while cursor is not None:
            page, cursor = self._page(cursor)
            cursor = listing.add(page, cursor)
            if len(listing.keys) > MAX_OBJECTS:
                raise InvalidPlan(
                    f"{self.where}: there are more than {MAX_OBJECTS} objects; use the prefix of one model."
                )
        if not listing.listed and self.key_prefix:
            others = f"; the store lists others, such as {listing.outside[0]!r}" if listing.outside else ""
            raise ObjectNotFound(f"{self.where}: there are no objects below this prefix{others}.")
        if not listing.keys and self.need_tensors:
            empty = "there are only empty directories" if listing.listed else "the bucket is empty"
            raise NoTensorFiles(f"{self.where}: {empty}.")
        ignored = f"{self.where}: the store ignores the prefix; {len(listing.outside)} other objects were left out."
        return listing.keys, (ignored,) if listing.outside else ()

    def _page(self, cursor: Cursor) -> tuple[Page, Cursor]:
        """Requests a page, and returns it with where it was requested: a store may have ListObjects only."""
        answer = self._get_page(cursor)
        if isinstance(answer, RequestFailure) and cursor == FIRST_PAGE and answer.reason in _NO_LIST_V2:
            without_v2 = Cursor(marker="")
            other = self._get_page(without_v2)
            if not isinstance(other, RequestFailure):
                answer, cursor = other, without_v2
        if not isinstance(answer, RequestFailure):
            return parse_page(answer, label=self.where), cursor
        if answer.reason is Reason.OBJECT_NOT_FOUND:
            message = answer.message.replace(self.where, f"s3://{self.source.bucket}", 1)
            raise BucketNotFound(message.replace("the object does not exist", "the bucket does not exist", 1))
        raise answer.to_exception()

    def _get_page(self, cursor: Cursor) -> bytes | RequestFailure:
        url = f"{self._bucket_url()}?{list_query(self.key_prefix, cursor=cursor)}"
        target = self._target(url, label=self.where)
        request = Request(target=target, provider=self.context.provider, limit=PAGE_LIMIT)
        response = self.context.client.run([request])[0]
        if response.failure is None:
            return response.body
        self._raise_if_elsewhere(response.failure)
        return response.failure

    def _pin(
        self, objects: Sequence[SelectedObject], keys: Sequence[str]
    ) -> tuple[dict[str, tuple[ObjectPin, RequestTarget]], list[str]]:
        heads = self._heads([self._object_target(each.key) for each in objects])
        for each, head in zip(objects, heads, strict=True):
            check_encoding(self._label(each.key), head)
        notes = []
        by_version = not self._is_etag_only and any(head.version_id for head in heads)
        if by_version and (denied := self._why_not_by_version(objects, heads)):
            by_version = False
            notes.append(denied)
        found = {}
        listed = self._read_checksum_lists(objects, heads, keys)
        for each, head in zip(objects, heads, strict=True):
            pin = ObjectPin(
                key=each.key,
                size=head.size,
                etag=head.pin_etag,
                version_id=head.version_id,
                checksum=self._checksum(None, head, listed.get(each.key), label=self._label(each.key)),
            )
            found[each.key] = (pin, self._pinned_target(pin, head, by_version=by_version))
        return found, notes

    def _why_not_by_version(self, objects: Sequence[SelectedObject], heads: Sequence[ObjectHead]) -> str:
        """Returns why versions can't be requested by their IDs, as a note; empty if they can.

        s3:GetObjectVersion is a permission of its own, and some stores name versions that they don't give.
        """
        each, head = next((each, head) for each, head in zip(objects, heads, strict=True) if head.version_id)
        target = self._object_target(each.key, version_id=head.version_id)
        result = head_objects(self.context.client, [target], self.context.provider)[0]
        if isinstance(result, RequestFailure) and result.reason in _NOT_BY_VERSION:
            return _not_by_version(result)
        same = head_or_raise(result)
        return "" if (same.version_id, same.pin_etag) == (head.version_id, head.pin_etag) else _UNKNOWN_BY_VERSION

    def _check_pins(self, pins: Sequence[ObjectPin]) -> tuple[dict[str, tuple[ObjectPin, RequestTarget]], list[str]]:
        """Checks that the pinned objects still exist, are unchanged and can be read."""
        notes: list[str] = []
        if not self.asks:
            return {pin.key: (pin, self._assumed_target(pin)) for pin in pins}, []
        by_version = any(pin.version_id for pin in pins)
        if by_version and self._is_etag_only:
            # Without a note, as resolving made one. What was overwritten or deleted may be readable by its version now.
            with contextlib.suppress(SourceChanged, ObjectNotFound, AccessDenied):
                heads = self._pinned_heads(pins, by_version=False)
                return self._check_heads(pins, heads, by_version=False), notes
        try:
            heads = self._pinned_heads(pins, by_version=by_version)
        except _NotByVersion as denied:
            by_version = False
            notes.append(_not_by_version(denied.failure))
            heads = self._pinned_heads(pins, by_version=False)
        return self._check_heads(pins, heads, by_version=by_version), notes

    def _check_heads(
        self, pins: Sequence[ObjectPin], heads: Sequence[ObjectHead], *, by_version: bool
    ) -> dict[str, tuple[ObjectPin, RequestTarget]]:
        found = {}
        for pin, head in zip(pins, heads, strict=True):
            if (head.size, head.pin_etag) != (pin.size, pin.etag):
                raise SourceChanged(f"{self._label(pin.key)}: the object changed after the plan pinned it.")
            check_encoding(self._label(pin.key), head)
            checked = structs.replace(pin, checksum=self._checksum(pin, head, label=self._label(pin.key)))
            found[pin.key] = (checked, self._pinned_target(pin, head, by_version=by_version))
        return found

    def _checksum(
        self, pin: ObjectPin | None, head: ObjectHead, listed: ObjectChecksum | None = None, *, label: str
    ) -> str:
        stated = [*head.checksums, *(each for each in (head.etag_checksum, listed) if each is not None)]
        return pin_checksum(pin, stated, self.context.verify, label=label)

    def _read_checksum_lists(
        self, objects: Sequence[SelectedObject], heads: Sequence[ObjectHead], keys: Sequence[str]
    ) -> dict[str, ObjectChecksum]:
        """Returns the SHA-256 of objects that lists have, where the store has no checksum that suffices."""
        level = self.context.verify
        lacking = [
            each.key
            for each, head in zip(objects, heads, strict=True)
            if level.strength >= Verify.BEST.strength
            and not suffices([*head.checksums, *([head.etag_checksum] if head.etag_checksum else [])], level)
        ]
        lists = lists_for(lacking, keys)
        targets = [self._object_target(key) for key in lists]
        responses = read_objects(self.context, targets, limit=MAX_LIST_BYTES, s3=True)
        return parse_lists({key: each.body for key, each in zip(lists, responses, strict=True) if each.failure is None})

    def _heads(self, targets: Sequence[RequestTarget], *, pinned: bool = False) -> list[ObjectHead]:
        results = head_objects(self.context.client, targets, self.context.provider, pinned=pinned, checksum_mode=True)
        for target, result in zip(targets, results, strict=True):
            if isinstance(result, RequestFailure):
                self._raise_if_elsewhere(result)
                if pinned and target.version_id and result.reason in _NOT_BY_VERSION:
                    raise _NotByVersion(result)
        return [head_or_raise(result) for result in results]

    def _raise_if_elsewhere(self, failure: RequestFailure) -> None:
        if failure.region and failure.region != self.settings.region:
            raise _OtherAddress(self.settings.with_region(failure.region), failure)
        if failure.path_style_refused and self.settings.addressing_style is AddressingStyle.AUTO:
            raise _OtherAddress(self.settings._replace(addressing_style=AddressingStyle.VIRTUAL), failure)

    def _pinned_heads(self, pins: Sequence[ObjectPin], *, by_version: bool) -> list[ObjectHead]:
        targets = [self._object_target(pin.key, version_id=pin.version_id if by_version else "") for pin in pins]
        return self._heads(targets, pinned=True)

    @property
    def _is_etag_only(self) -> bool:
        """Whether resolving found that versions can't be requested by their IDs."""
        return self.source.behavior is not None and self.source.behavior.etag_only

    def _pinned_target(self, pin: ObjectPin, head: ObjectHead, *, by_version: bool) -> RequestTarget:
        version = pin.version_id if by_version else ""
        return RequestTarget(
            url=self._object_url(pin.key, version),
            region=self._region,
            requester_pays=self.source.requester_pays,
            inner_redirects=allows_inner_redirects(self.context.environment),
            ca_bundle=self.settings.ca_bundle,
            size=pin.size,
            etag=strong_etag(head.etag) or head.etag,
            last_modified="" if head.etag else head.last_modified,
            version_id=version,
            precondition_header=head.precondition_header,
            label=self._label(pin.key),
        )

    def _assumed_target(self, pin: ObjectPin) -> RequestTarget:
        target = self._object_target(pin.key, version_id="" if self._is_etag_only else pin.version_id)
        return structs.replace(target, size=pin.size, etag=pin.etag, precondition_header=f'If-Match: "{pin.etag}"')

    def _object_target(self, key: str, *, version_id: str = "") -> RequestTarget:
        return self._target(self._object_url(key, version_id), label=self._label(key), version_id=version_id)

    def _target(self, url: str, *, label: str, version_id: str = "") -> RequestTarget:
        return RequestTarget(
            url=url,
            region=self._region,
            requester_pays=self.source.requester_pays,
            ca_bundle=self.settings.ca_bundle,
            version_id=version_id,
            inner_redirects=allows_inner_redirects(self.context.environment),
            label=label,
        )

    def _object_url(self, key: str, version_id: str) -> str:
        query = f"?versionId={quote(version_id)}" if version_id else ""
        return f"{self._bucket_url()}/{quote_key(key)}{query}"

    def _bucket_url(self) -> str:
        settings = self.settings
        return bucket_url(settings.endpoint, self.source.bucket, settings.addressing_style, aws=settings.aws)

    @property
    def _region(self) -> str:
        """The region to sign for; empty if requests are not signed."""
        return "" if self.context.provider.anonymous else self.settings.region

    def _label(self, key: str) -> str:
        return f"s3://{self.source.bucket}/{escape_unprintable(key)}"


def _not_by_version(failure: RequestFailure) -> str:
    is_forbidden = failure.reason in {Reason.ACCESS_DENIED, Reason.OBJECT_NOT_FOUND}
    return _FORBIDDEN_BY_VERSION if is_forbidden else _UNKNOWN_BY_VERSION


class _NotByVersion(Exception):  # control flow within this module
    """The pinned versions can't be requested by their IDs."""

    def __init__(self, failure: RequestFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure
