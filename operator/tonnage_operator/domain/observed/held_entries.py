"""The annotation that lists a pod's held entries. Written at admission, read by the controller."""

from __future__ import annotations

import msgspec

from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey


class HeldEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry that one loader of a pod holds."""

    container: str
    namespace: str
    name: str
    uid: str
    revision: str
    key: str = ""
    """Cache key on the node; empty if the entry is in a claim or an emptyDir."""
    medium: Medium = Medium.MEMORY
    bytes: int = 0
    ranks: str = ""
    verify: str = ""
    optional: bool = False
    """The pod may start without its weights, so a started pod doesn't prove that they are loaded."""

    @property
    def entry_key(self) -> EntryKey:
        return EntryKey(self.key, self.medium)

    @property
    def ref(self) -> str:
        """``namespace/name`` of the ``ModelWeights``."""
        return f"{self.namespace}/{self.name}"


def format_held_entries(held_entries: tuple[HeldEntry, ...]) -> str:
    """Returns the annotation's value."""
    return msgspec.json.encode(held_entries).decode()


def parse_held_entries(text: str) -> tuple[HeldEntry, ...]:
    """Parses the annotation's value. Users can edit annotations, so an invalid value is treated as empty."""
    if not text:
        return ()
    try:
        return msgspec.json.decode(text, type=tuple[HeldEntry, ...])
    except msgspec.MsgspecError:
        return ()
