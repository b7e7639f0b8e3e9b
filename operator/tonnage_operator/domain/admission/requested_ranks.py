"""Compares the ranks that a pod requests with those that the revision has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tonnage.contract import ranks as rank_lists
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Ranks

if TYPE_CHECKING:
    from collections.abc import Collection

    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.observed.model_weights import ModelWeights


def find_missing_ranks(weights: ModelWeights, seen: SeenRevision, requested: Collection[int]) -> str:
    """Returns why the requested ranks can't be loaded; empty if they can, or if the revision's ranks are not known."""
    selection = weights.spec.files.ranks or Ranks()
    available = _ranks_of(seen, selection.pattern)
    if available is None:
        if selection.count is None:
            return ""
        available = set(range(selection.count))
    missing = set(requested) - available
    if not missing:
        return ""
    if not available:
        return (
            f"{names.RANKS}: ModelWeights {weights.ref} has no ranks: no object of {seen.revision} is named like "
            f"{selection.pattern}. Remove the annotation, or set spec.files.ranks.pattern."
        )
    return (
        f"{names.RANKS}: ModelWeights {weights.ref} has no rank {rank_lists.format_ranks(missing)}; {seen.revision} "
        f"has the ranks {rank_lists.format_ranks(available)}."
    )


def _ranks_of(seen: SeenRevision, pattern: str) -> set[int] | None:
    """Returns the ranks of a revision's objects; None if the list of objects is not in the status."""
    if seen.objects is None:
        return None
    before, width, after = re.split(r"%(0[1-9])?d", pattern, maxsplit=1)
    digits = rf"\d{{{int(width)},}}" if width else r"\d+"
    expression = re.compile(f"{re.escape(before)}({digits}){re.escape(after)}", re.ASCII)
    matches = (expression.fullmatch(each.key.rpartition("/")[2]) for each in seen.objects)
    return {int(match[1][:9]) for match in matches if match}
