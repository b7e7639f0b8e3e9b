"""Finding the entries of a cache that a person means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cache.entry import Entry
from tonnage.cache.root import Cache
from tonnage.cli.parser import UsageError
from tonnage.errors import InvalidPlan, ObjectNotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def cache_of(arguments: argparse.Namespace) -> Cache:
    """Returns the cache that ``--cache`` names.

    Raises:
        InvalidPlan: There is none, or it is no folder.
    """
    if not arguments.cache:
        message = "Where is the cache? Give --cache DIR or set TONNAGE_CACHE."
        raise UsageError(message, command=f"tonnage {arguments.command}")
    root = Path(arguments.cache)
    if not root.is_dir():
        message = f"There is no cache at {root}: it is not a folder."
        raise UsageError(message, command=f"tonnage {arguments.command}")
    return Cache(root)


def wanted_entries(arguments: argparse.Namespace, *, ignore_not_found: bool = False) -> list[Entry]:
    """Returns the entries that the words of the command line mean, once each, in their order.

    A word with a slash is the path of an entry, or of its ``model`` folder; any other is a name in ``--cache``, or the
    beginning of just one.

    Args:
        arguments: The command line.
        ignore_not_found: Leave out what isn't there.

    Raises:
        ObjectNotFound: There is no such entry.
        InvalidPlan: A beginning fits several, or names need ``--cache``.
    """
    names = [word for word in arguments.entries if "/" not in word]
    known = cache_of(arguments).entries() if names else []
    found: dict[Path, Entry] = {}
    for word in arguments.entries:
        try:
            entry = entry_named(word, known, arguments.cache) if "/" not in word else _entry_at(word)
        except ObjectNotFound:
            if not ignore_not_found:
                raise
        else:
            found.setdefault(entry.path, entry)
    return list(found.values())


def entry_named(word: str, known: Sequence[Entry], cache: str) -> Entry:
    """Returns the entry with this name, or the only one whose name begins so.

    Raises:
        ObjectNotFound: There is none.
        InvalidPlan: There are several.
    """
    fitting = [entry for entry in known if entry.name == word] or [
        entry for entry in known if word and entry.name.startswith(word)
    ]
    if not fitting:
        raise ObjectNotFound(f"There is no entry {word!r} in {cache}; `tonnage ls` lists those that are there.")
    if len(fitting) > 1:
        names = ", ".join(entry.name for entry in fitting)
        raise InvalidPlan(f"{word!r} is the beginning of several entries: {names}.")
    return fitting[0]


def _entry_at(word: str) -> Entry:
    entry = Entry.at(Path(word))
    if entry is None:
        raise ObjectNotFound(f"{word} is not an entry of a cache.")
    return entry
