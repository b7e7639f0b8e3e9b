"""Reads the XML that stores answer with, element by element."""

from __future__ import annotations

import pyexpat
from typing import Protocol


class Reader(Protocol):
    """What is called for the parts of a document. It may raise ``ValueError`` for a document it can't use."""

    def start(self, name: str, attributes: dict[str, str], /) -> None: ...

    def text(self, text: str, /) -> None: ...

    def end(self, name: str, /) -> None: ...


def read_document(body: bytes, reader: Reader) -> None:
    """Calls the reader for each element of a document and the text in between.

    Raises:
        ValueError: It is not well-formed, or what the reader raises.
    """
    parser = pyexpat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(body, True)  # noqa: FBT003  # expat's flag for the last data
    except pyexpat.ExpatError as error:
        raise ValueError(str(error)) from error
