"""Lists of SHA-256 beside the objects of a source: ``SHA256SUMS``, ``<object>.sha256`` and their like. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from tonnage.contract import ChecksumAlgorithm, ObjectChecksum

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

MAX_LIST_BYTES = 4 << 20
"""Largest list that is read, in bytes; about 40,000 files."""
MAX_LISTS = 200
LIST_NAMES = frozenset({"sha256sums", "sha256sums.txt", "sha256sum.txt", "checksums.sha256"})
"""Names of lists of several files, in lower case."""
_GNU = r"\\?([0-9a-fA-F]{64})(?:[ \t]+\*?(.+))?"
_BSD = r"SHA2?-?256 ?\((.+)\) ?= ?([0-9a-fA-F]{64})"


def is_list(key: str) -> bool:
    """Returns whether an object's name is that of a list."""
    return posixpath.basename(key).lower() in LIST_NAMES or key.endswith(".sha256")


def lists_for(wanted: Iterable[str], keys: Collection[str]) -> list[str]:
    """Returns the lists that may have the SHA-256 of some objects: of each alone, and those in their folders.

    Args:
        wanted: Keys of the objects.
        keys: All keys of the source.
    """
    known = set(keys)
    wanted = list(wanted)
    alone = [f"{key}.sha256" for key in wanted if f"{key}.sha256" in known]
    folders = {posixpath.dirname(key) for key in wanted}
    folders |= {parent for folder in folders for parent in _parents(folder)}
    shared = [
        key for key in keys if posixpath.basename(key).lower() in LIST_NAMES and posixpath.dirname(key) in folders
    ]
    return [*sorted(shared), *alone][:MAX_LISTS]


def parse_lists(contents: Mapping[str, bytes]) -> dict[str, ObjectChecksum]:
    """Returns the SHA-256 of objects by key. Lines of another form, and objects with two values, are left out.

    Args:
        contents: The lists by their key. Names in them are relative to their folder.
    """
    found: dict[str, set[bytes]] = {}
    for list_key, content in contents.items():
        if len(content) > MAX_LIST_BYTES:
            continue
        for line in content.decode("utf-8", "replace").splitlines():
            digest, name = _entry(line.strip(), alone=list_key.removesuffix(".sha256"))
            if name and digest:
                key = posixpath.normpath(posixpath.join(posixpath.dirname(list_key), name))
                found.setdefault(key, set()).add(bytes.fromhex(digest))
    return {
        key: ObjectChecksum(ChecksumAlgorithm.SHA256, values.pop()) for key, values in found.items() if len(values) == 1
    }


def _entry(line: str, *, alone: str) -> tuple[str, str]:
    """Returns digest and name of a line; a digest without a name is that of the object that the list is named after."""
    gnu = re.fullmatch(_GNU, line)
    if gnu is not None:
        return gnu[1], gnu[2] or posixpath.basename(alone)
    bsd = re.fullmatch(_BSD, line)
    return ("", "") if bsd is None else (bsd[2], bsd[1])


def _parents(folder: str) -> list[str]:
    found = []
    while folder:
        folder = posixpath.dirname(folder)
        found.append(folder)
    return found
