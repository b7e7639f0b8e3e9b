"""Listings of a bucket: the query for a page, its XML, and what is left to ask. Pure.

Pages are requested with ListObjectsV2. Stores that only have ListObjects ignore ``list-type`` and answer without a
continuation token, so such an answer is continued with ``marker``. An answer is the last page only if it is marked so:
what a store leaves out must not be left out of the model.
"""

from __future__ import annotations

from typing import NamedTuple

from tonnage.errors import StoreUnsupported
from tonnage.source.endpoint_urls import quote, unquote
from tonnage.source.xml_document import read_document

PAGE_LIMIT = 16 << 20
"""Maximum size of a page in bytes. S3 limits it to 1,000 keys of 1,024 bytes, at most 4 MiB."""
MAX_IDLE_PAGES = 100
"""Consecutive pages without a new key, after which a listing is taken to advance no more."""


class ListedObject(NamedTuple):
    """An object in a listing."""

    key: str
    size: int


class Cursor(NamedTuple):
    """Where a listing continues: at a continuation token, or, in ListObjects, after the key ``marker``."""

    token: str = ""
    marker: str | None = None


FIRST_PAGE = Cursor()


class Page(NamedTuple):
    """A page of a listing.

    Attributes:
        objects: The objects, in the store's order.
        truncated: Whether there are more; None if the page doesn't state it.
        token: The continuation token; empty if there is none.
        next_marker: The key after which ListObjects continues; empty if there is none.
        key_count: The number of keys that the page announces; None if it doesn't.
        groups: Common prefixes, which stand for keys that the page does not list.
    """

    objects: tuple[ListedObject, ...]
    truncated: bool | None = False
    token: str = ""
    next_marker: str = ""
    key_count: int | None = None
    groups: tuple[str, ...] = ()


def list_query(prefix: str, *, cursor: Cursor = FIRST_PAGE, max_keys: int = 1000) -> str:
    """Returns the query for a page of the keys that begin with ``prefix``, its parameters sorted for the signature."""
    parts = {"encoding-type": "url", "max-keys": str(max_keys), "prefix": prefix}
    if cursor.marker is None:
        parts["list-type"] = "2"
    if cursor.token:
        parts["continuation-token"] = cursor.token
    if cursor.marker:
        parts["marker"] = cursor.marker
    return "&".join(f"{name}={quote(parts[name])}" for name in sorted(parts))


def parse_page(body: bytes, *, label: str) -> Page:
    """Parses a page.

    Args:
        body: The response body.
        label: The prefix that was listed, for the message.

    Raises:
        StoreUnsupported: The body is not a listing, or has an object without a key or a size.
    """
    reader = _Reader()
    try:
        read_document(body, reader)
        return reader.page()
    except (ValueError, KeyError) as error:
        from tonnage.source.error_classification import error_document  # not imported for a list that can be read

        answer = str(error_document(body))
        quoted = f" ({answer})" if answer else ""
        raise StoreUnsupported(
            f"{label}: the response is not an S3 listing; is this an S3 endpoint?{quoted}",
            remedy="Check the endpoint URL: it must be the store's S3 endpoint, not its console or another API.",
        ) from error


class Listing:
    """The keys of a listing so far, each once.

    Args:
        prefix: The prefix that is listed.
        label: Its name in messages.

    Attributes:
        keys: The keys below the prefix, except the empty objects that mark directories.
        listed: The number of keys below the prefix.
        outside: Keys that the store listed although they don't begin with the prefix.
    """

    def __init__(self, prefix: str, *, label: str) -> None:
        self._prefix = prefix
        self._label = label
        self._seen: set[str] = set()
        self._idle_pages = 0
        self.keys: list[str] = []
        self.outside: list[str] = []

    @property
    def listed(self) -> int:
        return len(self._seen) - len(self.outside)

    def add(self, page: Page, cursor: Cursor) -> Cursor | None:
        """Adds a page, and returns where the listing continues; None at its end.

        Args:
            page: The page.
            cursor: Where the page was requested.

        Raises:
            StoreUnsupported: The page leaves keys out, or the listing does not advance.
        """
        if page.groups:
            raise self._incomplete(f"it has only the prefix {page.groups[0]!r} in place of the keys below")
        if page.key_count is not None and page.key_count > len(page.objects):
            raise self._incomplete(f"it announces {page.key_count} keys and has {len(page.objects)}")
        new = {each.key: each.size for each in page.objects if each.key not in self._seen}
        self._idle_pages = 0 if new else self._idle_pages + 1
        self._seen.update(new)
        for key, size in new.items():
            if not key.startswith(self._prefix):
                self.outside.append(key)
            elif not (key.endswith("/") and size == 0):
                self.keys.append(key)
        implies_nothing_more = page.truncated is None and not new and not page.token
        if page.truncated is False or implies_nothing_more:
            return None
        following = Cursor(token=page.token)
        if not page.token:
            following = Cursor(marker=page.next_marker or (page.objects[-1].key if page.objects else ""))
        advances = (new or page.token) and following != cursor and (following.token or following.marker)
        if not advances or self._idle_pages > MAX_IDLE_PAGES:
            raise self._incomplete("it announces more keys, and the next page has none")
        return following

    def _incomplete(self, why: str) -> StoreUnsupported:
        return StoreUnsupported(
            f"{self._label}: the store's listing is not complete: {why}.",
            remedy="Name the objects one by one, which needs no listing, or use another endpoint of the store.",
        )


class _Reader:
    """Handles the parser's events. Namespaces are ignored, because all servers use the default one."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._chunks: list[str] = []
        self._fields: dict[str, str] = {}
        self._rows: list[dict[str, str]] = []
        self._row: dict[str, str] = {}
        self._groups: list[str] = []

    def start(self, name: str, _: dict[str, str]) -> None:
        self._path.append(name)
        self._chunks.clear()
        if self._path[1:] == ["Contents"]:
            self._row = {}

    def text(self, data: str) -> None:
        self._chunks.append(data)

    def end(self, name: str) -> None:
        where = self._path[1:]
        if where == ["Contents"]:
            self._rows.append(self._row)
        elif where[:1] == ["Contents"] and len(where) == 2:
            self._row[name] = "".join(self._chunks)
        elif where == ["CommonPrefixes", "Prefix"]:
            self._groups.append("".join(self._chunks))
        elif len(where) == 1:
            self._fields[name] = "".join(self._chunks)
        elif not where and name != "ListBucketResult":
            raise ValueError(name)
        self._path.pop()
        self._chunks.clear()

    def page(self) -> Page:
        encoded = self._fields.get("EncodingType", "").strip() == "url"

        def decoded(text: str) -> str:
            return unquote(text, plus=True) if encoded else text

        count = self._fields.get("KeyCount", "").strip()
        return Page(
            objects=tuple(ListedObject(decoded(row["Key"]), int(row["Size"])) for row in self._rows),
            truncated={"true": True, "1": True, "false": False, "0": False}.get(
                self._fields.get("IsTruncated", "").strip().lower()
            ),
            token=self._fields.get("NextContinuationToken", ""),
            next_marker=decoded(self._fields.get("NextMarker", "")),
            key_count=int(count) if count else None,
            groups=tuple(self._groups),
        )
