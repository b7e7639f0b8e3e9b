"""The event of a pod that no node takes: which models it waits for, and which nodes are being warmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain.conditions import MESSAGE_LIMIT, Event
from tonnage_operator.domain.node_matching import matches
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.nodecache.index import CacheIndex
    from tonnage_operator.domain.observed.held_entries import HeldEntry
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.domain.observed.pod import Pod

_MAX_NAMED: Final = 3


def describe_wait(
    pod: Pod,
    models: Mapping[str, ModelWeights],
    nodes: Iterable[Node],
    cache_index: CacheIndex,
    installation: Installation,
) -> Event | None:
    """Returns the event on a pod that waits for a warm node; None if it is scheduled, or waits for something else.

    Args:
        pod: A pod with loaders.
        models: Its models, by uid.
        nodes: All nodes.
        cache_index: The entries on them.
        installation: The startup taints.
    """
    if pod.node or pod.deleting or not pod.unschedulable_message:
        return None
    known = {node.name: node for node in nodes}
    sentences, state = [], []
    for held in pod.held_entries:
        weights = models.get(held.uid)
        if weights is None or not held.key or held.is_artifacts:
            continue
        warm, gated = _warm_nodes(held, known, cache_index), _gated_nodes(weights, known, installation)
        requires = (pod.scheduling or weights.spec.placement.scheduling.value) == Scheduling.REQUIRE.value
        if not gated and not requires:
            continue
        sentences.append(_describe(weights.ref, warm, gated))
        state.append(f"{held.uid} {bool(warm)} {bool(gated)}")
    if not sentences:
        return None
    message = " ".join(sentences)[:MESSAGE_LIMIT]
    return Event(EventReason.WAITING_FOR_WARM_NODE, message, key=" ".join(state))


def _warm_nodes(held: HeldEntry, known: Mapping[str, Node], cache_index: CacheIndex) -> list[str]:
    entries = cache_index.nodes_with(held.key, held.medium)
    return sorted(name for name, entry in entries.items() if entry.state is EntryState.READY and name in known)


def _gated_nodes(weights: ModelWeights, known: Mapping[str, Node], installation: Installation) -> list[str]:
    taints, placement = installation.gate.taints_of(weights.spec.placement.gate), weights.spec.placement
    return sorted(
        node.name
        for node in known.values()
        if taints.intersection(taint.key for taint in node.taints) and matches(placement, node, installation.prewarm)
    )


def _describe(ref: str, warm: Sequence[str], gated: Sequence[str]) -> str:
    text = f"No node is warm for {ref} yet." if not warm else f"The nodes that are warm for {ref} don't take this pod."
    if gated:
        more = f" and {len(gated) - _MAX_NAMED} more" if len(gated) > _MAX_NAMED else ""
        return f"{text} New nodes take it as soon as they are warm: {', '.join(gated[:_MAX_NAMED])}{more}."
    return f"{text} It waits for room, or for a node that is added."
