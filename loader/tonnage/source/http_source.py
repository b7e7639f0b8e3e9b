"""Pins objects that are named by URL, public or presigned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.contract import ObjectPin, Verify, classify_path
from tonnage.errors import AccessDenied, InvalidPlan, NoTensorFiles, SourceChanged
from tonnage.source.aws_config import find_ca_bundle
from tonnage.source.checksum_lists import MAX_LIST_BYTES, is_list, lists_for, parse_lists
from tonnage.source.endpoint_urls import ascii_host, is_presigned, quote, redact_url, split_url, unquote
from tonnage.source.head_objects import check_encoding, head_objects, head_or_raise
from tonnage.source.index_files import (
    IndexFile,
    check_indexes,
    read_index_files,
    select_listed,
    with_pinned_indexes,
)
from tonnage.source.pinned import PinnedObject, PinnedSource, pin_checksum
from tonnage.source.request_target import RequestTarget, allows_inner_redirects
from tonnage.source.responses import strong_etag
from tonnage.source.selection import check_pins_selected, filter_ranks, select
from tonnage.source.small_objects import read_objects
from tonnage.source.stated_checksums import suffices

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.contract import FileSelection, HttpSource, ObjectChecksum
    from tonnage.source.endpoint_urls import SplitUrl
    from tonnage.source.head_objects import ObjectHead
    from tonnage.source.pinned import RequestContext
    from tonnage.source.selection import SelectedObject, Selection

URLS_LIMIT = 4 << 20
"""Maximum size of a file of URLs, in bytes."""
_NAME_REMEDY = (
    "A file's name is the last part of its URL's path. Where the query names it, append the name after a number sign: "
    "https://host/download?path=m/x.tensors#x.tensors."
)


def pin_http(
    source: HttpSource,
    files: FileSelection,
    context: RequestContext,
    *,
    need_tensors: bool,
) -> PinnedSource:
    """Pins the objects of a source's URLs. The fragment, or else the last part of the path, is the file's name.

    Raises:
        TonnageError: The source is not valid, or an object can't be pinned.
    """
    return with_pinned_indexes(lambda: _pin(source, files, context, need_tensors=need_tensors))


def _pin(source: HttpSource, files: FileSelection, context: RequestContext, *, need_tensors: bool) -> PinnedSource:
    urls = read_urls(source, context.environment)
    if source.objects is not None:
        missing = [pin.key for pin in source.objects if pin.key not in urls]
        if missing:
            raise InvalidPlan(f"The source has no URL for the pinned object {missing[0]}.")
        urls = {pin.key: urls[pin.key] for pin in source.objects}
    candidates, where, notes = _candidates(source, urls, files)
    bundle = find_ca_bundle(source.ca_bundle, context.environment)

    def choose(listed: Collection[str]) -> Selection:
        try:
            return select(candidates, files, where=where, explicit=True, need_tensors=need_tensors, listed=listed)
        except NoTensorFiles as error:
            raise NoTensorFiles(error.message, remedy=_NAME_REMEDY) from None

    def read(found: Sequence[SelectedObject]) -> dict[str, IndexFile]:
        return _read_indexes(
            context, {each.path: _unpinned(each.key, urls[each.key], bundle, context) for each in found}
        )

    indexes: Mapping[str, IndexFile] = {}
    if source.objects is None:
        selection, indexes = select_listed(choose, read, where=where)
    else:
        selection = choose([path for _, path in candidates])
    objects = filter_ranks(selection.objects, files.ranks, where=where)
    check_pins_selected(source.objects or (), selection, where=where)
    # Objects of all ranks are requested: an entry shows those of other ranks, too, if they were loaded.
    heads = _heads(
        {each.key: urls[each.key] for each in selection.objects}, bundle, context, pinned=source.objects is not None
    )
    for each in selection.objects:
        check_encoding(each.key, heads[each.key])
        _check_type(each, heads[each.key])
    known = {pin.key: pin for pin in source.objects or ()}
    listed = _read_checksum_lists(urls, heads, bundle, context) if source.objects is None else {}
    pins = {
        key: ObjectPin(
            key=key,
            size=head.size,
            etag=head.pin_etag,
            checksum=pin_checksum(known.get(key), [*head.checksums, *listed.get(key, ())], context.verify, label=key),
        )
        for key, head in heads.items()
    }
    for pin in source.objects or ():
        if pin.key in heads and (heads[pin.key].size, heads[pin.key].pin_etag) != (pin.size, pin.etag):
            raise SourceChanged(f"{pin.key}: the object changed after the plan pinned it.")
    check_indexes(indexes, {each.path: pins[each.key] for each in selection.objects}, where=where)
    without_validator = [key for key, head in heads.items() if not head.precondition_header]
    return PinnedSource(
        place="",
        pins=tuple(pins.values()) if source.objects is None else tuple(source.objects),
        objects=tuple(
            PinnedObject(each, pins[each.key], _target(each.key, urls[each.key], heads[each.key], bundle, context))
            for each in objects
        ),
        notes=(
            *notes,
            *selection.notes,
            *(
                f"{key}: only the size is pinned; the server sends no ETag and no Last-Modified."
                for key in without_validator
            ),
        ),
    )


def _read_indexes(context: RequestContext, targets: Mapping[str, RequestTarget]) -> dict[str, IndexFile]:
    found, failure = read_index_files(context, targets)
    if failure is not None:
        raise failure.to_exception()
    return found


def _read_checksum_lists(
    urls: Mapping[str, str], heads: Mapping[str, ObjectHead], bundle: str, context: RequestContext
) -> dict[str, list[ObjectChecksum]]:
    """Returns the SHA-256 of objects that lists among the URLs have, where the server states none that suffices.

    Only lists that the source names are read: no server is asked for URLs that may not be there.
    """
    level = context.verify
    if level.strength < Verify.BEST.strength:
        return {}
    places = {key: _place(key, url) for key, url in urls.items()}
    keys = {place: key for key, place in places.items()}
    lacking = [
        places[key] for key, head in heads.items() if not is_list(places[key]) and not suffices(head.checksums, level)
    ]
    lists = lists_for(lacking, keys)
    targets = [_unpinned(keys[place], urls[keys[place]], bundle, context) for place in lists]
    responses = read_objects(context, targets, limit=MAX_LIST_BYTES)
    found = parse_lists({place: each.body for place, each in zip(lists, responses, strict=True) if not each.failure})
    return {keys[place]: [found[place]] for place in lacking if place in found}


def _place(key: str, url: str) -> str:
    """Returns where an object is on its server, under its file's name: lists name files relative to their folder."""
    parts = split_url(url)
    folder = unquote(parts.path).rpartition("/")[0] if parts else ""
    return f"{parts.host if parts else ''}{folder}/{_file_name(key)}"


def _candidates(
    source: HttpSource, urls: Mapping[str, str], files: FileSelection
) -> tuple[list[tuple[str, str]], str, tuple[str, ...]]:
    """Returns key and file name of the objects that may be selected, the source's name in messages, and notes.

    In a file or a variable, which may be a secret, a name that no pattern matches may be a part of it: it is left out
    here, so that it appears nowhere.
    """
    candidates = [(key, _file_name(key)) for key in urls]
    if source.urls is not None:
        return candidates, next(iter(urls), "the plan's URLs"), ()
    matching = [(key, name) for key, name in candidates if classify_path(name, files) is not None]
    left_out = len(candidates) - len(matching)
    where = f"the URLs in {source.urls_file or source.urls_env}"
    notes = (f"{left_out} of {where} were left out: their file names match no pattern.",) if left_out else ()
    return matching, where, notes


def _heads(urls: Mapping[str, str], bundle: str, context: RequestContext, *, pinned: bool) -> dict[str, ObjectHead]:
    targets = [_unpinned(key, url, bundle, context) for key, url in urls.items()]
    presigned = [is_presigned(url) for url in urls.values()]
    results = head_objects(context.client, targets, context.provider, pinned=pinned, skip_head=presigned)
    return {target.label: head_or_raise(result) for target, result in zip(targets, results, strict=True)}


def _unpinned(key: str, url: str, bundle: str, context: RequestContext) -> RequestTarget:
    inner = allows_inner_redirects(context.environment)
    return RequestTarget(url=url, ca_bundle=bundle, inner_redirects=inner, label=key)


def _check_type(each: SelectedObject, head: ObjectHead) -> None:
    """Rejects a web page in place of a companion: servers answer with their login page, and status 200.

    Raises:
        AccessDenied: The server sends HTML for a file whose name doesn't end so.
    """
    html = head.content_type.partition(";")[0].strip().lower() in {"text/html", "application/xhtml+xml"}
    if html and each.kind == "companion" and not each.path.lower().endswith((".html", ".htm", ".xhtml")):
        raise AccessDenied(
            f"{each.key}: the server sends a web page (Content-Type: text/html), most likely its login page.",
            remedy="Use a URL that needs no login, such as a presigned one; or leave the file out with --exclude.",
        )


def _target(key: str, url: str, head: ObjectHead, bundle: str, context: RequestContext) -> RequestTarget:
    return RequestTarget(
        url=url,
        ca_bundle=bundle,
        size=head.size,
        etag=strong_etag(head.etag) or head.etag,
        last_modified="" if head.etag else head.last_modified,
        precondition_header=head.precondition_header,
        inner_redirects=allows_inner_redirects(context.environment),
        label=key,
    )


class _UrlList(NamedTuple):
    """Text with URLs. ``unit`` is what ``lines`` are called. ``is_shown`` is False if it may be a secret."""

    place: str
    unit: str
    lines: list[str]
    is_shown: bool


def read_urls(source: HttpSource, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the source's URLs by the key of their object. They are in the plan, a file or a variable.

    Raises:
        InvalidPlan: There are none, they can't be read, two name the same object, or one is not an http or https URL.
            Of a file or a variable, which may be a secret, the message has only the number of the line or of the word.
    """
    listed = _read_list(source, environment)
    found: dict[str, str] = {}
    for number, line in enumerate(listed.lines, 1):
        for url in line.split():
            name = repr(redact_url(url)) if listed.is_shown else f"{listed.unit} {number}"
            parts = split_url(url)
            if parts is None or parts.scheme not in {"http", "https"}:
                raise InvalidPlan(f"{name} in {listed.place} is not an http:// or https:// URL.")
            key = url_key(url) if listed.is_shown else _key_without_path(url, parts)
            if key in found:
                message = f"Two URLs in {listed.place} name the same object, the second in {listed.unit} {number}."
                raise InvalidPlan(message, remedy=_NAME_REMEDY)
            try:
                found[key] = percent_encode_url(url)
            except InvalidPlan:
                raise InvalidPlan(f"{name} in {listed.place} has a host that is not valid.") from None
    if not found:
        raise InvalidPlan(f"No URL in {listed.place}.")
    return found


def _read_list(source: HttpSource, environment: Mapping[str, str]) -> _UrlList:
    if sum((source.urls is not None, bool(source.urls_file), bool(source.urls_env))) != 1:
        raise InvalidPlan("An HTTP source must have exactly one of urls, urls_file and urls_env.")
    if source.urls is not None:
        return _UrlList("the plan", "URL", list(source.urls), is_shown=True)
    if source.urls_env:
        words = environment.get(source.urls_env, "").split()
        return _UrlList(f"the variable {source.urls_env}", "word", words, is_shown=False)
    try:
        with Path(source.urls_file).open("rb") as file:
            lines = file.read(URLS_LIMIT).decode().splitlines()
    except (OSError, ValueError) as error:
        raise InvalidPlan(f"The file of URLs {source.urls_file} can't be read: {type(error).__name__}.") from error
    return _UrlList(f"the file {source.urls_file}", "line", lines, is_shown=False)


def _key_without_path(url: str, parts: SplitUrl) -> str:
    """Returns the key of an object whose path may be a secret: the server, a hash of the path, and the file's name."""
    digest = hashlib.sha256(redact_url(url).encode()).hexdigest()
    return f"{parts.scheme}://{parts.host}/{digest[:16]}/{quote(_file_name(url_key(url)))}"


def url_key(url: str) -> str:
    """Returns the key of a URL's object: the URL without user and query, with the fragment, which names the file."""
    fragment = url.partition("#")[2]
    return f"{redact_url(url)}#{fragment}" if fragment else redact_url(url)


def _file_name(key: str) -> str:
    key, _, fragment = key.partition("#")
    if fragment:
        return unquote(fragment)
    parts = split_url(key)
    return unquote((parts.path if parts else key).rpartition("/")[2])


def percent_encode_url(url: str) -> str:
    """Removes the fragment, and encodes the characters that a URL can't contain; those of the host in Punycode.

    Raises:
        InvalidPlan: The host is not valid.
    """
    url = url.partition("#")[0]
    parts = split_url(url)
    if parts is not None and not parts.host.isascii():
        url = url.replace(parts.host, ascii_host(parts.host), 1)
    return "".join(each if "!" <= each <= "~" else "".join(f"%{byte:02X}" for byte in each.encode()) for each in url)
