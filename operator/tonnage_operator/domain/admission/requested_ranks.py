"""Compares the ranks that a pod requests, and those that its servers have, with those of the revision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tonnage import contract
from tonnage.contract import ranks as rank_lists
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Ranks
from tonnage_operator.domain.specs import plans

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.observed.model_weights import ModelWeights


_SHARDED_STATE: Final = re.compile(r"--load[-_]format[=\s]+['\"]?(?:runai_streamer_sharded|sharded_state)\b")
_PARALLEL_SIZE: Final = re.compile(r"(?:--tensor[-_]parallel[-_]size|--tp[-_]size|--tp|-tp)[=\s]+['\"]?(\S*)")
_CONFIGURED: Final = re.compile(r"\$|--config\b|@")
"""What arguments have that are not all there: variables, and files with more of them."""


def find_missing_ranks(weights: ModelWeights, seen: SeenRevision, requested: Collection[int]) -> str:
    """Returns why the requested ranks can't be loaded; empty if they can, or if the revision's ranks are not known."""
    available = _available_ranks(weights, seen)
    if available is None:
        return ""
    missing = set(requested) - available
    if not missing:
        return ""
    if not available:
        return (
            f"{names.RANKS}: ModelWeights {weights.ref} has no ranks: no object of {seen.revision} is named like "
            f"{_pattern(weights, seen)}. Remove the annotation, or set spec.files.ranks.pattern."
        )
    return (
        f"{names.RANKS}: ModelWeights {weights.ref} has no rank {rank_lists.format_ranks(missing)}; {seen.revision} "
        f"has the ranks {rank_lists.format_ranks(available)}."
    )


def find_fewer_ranks(weights: ModelWeights, seen: SeenRevision, containers: Sequence[Body]) -> str:
    """Returns why a server would give wrong tokens without an error; empty if none is known to.

    vLLM's and SGLang's ``sharded_state`` don't compare the number of ranks: with fewer than the files were written for,
    each copies its part into the beginning of a larger tensor. Only arguments that are in the pod as they are count.
    """
    ranks = 1 + max(_available_ranks(weights, seen) or (0,))
    for container in containers:
        text = " ".join(map(str, (*(container.get("command") or ()), *(container.get("args") or ()))))
        if not _SHARDED_STATE.search(text):
            continue
        given = _PARALLEL_SIZE.findall(text)
        if not given and _CONFIGURED.search(text):
            continue
        size = given[-1].rstrip("'\";") if given else "1"
        if size.isascii() and size.isdigit() and len(size) < 9 and int(size) < ranks:
            return (
                f"Container {container['name']} would serve ModelWeights {weights.ref} with {size} of its {ranks} "
                "ranks: --load-format sharded_state doesn't notice, and gives wrong tokens. Set --tensor-parallel-size "
                f"{ranks}, or --load-format tonnage, which compares them."
            )
    return ""


def _available_ranks(weights: ModelWeights, seen: SeenRevision) -> set[int] | None:
    """Returns the ranks of a revision; None if they are not known."""
    pattern = _pattern(weights, seen)
    available = _ranks_of(_names_of_objects(seen), pattern) if seen.objects is not None else None
    count = (weights.spec.files.ranks or Ranks()).count
    return set(range(count)) if available is None and count is not None else available


def _pattern(weights: ModelWeights, seen: SeenRevision) -> str:
    kind = contract.choose_weights(_names_of_objects(seen), plans.file_selection(weights.spec.files))
    return contract.rank_pattern((weights.spec.files.ranks or Ranks()).pattern, kind)


def _names_of_objects(seen: SeenRevision) -> list[str]:
    return [each.key.rpartition("/")[2] for each in seen.objects or ()]


def _ranks_of(objects: Collection[str], pattern: str) -> set[int]:
    """Returns the ranks of a revision's objects, by their names."""
    expression = contract.rank_expression(pattern)
    matches = (expression.fullmatch(name) for name in objects) if expression is not None else ()
    return {int(match[1][:9]) for match in matches if match}
