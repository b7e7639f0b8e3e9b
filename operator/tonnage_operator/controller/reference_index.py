"""Index from cache entries to the ``ModelWeights`` that refer to them, updated with each object."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from tonnage_operator.api.modelweights import FromNamespaces, Retention
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.domain import naming
from tonnage_operator.domain.nodecache.snapshot import ModelReferences

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights


MAX_RELEASED = 256
"""Entries that an object has released above which they are forgotten: their nodes were reconciled long ago."""


def _without_namespace(key: EntryKey) -> EntryKey:
    return EntryKey(naming.entry_of(key.cache_key), key.medium)


class ReferenceIndex:
    """The fields of all ``ModelWeights`` on which decisions about nodes depend."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._by_uid: dict[str, ModelReferences] = {}
        self._by_key: dict[EntryKey, set[str]] = defaultdict(set)
        self._by_ref: dict[str, str] = {}
        self._always_included: set[str] = set()
        """Uids of objects that may concern any node: those being deleted, and those with an invalid spec."""

    def put(self, uid: str, weights: ModelWeights) -> None:
        """Adds an object, or replaces it. What it no longer refers to is released until another object refers to it."""
        before = self._by_uid.get(uid)
        dropped = before.entries | before.released if before else frozenset()
        if len(dropped) > MAX_RELEASED:
            dropped = frozenset()
        references, retention = weights.references(self._installation), weights.spec.cache.retention
        cross_namespace = weights.spec.access.allowed_namespaces.from_ is not FromNamespaces.SAME
        self._put(
            uid,
            ModelReferences(
                weights.ref,
                weights.deleting,
                references,
                retention,
                cross_namespace=cross_namespace,
                released=weights.released(self._installation) | (dropped - references),
            ),
        )

    def put_unreadable(self, uid: str, ref: str, *, deleting: bool) -> None:
        """Adds an object whose spec is invalid, so that only its name is known."""
        self._put(uid, ModelReferences(ref, deleting, frozenset(), Retention.WHILE_REFERENCED, is_valid=False))

    def drop(self, uid: str) -> None:
        before = self._by_uid.pop(uid, None)
        if before:
            for key in set(map(_without_namespace, before.entries | before.released)):
                uids = self._by_key[key]
                uids.discard(uid)
                if not uids:
                    del self._by_key[key]
            self._always_included.discard(uid)
            if self._by_ref.get(before.ref) == uid:
                del self._by_ref[before.ref]

    def _put(self, uid: str, after: ModelReferences) -> None:
        self.drop(uid)
        self._by_uid[uid] = after
        self._by_ref[after.ref] = uid
        for key in after.entries:
            self._forget_releases(key)
        for key in after.entries | after.released:
            self._by_key[_without_namespace(key)].add(uid)
        if after.deleting or not after.is_valid:
            self._always_included.add(uid)

    def _forget_releases(self, key: EntryKey) -> None:
        """An entry that an object refers to again has the retention of that object when it is released."""
        for uid in tuple(self._by_key.get(_without_namespace(key), ())):
            references = self._by_uid[uid]
            if key in references.released and not references.deleting:
                self._put(uid, replace(references, released=references.released - {key}))

    def for_keys(
        self, keys: Iterable[EntryKey], artifacts: Mapping[str, Collection[EntryKey]]
    ) -> Sequence[ModelReferences]:
        """Returns the objects that refer to an entry of one of these names, and all of ``_always_included``.

        Pods of other namespaces have entries of the same name to themselves.

        Args:
            keys: Those of the entries.
            artifacts: Artifacts by the ``namespace/name`` of their object, which refers to them as long as it exists.
        """
        uids = self._always_included.union(*(self._by_key.get(_without_namespace(key), ()) for key in keys))
        uids |= {uid for ref in artifacts if (uid := self._by_ref.get(ref))}
        found = []
        for references in (self._by_uid[uid] for uid in sorted(uids)):
            own = frozenset(artifacts.get(references.ref, ()))
            if own and not references.deleting:
                found.append(replace(references, entries=references.entries | own))
            else:
                found.append(references)
        return found

    def uids_for(self, keys: Iterable[EntryKey], refs: Iterable[str]) -> set[str]:
        """Returns the uids of the objects that refer to an entry of one of these names, or have one of the ``refs``."""
        found: set[str] = set()
        found.update(*(self._by_key.get(_without_namespace(key), ()) for key in keys))
        found.update(uid for ref in refs if (uid := self._by_ref.get(ref)))
        return found
