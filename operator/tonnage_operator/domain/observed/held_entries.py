"""Which entries a pod's loaders hold, as written on the pod at its admission and read by the controller."""

from __future__ import annotations

import msgspec

from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey


class HeldEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of one pod."""

    container: str
    namespace: str
    name: str
    uid: str
    revision: str
    key: str = ""
    """Cache key on the node; empty where the entry is not shared (claims, EmptyDir)."""
    medium: Medium = Medium.MEMORY
    bytes: int = 0
    ranks: str = ""
    verify: str = ""
    optional: bool = False
    """The pod starts without its weights as well, so that its start proves nothing about them."""

    @property
    def entry_key(self) -> EntryKey:
        return EntryKey(self.key, self.medium)

    @property
    def ref(self) -> str:
        """``namespace/name`` of the ``ModelWeights``."""
        return f"{self.namespace}/{self.name}"


def format_held_entries(claims: tuple[HeldEntry, ...]) -> str:
    """Returns the annotation's value."""
    return msgspec.json.encode(claims).decode()


def parse_held_entries(text: str) -> tuple[HeldEntry, ...]:
    """Reads the annotation's value. Anyone may write annotations, so nonsense is nothing, not an error."""
    if not text:
        return ()
    try:
        return msgspec.json.decode(text, type=tuple[HeldEntry, ...])
    except msgspec.MsgspecError:
        return ()
