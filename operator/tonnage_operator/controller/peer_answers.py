"""Answers loaders that ask which peers have their entry."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tonnage.contract.peers import Peer, PeersAnswer, Purpose, new_grant, sign_grant
from tonnage_operator.domain import naming

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.peers.credentials import PeerCredentials

_INTERVAL_WITHOUT_PEERS: Final = 60.0
"""Seconds after which loaders ask again while no ticket can be given."""


class PeerAnswers:
    """Names peers and signs tickets. Without credentials, as without ``peers.enabled``, it does neither."""

    def __init__(self, state: ControllerState, credentials: Callable[[], PeerCredentials | None]) -> None:
        self._state = state
        self._credentials = credentials

    def answer(
        self, key: EntryKey, node: str, model_uid: str, account: str, *, of_job: bool = False, headers_digest: str = ""
    ) -> PeersAnswer:
        """Returns the answer for one loader, whose pod has been authenticated.

        Args:
            key: The entry that it loads, with the namespace if namespaces don't share entries.
            node: Its node.
            model_uid: Uid of the object that has the entry.
            account: Namespace and name of the loader's ServiceAccount.
            of_job: Whether it is the pod of a load Job of the object. What other pods report of headers is not
                believed: they may run code of others.
            headers_digest: The digest of the headers that it has read from its source; empty: none yet.
        """
        credentials = self._credentials()
        if credentials is None:
            return PeersAnswer(interval=_INTERVAL_WITHOUT_PEERS)
        state, now = self._state, time.monotonic()
        zone = state.zone(node)

        def is_near(other: str) -> bool:
            return not zone or state.zone(other) in {"", zone}

        peers = state.peers.choose(
            key,
            node,
            recorded=state.cache_index.nodes_with(*key).keys(),
            is_complete=lambda each: state.has_whole_entry(each, key),
            is_near=is_near,
            now=now,
        )
        state.peers.note_asking(key, node, now)
        loading, place = state.peers.share(key, node)
        digest, task = self._headers_digest(key, model_uid), ""
        if not digest:
            digest, task = state.peers.headers(key, model_uid, node, now, believed=of_job, digest=headers_digest)
        caller = f"{model_uid}/{account}"  # the object's credentials are those of this namespace and account
        grant = new_grant(medium=key.medium.value.lower(), key=key.cache_key, caller=caller, now=time.time())
        return PeersAnswer(
            peers=tuple(Peer(node=name, address=address, near=is_near(name)) for name, address in peers),
            ticket=sign_grant(grant, Purpose.TICKET, credentials.signing_key(datetime.now(UTC))),
            headers_digest=digest,
            certificates=credentials.trusted.decode(),
            loading=loading,
            place=place,
            headers=task,
        )

    def _headers_digest(self, key: EntryKey, model_uid: str) -> str:
        """Returns the digest that a load of this object has reported for the entry; empty if none has."""
        record = self._state.weights.get(model_uid)
        if record is None or record.weights is None:
            return ""
        status, cache = record.weights.status, record.weights.spec.cache
        for seen in (status.resolved, status.available, *(status.history or ())):
            if seen and naming.cache_entry_name(seen.revision, cache) == naming.entry_of(key.cache_key):
                return seen.headers_digest
        return ""
