"""Pins objects that are named by URL, public or presigned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.contract import ObjectPin
from tonnage.errors import AccessDenied, InvalidPlan, NoTensorFiles, SourceChanged
from tonnage.source.aws_config import find_ca_bundle
from tonnage.source.endpoint_urls import ascii_host, is_presigned, redact_url, split_url, unquote
from tonnage.source.head_objects import check_encoding, head_objects, head_or_raise
from tonnage.source.pinned import PinnedObject, PinnedSource
from tonnage.source.request_target import RequestTarget
from tonnage.source.responses import strong_etag
from tonnage.source.selection import filter_ranks, select

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.contract import FileSelection, HttpSource
    from tonnage.source.head_objects import ObjectHead
    from tonnage.source.pinned import RequestContext
    from tonnage.source.selection import SelectedObject

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
    urls = {url_key(url): percent_encode_url(url) for url in read_urls(source, context.environment)}
    if source.objects is not None:
        missing = [pin.key for pin in source.objects if pin.key not in urls]
        if missing:
            raise InvalidPlan(f"The source has no URL for the pinned object {missing[0]}.")
        urls = {pin.key: urls[pin.key] for pin in source.objects}
    where = next(iter(urls), "the plan's URLs")
    candidates = [(key, _file_name(key)) for key in urls]
    try:
        selection = select(candidates, files, where=where, explicit=True, need_tensors=need_tensors)
    except NoTensorFiles as error:
        raise NoTensorFiles(error.message, remedy=_NAME_REMEDY) from None
    objects = filter_ranks(selection.objects, files.ranks, where=where)
    bundle = find_ca_bundle(source.ca_bundle, context.environment)
    # A revision has the pins of all ranks. Once they are in the plan, only the objects of this load are requested.
    requested = selection.objects if source.objects is None else objects
    heads = _heads({each.key: urls[each.key] for each in requested}, bundle, context, pinned=source.objects is not None)
    for each in requested:
        check_encoding(each.key, heads[each.key])
        _check_type(each, heads[each.key])
    pins = {key: ObjectPin(key=key, size=head.size, etag=head.pin_etag) for key, head in heads.items()}
    for pin in source.objects or ():
        if pin.key in pins and pins[pin.key] != pin:
            raise SourceChanged(f"{pin.key}: the object changed after the plan pinned it.")
    without_validator = [key for key, head in heads.items() if not head.precondition_header]
    return PinnedSource(
        place="",
        pins=tuple(pins.values()) if source.objects is None else tuple(source.objects),
        objects=tuple(
            PinnedObject(each, pins[each.key], _target(each.key, urls[each.key], heads[each.key], bundle))
            for each in objects
        ),
        notes=(
            *selection.notes,
            *(
                f"{key}: only the size is pinned; the server sends no ETag and no Last-Modified."
                for key in without_validator
            ),
        ),
    )


def _heads(urls: Mapping[str, str], bundle: str, context: RequestContext, *, pinned: bool) -> dict[str, ObjectHead]:
    targets = [RequestTarget(url=url, ca_bundle=bundle, label=key) for key, url in urls.items()]
    presigned = [is_presigned(url) for url in urls.values()]
    results = head_objects(context.client, targets, context.provider, pinned=pinned, skip_head=presigned)
    return {target.label: head_or_raise(result) for target, result in zip(targets, results, strict=True)}


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


def _target(key: str, url: str, head: ObjectHead, bundle: str) -> RequestTarget:
    return RequestTarget(
        url=url,
        ca_bundle=bundle,
        size=head.size,
        etag=strong_etag(head.etag),
        precondition_header=head.precondition_header,
        label=key,
    )


def read_urls(source: HttpSource, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the source's URLs, read from the plan, a file or a variable.

    Raises:
        InvalidPlan: There are none, they can't be read, two name the same object, or one is not an http or https URL.
            The message contains no query.
    """
    if sum((source.urls is not None, bool(source.urls_file), bool(source.urls_env))) != 1:
        raise InvalidPlan("An HTTP source must have exactly one of urls, urls_file and urls_env.")
    if source.urls is not None:
        place, urls = "the plan", list(source.urls)
    elif source.urls_env:
        place, urls = f"the variable {source.urls_env}", environment.get(source.urls_env, "").split()
    else:
        place = f"the file {source.urls_file}"
        try:
            with Path(source.urls_file).open("rb") as file:
                urls = file.read(URLS_LIMIT).decode().split()
        except (OSError, ValueError) as error:
            raise InvalidPlan(f"The file of URLs {source.urls_file} can't be read: {type(error).__name__}.") from error
    if not urls:
        raise InvalidPlan(f"No URL in {place}.")
    for url in urls:
        parts = split_url(url)
        if parts is None or parts.scheme not in {"http", "https"}:
            raise InvalidPlan(f"{redact_url(url)!r} in {place} is not an http:// or https:// URL.")
    if len({url_key(url) for url in urls}) != len(urls):
        raise InvalidPlan(f"Two URLs in {place} name the same object.", remedy=_NAME_REMEDY)
    return tuple(urls)


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
