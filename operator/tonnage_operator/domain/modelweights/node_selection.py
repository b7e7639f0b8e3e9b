"""Selects the desired nodes of a ``ModelWeights``."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tonnage_operator.api.placement import PrewarmMode
from tonnage_operator.domain.node_matching import is_schedulable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tonnage_operator.api.placement import PlacementSpec
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.node import Node


def desired_nodes(
    placement: PlacementSpec,
    matching: Iterable[Node],
    installation: Installation,
    *,
    seed: str,
    warm: Collection[str],
    loading: Collection[str],
) -> tuple[Node, ...]:
    """Returns the nodes that should be warm, in loading order.

    Args:
        placement: The object's placement.
        matching: The nodes that it selects.
        installation: What the administrator allows.
        seed: Makes the order specific to the object, so that objects don't all start on the same nodes.
        warm: Names of warm nodes; with ``Count`` they come first, so that the selection is stable.
        loading: Names of loading nodes; with ``Count`` they come second.
    """
    if placement.prewarm is PrewarmMode.NONE:
        return ()
    fit = [node for node in matching if is_schedulable(placement, node, installation)]
    fit.sort(key=lambda node: _order(seed, node.name))
    if placement.prewarm is PrewarmMode.COUNT:
        fit.sort(key=lambda node: 0 if node.name in warm else 1 if node.name in loading else 2)
        fit = fit[: placement.count]
    return tuple(fit)


def _order(seed: str, node: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{node}".encode(), digest_size=8).digest()
