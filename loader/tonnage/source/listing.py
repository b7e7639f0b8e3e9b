"""ListObjectsV2: builds the query for a page and parses its XML. Pure."""

from __future__ import annotations

import pyexpat
from typing import NamedTuple

from tonnage.errors import EndpointUnreachable
from tonnage.source.endpoint_urls import quote, unquote

PAGE_LIMIT = 16 << 20
"""Maximum size of a page in bytes. S3 limits it to 1,000 keys of 1,024 bytes, at most 4 MiB."""


class ListedObject(NamedTuple):
    """An object in a listing."""

    key: str
    size: int


class Page(NamedTuple):
    """A page of a listing. ``token`` is the continuation token, empty on the last page."""

    objects: tuple[ListedObject, ...]
    token: str


def list_query(prefix: str, *, token: str = "", max_keys: int = 1000) -> str:
    """Returns the query for a page of the keys that begin with ``prefix``, its parameters sorted for the signature."""
    parts = {"encoding-type": "url", "list-type": "2", "max-keys": str(max_keys), "prefix": prefix}
    if token:
        parts["continuation-token"] = token
    return "&".join(f"{name}={quote(parts[name])}" for name in sorted(parts))


def parse_page(body: bytes, *, label: str) -> Page:
    """Parses a page.

    Args:
        body: The response body.
        label: The prefix that was listed, for the message.

    Raises:
        EndpointUnreachable: The body is not a listing, so the server is not an S3 server.
    """
    reader = _Reader()
    parser = pyexpat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(body, True)  # noqa: FBT003  # expat's flag for the last data
        return reader.page()
    except (pyexpat.ExpatError, ValueError) as error:
        raise EndpointUnreachable(f"{label}: the response is not an S3 listing; is this an S3 endpoint?") from error


class _Reader:
    """Handles the parser's events. Namespaces are ignored, because all servers use the default one."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._chunks: list[str] = []
        self._fields: dict[str, str] = {}
        self._rows: list[dict[str, str]] = []
        self._row: dict[str, str] = {}

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
        elif len(where) == 1:
            self._fields[name] = "".join(self._chunks)
        elif not where and name != "ListBucketResult":
            raise ValueError(name)
        self._path.pop()
        self._chunks.clear()

    def page(self) -> Page:
        encoded = self._fields.get("EncodingType") == "url"
        objects = []
        for row in self._rows:
            key = row.get("Key", "")
            objects.append(ListedObject(unquote(key, plus=True) if encoded else key, int(row.get("Size", "0"))))
        truncated = self._fields.get("IsTruncated") == "true"
        return Page(tuple(objects), self._fields.get("NextContinuationToken", "") if truncated else "")
