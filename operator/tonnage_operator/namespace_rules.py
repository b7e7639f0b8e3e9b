"""Reads the LimitRanges and ResourceQuotas of namespaces in which loaders run."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from tonnage_operator.domain.specs.namespace_limits import NamespaceLimits, parse_namespace_limits
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import LIMIT_RANGES, RESOURCE_QUOTAS

if TYPE_CHECKING:
    from tonnage_operator.kube.client import KubeClient

_LOG = logging.getLogger("tonnage.namespaces")

_TIMEOUT: Final = 2.0
"""Seconds to list one kind. Without an answer, a loader's resources are those of the object."""
_MAX_AGE: Final = 10.0
"""Seconds for which a namespace's rules are used again."""
_MAX_CACHED: Final = 5_000


class NamespaceRules:
    """What each namespace requires of containers, read when it is needed and kept for some seconds."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._cached: dict[str, tuple[float, NamespaceLimits]] = {}

    async def get(self, namespace: str) -> NamespaceLimits:
        """Returns a namespace's limits; none if they can't be read, which the API server then reports for the pod."""
        cached = self._cached.get(namespace)
        if cached and cached[0] > time.monotonic():
            return cached[1]
        try:
            (ranges, _), (quotas, _) = await asyncio.gather(
                self._client.list(LIMIT_RANGES, namespace=namespace, timeout=_TIMEOUT),
                self._client.list(RESOURCE_QUOTAS, namespace=namespace, timeout=_TIMEOUT),
            )
        except ApiError as error:
            _LOG.warning("Reading the limits of namespace %s failed: %s", namespace, error.message)
            return NamespaceLimits()
        limits = parse_namespace_limits(ranges, quotas)
        while len(self._cached) >= _MAX_CACHED:
            del self._cached[next(iter(self._cached))]
        self._cached[namespace] = (time.monotonic() + _MAX_AGE, limits)
        return limits
