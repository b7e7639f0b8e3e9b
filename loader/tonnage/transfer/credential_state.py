"""The credentials and URLs that workers use; refreshed before they expire, or after the store denied a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache.medium import BY_ADVICE
from tonnage.source.request_failure import Retry
from tonnage.transfer import body
from tonnage.transfer.protocol import Setup, UpdateCredentials, UpdateTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.source.request_failure import RequestFailure
    from tonnage.source.request_target import Credentials
    from tonnage.transfer.transfer_spec import TransferSpec
    from tonnage.transfer.worker_pool import WorkerPool


class CredentialState:
    """The current credentials and request targets of a transfer.

    Attributes:
        generation: Incremented on each change. A request of an older generation that was denied can be retried without
            another refresh.
    """

    def __init__(self, spec: TransferSpec) -> None:
        self._spec = spec
        self._credentials = [source.current() for source in spec.credentials]
        self._targets = list(spec.targets)
        wanted = {index: check.received_crc for index, check in spec.checks.items()}
        self._crcs = [crc.value if (crc := wanted.get(index)) else "" for index in range(len(spec.targets))]
        self.generation = 0

    def setup(self) -> Setup:
        """Returns the setup message for a worker started now."""
        return Setup(
            list(self._targets),
            list(self._spec.credential_indexes),
            list(self._credentials),
            list(self._spec.paths),
            self._spec.stall_seconds,
            bool(self._spec.pages),
            self._spec.pages == BY_ADVICE,
            self._crcs,
            body.LIBRARY,
        )

    def refresh_expiring(self, pool: WorkerPool) -> None:
        """Refreshes credentials that expire soon."""
        self._update_credentials(pool, [source.current() for source in self._spec.credentials])

    def refresh_after_denial(self, pool: WorkerPool, failure: RequestFailure, generation: int) -> bool:
        """Refreshes credentials and URLs after a denied request; returns whether to retry it.

        Returns True without a refresh if there has been one since the request was sent.

        Args:
            pool: The workers, which get the new credentials and URLs.
            failure: The denial.
            generation: The generation of the request.
        """
        if generation != self.generation or self._update_targets(pool):
            return True
        return failure.retry is Retry.REFRESH_CREDENTIALS and self._update_credentials(pool, self._refreshed())

    def _refreshed(self) -> list[Credentials | None]:
        return [
            source.refresh(failed) for source, failed in zip(self._spec.credentials, self._credentials, strict=True)
        ]

    def _update_credentials(self, pool: WorkerPool, credentials: list[Credentials | None]) -> bool:
        before, self._credentials = self._credentials, credentials
        changed = [index for index, new in enumerate(credentials) if new != before[index]]
        for index in changed:
            pool.broadcast(UpdateCredentials(index, credentials[index]))
        return self._advance_generation(pool, changed)

    def _update_targets(self, pool: WorkerPool) -> bool:
        if self._spec.refresh_targets is None:
            return False
        before, self._targets = self._targets, list(self._spec.refresh_targets())
        changed = [index for index, new in enumerate(self._targets) if new != before[index]]
        for index in changed:
            pool.broadcast(UpdateTarget(index, self._targets[index]))
        return self._advance_generation(pool, changed)

    def _advance_generation(self, pool: WorkerPool, changed: Sequence[int]) -> bool:
        if changed:
            self.generation += 1
            pool.set_setup(self.setup())
        return bool(changed)
