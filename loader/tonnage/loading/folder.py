"""Loads into a folder of the user: what a load may replace there, and its notes about the files of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache import commit
from tonnage.cache.flat import OVERWRITE_REMEDY, check_places, foreign_weights_note
from tonnage.errors import TargetExists

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import Manifest
    from tonnage.planning.blueprint import Blueprint


def check_folder(entry: Entry, blueprint: Blueprint, on_note: Callable[[str], None]) -> Blueprint:
    """Returns the blueprint, if its files can be published in the entry; see ``flat.check_places``."""
    if not entry.is_flat:
        return blueprint
    names = [file.path for file in blueprint.files]
    check_places(entry, names)
    note = foreign_weights_note(entry, names)
    if note:
        on_note(note)
    return blueprint


def replace_revision(entry: Entry, manifest: Manifest) -> str:
    """Removes what a flat entry has, if the load may overwrite it. Returns a sentence for the report.

    Raises:
        TargetExists: It may not.
    """
    if not entry.overwrites:
        placed = manifest.computed_buffers
        what = f", loaded with --computed-buffers {placed.value}" if placed is not None else ""
        raise TargetExists(
            f"{entry.path} has the files of revision {manifest.revision}{what}, which this load would replace.",
            remedy=OVERWRITE_REMEDY,
        )
    commit.clear(entry)
    return f"The files of revision {manifest.revision}, which the folder had, were replaced."
