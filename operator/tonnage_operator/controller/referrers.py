"""Which objects refer to which entries, kept up to date with each object, so that a node finds its own at once."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tonnage_operator.api.modelweights import AccessFrom, Retention
from tonnage_operator.domain.nodecache import Referrer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage_operator.domain.caches import Key
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.weights import Weights


class Referrers:
    """All objects, as far as nodes care."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._all: dict[str, Referrer] = {}
        self._by_key: dict[Key, set[str]] = defaultdict(set)
        self._by_ref: dict[str, str] = {}
        self._always: set[str] = set()
        """Those that may matter to any node: being deleted, or not to be read."""

    def put(self, uid: str, weights: Weights) -> None:
        """Takes in an object."""
        references, retention = weights.references(self._installation), weights.spec.cache.retention
        guests = weights.spec.access.allowed_namespaces.from_ is not AccessFrom.SAME
        self._put(uid, Referrer(weights.ref, weights.deleting, references, retention, guests=guests))

    def put_unreadable(self, uid: str, ref: str, *, deleting: bool) -> None:
        """Takes in an object of which nothing but its name is understood."""
        self._put(uid, Referrer(ref, deleting, frozenset(), Retention.WHILE_REFERENCED, known=False))

    def drop(self, uid: str) -> None:
        """Forgets an object, if it is known."""
        before = self._all.pop(uid, None)
        if before:
            for key in before.references:
                uids = self._by_key[key]
                uids.discard(uid)
                if not uids:
                    del self._by_key[key]
            self._always.discard(uid)
            if self._by_ref.get(before.ref) == uid:
                del self._by_ref[before.ref]

    def _put(self, uid: str, after: Referrer) -> None:
        self.drop(uid)
        self._all[uid] = after
        self._by_ref[after.ref] = uid
        for key in after.references:
            self._by_key[key].add(uid)
        if after.deleting or not after.known:
            self._always.add(uid)

    def get(self, uid: str) -> Referrer | None:
        """Returns one object."""
        return self._all.get(uid)

    def of(self, keys: Iterable[Key]) -> Sequence[Referrer]:
        """Returns the objects that refer to one of the entries, and all that are being deleted or can't be read."""
        uids = self._always.union(*(self._by_key.get(key, ()) for key in keys))
        return [self._all[uid] for uid in sorted(uids)]

    def uids_of(self, keys: Iterable[Key], refs: Iterable[str]) -> set[str]:
        """Returns the uids of the objects that refer to one of the entries, or have one of the names."""
        found: set[str] = set()
        found.update(*(self._by_key.get(key, ()) for key in keys))
        found.update(uid for ref in refs if (uid := self._by_ref.get(ref)))
        return found
