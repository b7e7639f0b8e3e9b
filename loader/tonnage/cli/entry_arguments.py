"""Finds the entries of a cache that the command line names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.cache.artifacts import ARTIFACTS_NAME_PATTERN
from tonnage.cache.cache import Cache
from tonnage.cache.entry import Entry
from tonnage.cli.parser import UsageError
from tonnage.cli.plan_arguments import cache_folder
from tonnage.errors import InvalidPlan, ObjectNotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def cache_from_arguments(arguments: argparse.Namespace) -> Cache:
    """Returns the cache that ``--cache`` names.

    Raises:
        InvalidPlan: It is not given, or not a folder.
    """
    root = cache_folder(arguments)
    if not root.is_dir():
        raise UsageError(f"The cache {root} is not a folder.", command=f"tonnage {arguments.command}")
    return Cache(root)


def select_entries(arguments: argparse.Namespace, *, ignore_not_found: bool = False) -> list[Entry]:
    """Returns the entries that the command line names, without duplicates, in its order.

    Args:
        arguments: The command line.
        ignore_not_found: Skip entries that don't exist.

    Raises:
        ObjectNotFound: An entry doesn't exist.
        InvalidPlan: A prefix matches several entries, or a name is given without ``--cache``.
    """
    found: dict[Path, Entry] = {}
    for word in arguments.entries:
        try:
            entry = select_entry(word, arguments)
        except ObjectNotFound:
            if not ignore_not_found:
                raise
        else:
            found.setdefault(entry.path, entry)
    return list(found.values())


def select_entry(word: str, arguments: argparse.Namespace) -> Entry:
    """Returns the entry that a word of the command line names.

    A word with a slash is the path of an entry or of its ``model`` folder; any other is a name, or a unique prefix of a
    name, in ``--cache``.

    Raises:
        ObjectNotFound: The entry doesn't exist.
        InvalidPlan: A prefix matches several entries, or a name is given without ``--cache``.
    """
    if "/" in word:
        return _find_entry_by_path(word)
    cache = cache_from_arguments(arguments)
    if ARTIFACTS_NAME_PATTERN.fullmatch(word) and (entry := cache.entry(word)).exists():
        return entry
    return find_entry_by_name(word, cache.entries(), arguments.cache)


def find_entry_by_name(name_or_prefix: str, known: Sequence[Entry], cache: str) -> Entry:
    """Returns the entry with this name, or the only one whose name has this prefix.

    Raises:
        ObjectNotFound: No entry matches.
        InvalidPlan: Several entries match.
    """
    matches = [entry for entry in known if entry.name == name_or_prefix] or [
        entry for entry in known if name_or_prefix and entry.name.startswith(name_or_prefix)
    ]
    if not matches:
        raise ObjectNotFound(f"Entry {name_or_prefix!r} not found in {cache}; `tonnage ls` lists its entries.")
    if len(matches) > 1:
        names = ", ".join(entry.name for entry in matches)
        raise InvalidPlan(f"{name_or_prefix!r} is the prefix of several entries: {names}.")
    return matches[0]


def _find_entry_by_path(path: str) -> Entry:
    entry = Entry.from_path(Path(path))
    if entry is None:
        raise ObjectNotFound(f"{path} is not an entry of a cache.")
    return entry
