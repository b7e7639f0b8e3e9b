"""Compares the ranks that a pod requests with those that the revision has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage import contract
from tonnage.contract import ranks as rank_lists
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Ranks
from tonnage_operator.domain.specs import plans

if TYPE_CHECKING:
    from collections.abc import Collection

    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.observed.model_weights import ModelWeights


def find_missing_ranks(weights: ModelWeights, seen: SeenRevision, requested: Collection[int]) -> str:
    """Returns why the requested ranks can't be loaded; empty if they can, or if the revision's ranks are not known."""
    selection = weights.spec.files.ranks or Ranks()
    names_of_objects = [each.key.rpartition("/")[2] for each in seen.objects or ()]
    kind = contract.choose_weights(names_of_objects, plans.file_selection(weights.spec.files))
    pattern = contract.rank_pattern(selection.pattern, kind)
    available = _ranks_of(names_of_objects, pattern) if seen.objects is not None else None
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
            f"{pattern}. Remove the annotation, or set spec.files.ranks.pattern."
        )
    return (
        f"{names.RANKS}: ModelWeights {weights.ref} has no rank {rank_lists.format_ranks(missing)}; {seen.revision} "
        f"has the ranks {rank_lists.format_ranks(available)}."
    )


def _ranks_of(objects: Collection[str], pattern: str) -> set[int]:
    """Returns the ranks of a revision's objects, by their names."""
    expression = contract.rank_expression(pattern)
    matches = (expression.fullmatch(name) for name in objects) if expression is not None else ()
    return {int(match[1][:9]) for match in matches if match}
