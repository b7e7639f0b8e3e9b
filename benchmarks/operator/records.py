"""Writes the records of nodes that have models, so that a benchmark needs not load them first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from operator_support import objects
from operator_support.harness import make_installation
from tonnage_operator.api import names
from tonnage_operator.api.nodecache import CacheEntry, EntryState, NodeCacheStatus
from tonnage_operator.domain.observed.model_weights import parse_model_weights
from tonnage_operator.kube.client import KubeClient
from tonnage_operator.kube.credentials import from_kubeconfig
from tonnage_operator.kube.resources import NODE_CACHES, NODES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CONCURRENCY = 16


def write_records(kubeconfig: Path, models: Sequence[dict[str, Any]], report_time: str) -> None:
    """Writes a ``NodeCache`` with all models for each node, as it is when all have been loaded.

    Args:
        kubeconfig: The API server and the administrator's credentials.
        models: The ``ModelWeights``, each with a resolved revision.
        report_time: When the entries were last used, in RFC 3339.
    """
    asyncio.run(_write(kubeconfig, [_entry(each, report_time) for each in models]))


def _entry(body: dict[str, Any], report_time: str) -> CacheEntry:
    weights, installation = parse_model_weights(body), make_installation()
    assert weights.status.resolved is not None
    revision = weights.status.resolved.revision
    return CacheEntry(
        name=weights.key(revision, installation),
        medium=weights.medium(installation),
        state=EntryState.READY,
        bytes=2 * objects.GIB,
        models=(weights.ref,),
        verified="CRC32",
        revision=revision,
        last_used_time=report_time,
    )


async def _write(kubeconfig: Path, entries: list[CacheEntry]) -> None:
    gate = asyncio.Semaphore(_CONCURRENCY)
    async with KubeClient(await from_kubeconfig(str(kubeconfig)), field_manager=names.FIELD_MANAGER) as client:
        nodes, _ = await client.list(NODES)

        async def write(node: dict[str, Any]) -> None:
            metadata = node["metadata"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": metadata["name"], "uid": metadata["uid"]}
            labels = {names.MANAGED_BY: names.MANAGER, names.HOSTNAME_LABEL: metadata["labels"][names.HOSTNAME_LABEL]}
            made = {"name": metadata["name"], "labels": labels, "ownerReferences": [owner]}
            status = NodeCacheStatus(bootID=node["status"]["nodeInfo"]["bootID"], entries=tuple(entries))
            body = {"apiVersion": names.API_VERSION, "kind": names.NODE_CACHE_KIND, "metadata": made}
            patch = {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
            async with gate:
                await client.apply(NODE_CACHES, body)
                await client.merge_patch(NODE_CACHES, metadata["name"], "", patch, subresource="status")

        await asyncio.gather(*map(write, nodes))
