"""Finding the entries of a cache that a person means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cache.cache import Cache
from tonnage.cache.entry import Entry
from tonnage.cli.command_line import UsageError
from tonnage.errors import InvalidPlan, ObjectNotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def cache_from_arguments(arguments: argparse.Namespace) -> Cache:
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


def select_entries(arguments: argparse.Namespace, *, ignore_not_found: bool = False) -> list[Entry]:
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
    known = cache_from_arguments(arguments).entries() if names else []
    found: dict[Path, Entry] = {}
    for word in arguments.entries:
        try:
            entry = find_entry_by_name(word, known, arguments.cache) if "/" not in word else _find_entry_by_path(word)
        except ObjectNotFound:
            if not ignore_not_found:
                raise
        else:
            found.setdefault(entry.path, entry)
    return list(found.values())


def find_entry_by_name(name_or_prefix: str, known: Sequence[Entry], cache: str) -> Entry:
    """Returns the entry with this name, or the only one whose name begins so.

    Raises:
        ObjectNotFound: There is none.
        InvalidPlan: There are several.
    """
    matches = [entry for entry in known if entry.name == name_or_prefix] or [
        entry for entry in known if name_or_prefix and entry.name.startswith(name_or_prefix)
    ]
    if not matches:
        raise ObjectNotFound(
            f"There is no entry {name_or_prefix!r} in {cache}; `tonnage ls` lists those that are there."
        )
    if len(matches) > 1:
        names = ", ".join(entry.name for entry in matches)
        raise InvalidPlan(f"{name_or_prefix!r} is the beginning of several entries: {names}.")
    return matches[0]


def _find_entry_by_path(path: str) -> Entry:
    entry = Entry.from_path(Path(path))
    if entry is None:
        raise ObjectNotFound(f"{path} is not an entry of a cache.")
    return entry
