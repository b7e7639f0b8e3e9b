"""ListObjectsV2: the query of one page, and what its XML says. Pure."""

from __future__ import annotations

import pyexpat
from typing import NamedTuple

from tonnage.errors import EndpointUnreachable
from tonnage.source.endpoint_urls import quote, unquote

PAGE_LIMIT = 16 << 20
"""The most bytes that one page of at most 1,000 keys may have; keys of 1,024 bytes make it 4 MiB at worst."""


class ListedObject(NamedTuple):
    """One object of a listing."""

    key: str
    size: int


class Page(NamedTuple):
    """One page. ``token`` continues the listing; empty on the last page."""

    objects: tuple[ListedObject, ...]
    token: str


def list_query(prefix: str, *, token: str = "", max_keys: int = 1000) -> str:
    """Returns the query string of a page of all keys that begin with ``prefix``, in the order that is signed."""
    parts = {"encoding-type": "url", "list-type": "2", "max-keys": str(max_keys), "prefix": prefix}
    if token:
        parts["continuation-token"] = token
    return "&".join(f"{name}={quote(parts[name])}" for name in sorted(parts))


def parse_page(body: bytes, *, label: str) -> Page:
    """Reads one page.

    Args:
        body: The answer's body.
        label: What was listed, for the message.

    Raises:
        EndpointUnreachable: It is not a listing, so the server is no S3 server.
    """
    reader = _Reader()
    parser = pyexpat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(body, True)  # noqa: FBT003  # expat's own way to say that this is all
        return reader.page()
    except (pyexpat.ExpatError, ValueError) as error:
        raise EndpointUnreachable(f"{label}: the answer is not an S3 listing; is this an S3 endpoint?") from error


class _Reader:
    """Collects what the parser meets. Names come without namespace handling, as every server uses the default one."""

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
