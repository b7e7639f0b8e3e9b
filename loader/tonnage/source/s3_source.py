"""Pins the objects of one bucket: list, select, HEAD. Pins that the plan already has are checked by HEAD."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tonnage.contract import ObjectPin, source_place
from tonnage.errors import (
    BucketNotFound,
    InvalidPlan,
    NameCollision,
    NoTensorFiles,
    ObjectNotFound,
    Reason,
    SourceChanged,
)
from tonnage.source.aws_config import s3_settings
from tonnage.source.client import Request
from tonnage.source.endpoint_urls import bucket_url, check_bucket, escape_unprintable, quote, quote_key
from tonnage.source.error_classification import RequestFailure
from tonnage.source.head_objects import head_objects, head_or_raise
from tonnage.source.listing import PAGE_LIMIT, Page, list_query, parse_page
from tonnage.source.pinned import PinnedObject, PinnedSource, RequestContext
from tonnage.source.request_target import RequestTarget
from tonnage.source.responses import strong_etag
from tonnage.source.selection import common_directory, filter_ranks, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.contract import FileSelection, S3Source
    from tonnage.source.aws_config import S3Settings
    from tonnage.source.head_objects import ObjectHead
    from tonnage.source.selection import SelectedObject

MAX_OBJECTS = 100_000
"""A prefix with more objects is not the prefix of one model."""

_PINNED_BY_ETAG = (
    "Versions are pinned by ETag only: this identity may not read them by their IDs (s3:GetObjectVersion)."
)


class _WrongRegion(Exception):  # control flow within this module
    """The bucket is in a region other than the requested one."""

    def __init__(self, region: str, failure: RequestFailure) -> None:
        super().__init__(region)
        self.region = region
        self.failure = failure


def pin_s3(
    source: S3Source,
    files: FileSelection,
    context: RequestContext,
    *,
    need_tensors: bool,
) -> PinnedSource:
    """Lists and pins a source's objects. If the bucket is in another region, it is tried again in that region.

    Raises:
        TonnageError: The source is not valid, or its objects can't be pinned.
    """
    if (source.prefix is None) == (source.keys is None):
        raise InvalidPlan(f"The source in bucket {source.bucket!r} must have either a prefix or keys.")
    settings = s3_settings(source, context.environment)
    check_bucket(source.bucket, aws=settings.aws)
    try:
        return _Pinning(source, files, context, settings, need_tensors).run()
    except _WrongRegion as wrong:
        if wrong.region == settings.region:
            raise wrong.failure.to_exception() from None
        settings = settings.with_region(wrong.region)
    try:
        return _Pinning(source, files, context, settings, need_tensors).run()
    except _WrongRegion as wrong:
        raise wrong.failure.to_exception() from None


class _Pinning(NamedTuple):
    """One attempt to pin a source, in one region."""

    source: S3Source
    files: FileSelection
    context: RequestContext
    settings: S3Settings
    need_tensors: bool

    @property
    def key_prefix(self) -> str:
        """The part of the keys that is not part of the paths: empty, or a directory with its slash."""
        prefix = self.source.prefix
        if prefix is None:
            return common_directory(self.source.keys or ())
        return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"

    @property
    def where(self) -> str:
        """The source's name in messages."""
        keys = self.source.keys
        return (
            f"s3://{self.source.bucket}/{escape_unprintable(keys[0] if keys and len(keys) == 1 else self.key_prefix)}"
        )

    def run(self) -> PinnedSource:
        source = self.source
        if source.objects is not None:
            keys = [pin.key for pin in source.objects]
        elif source.keys is not None:
            keys = list(source.keys)
        else:
            keys = self._list()
        key_prefix = self.key_prefix
        outside = [key for key in keys if not key.startswith(key_prefix)]
        if outside:
            raise InvalidPlan(f"{self.where}: the pinned object {outside[0]!r} is not below this prefix.")
        selection = select(
            [(key, key[len(key_prefix) :]) for key in keys],
            self.files,
            where=self.where,
            explicit=source.keys is not None,
            need_tensors=self.need_tensors,
        )
        self._check_requestable(selection.objects)
        if source.objects is not None:
            pins = {pin.key: pin for pin in source.objects}
            objects = filter_ranks(selection.objects, self.files.ranks, where=self.where)
            found, notes = self._check_pins([pins[each.key] for each in objects])
            all_pins = tuple(source.objects)
        else:
            found, notes = self._pin(selection.objects)
            all_pins = tuple(pin for pin, _ in found.values())
            objects = filter_ranks(selection.objects, self.files.ranks, where=self.where)
        return PinnedSource(
            place=source_place("" if self.settings.default_endpoint else self.settings.endpoint, source.bucket),
            pins=all_pins,
            objects=tuple(PinnedObject(each, *found[each.key]) for each in objects),
            notes=(*selection.notes, *notes),
        )

    def _list(self) -> list[str]:
        """Returns all keys below the prefix, except the empty objects that mark directories."""
        keys: list[str] = []
        token, listed = "", 0
        while True:
            page = self._page(token)
            listed += len(page.objects)
            keys += [each.key for each in page.objects if not (each.key.endswith("/") and each.size == 0)]
            if not page.token or page.token == token:
                break
            if len(keys) > MAX_OBJECTS:
                raise InvalidPlan(
                    f"{self.where}: there are more than {MAX_OBJECTS} objects; use the prefix of one model."
                )
            token = page.token
        if not listed and self.key_prefix:
            raise ObjectNotFound(f"{self.where}: there are no objects below this prefix.")
        if not keys and self.need_tensors:
            empty = "there are only empty directories" if listed else "the bucket is empty"
            raise NoTensorFiles(f"{self.where}: {empty}.")
        return keys

    def _page(self, token: str) -> Page:
        url = f"{self._bucket_url()}?{list_query(self.key_prefix, token=token)}"
        target = self._target(url, label=self.where)
        response = self.context.client.run([Request(target=target, provider=self.context.provider, limit=PAGE_LIMIT)])[
            0
        ]
        if response.failure is not None:
            self._raise_if_wrong_region(response.failure)
            if response.failure.reason is Reason.OBJECT_NOT_FOUND:
                raise BucketNotFound(f"s3://{self.source.bucket}: the bucket does not exist at this endpoint.")
            raise response.failure.to_exception()
        return parse_page(response.body, label=self.where)

    def _check_requestable(self, objects: Sequence[SelectedObject]) -> None:
        """Rejects keys with dot segments, because libcurl removes those from the paths of signed requests."""
        for each in objects:
            if not {".", ".."}.isdisjoint(each.key.split("/")):
                raise NameCollision(
                    f'{self.where}: the key {each.key!r} has a part "." or "..", which URLs can\'t have.'
                )

    def _pin(self, objects: Sequence[SelectedObject]) -> tuple[dict[str, tuple[ObjectPin, RequestTarget]], list[str]]:
        heads = self._heads([self._object_target(each.key) for each in objects])
        notes = []
        by_version = any(head.version_id for head in heads)
        if by_version and not self._can_read_versions(objects, heads):
            by_version = False
            notes.append(_PINNED_BY_ETAG)
        found = {}
        for each, head in zip(objects, heads, strict=True):
            pin = ObjectPin(key=each.key, size=head.size, etag=head.pin_etag, version_id=head.version_id)
            found[each.key] = (pin, self._pinned_target(pin, head, by_version=by_version))
        return found, notes

    def _can_read_versions(self, objects: Sequence[SelectedObject], heads: Sequence[ObjectHead]) -> bool:
        """Whether s3:GetObjectVersion is allowed, which is a separate permission from s3:GetObject."""
        each, head = next((each, head) for each, head in zip(objects, heads, strict=True) if head.version_id)
        target = self._object_target(each.key, version_id=head.version_id)
        result = head_objects(self.context.client, [target], self.context.provider)[0]
        if isinstance(result, RequestFailure) and result.reason in {Reason.ACCESS_DENIED, Reason.OBJECT_NOT_FOUND}:
            return False
        head_or_raise(result)
        return True

    def _check_pins(self, pins: Sequence[ObjectPin]) -> tuple[dict[str, tuple[ObjectPin, RequestTarget]], list[str]]:
        """Checks that the pinned objects still exist, are unchanged and can be read."""
        notes: list[str] = []
        by_version = any(pin.version_id for pin in pins)
        try:
            heads = self._heads([self._expected_target(pin, by_version=by_version) for pin in pins], pinned=True)
        except _VersionsDenied:
            by_version = False
            notes.append(_PINNED_BY_ETAG)
            heads = self._heads([self._expected_target(pin, by_version=False) for pin in pins], pinned=True)
        found = {}
        for pin, head in zip(pins, heads, strict=True):
            if (head.size, head.pin_etag) != (pin.size, pin.etag):
                raise SourceChanged(f"{self._label(pin.key)}: the object changed after the plan pinned it.")
            found[pin.key] = (pin, self._pinned_target(pin, head, by_version=by_version))
        return found, notes

    def _heads(self, targets: Sequence[RequestTarget], *, pinned: bool = False) -> list[ObjectHead]:
        results = head_objects(self.context.client, targets, self.context.provider, pinned=pinned)
        for target, result in zip(targets, results, strict=True):
            if isinstance(result, RequestFailure):
                self._raise_if_wrong_region(result)
                if result.reason is Reason.ACCESS_DENIED and target.version_id:
                    raise _VersionsDenied
        return [head_or_raise(result) for result in results]

    def _raise_if_wrong_region(self, failure: RequestFailure) -> None:
        if failure.region:
            raise _WrongRegion(failure.region, failure)

    def _expected_target(self, pin: ObjectPin, *, by_version: bool) -> RequestTarget:
        return self._object_target(pin.key, version_id=pin.version_id if by_version else "")

    def _pinned_target(self, pin: ObjectPin, head: ObjectHead, *, by_version: bool) -> RequestTarget:
        version = pin.version_id if by_version else ""
        return RequestTarget(
            url=self._object_url(pin.key, version),
            sigv4=self._sigv4(),
            ca_bundle=self.settings.ca_bundle,
            size=pin.size,
            etag=strong_etag(head.etag),
            version_id=version,
            precondition_header=head.precondition_header,
            label=self._label(pin.key),
        )

    def _object_target(self, key: str, *, version_id: str = "") -> RequestTarget:
        return self._target(self._object_url(key, version_id), label=self._label(key), version_id=version_id)

    def _target(self, url: str, *, label: str, version_id: str = "") -> RequestTarget:
        return RequestTarget(
            url=url, sigv4=self._sigv4(), ca_bundle=self.settings.ca_bundle, version_id=version_id, label=label
        )

    def _object_url(self, key: str, version_id: str) -> str:
        query = f"?versionId={quote(version_id)}" if version_id else ""
        return f"{self._bucket_url()}/{quote_key(key)}{query}"

    def _bucket_url(self) -> str:
        return bucket_url(
            self.settings.endpoint, self.source.bucket, self.source.addressing_style, aws=self.settings.aws
        )

    def _sigv4(self) -> str:
        return "" if self.context.provider.anonymous else f"aws:amz:{self.settings.region}:s3"

    def _label(self, key: str) -> str:
        return f"s3://{self.source.bucket}/{escape_unprintable(key)}"


class _VersionsDenied(Exception):  # control flow within this module
    """The identity may not read versions by their IDs."""
