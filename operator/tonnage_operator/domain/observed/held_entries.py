"""The annotation that lists a pod's held entries. Written at admission, read by the controller."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tonnage.contract import DECODE_ERRORS
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey

MAX_ANNOTATION_LENGTH: Final = 64 << 10
"""Characters of the annotation that are parsed. The webhook writes about 400 for each model of a pod."""

MAX_HELD_ENTRIES: Final = 16
"""Models of one pod."""

_Text = Annotated[str, msgspec.Meta(max_length=1024)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class HeldEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry that one loader of a pod holds."""

    container: _Text
    namespace: _Text
    name: _Text
    uid: _Text
    revision: _Text
    key: _Text = ""
    """Cache key on the node; empty if the entry is in a claim or an emptyDir."""
    medium: Medium = Medium.MEMORY
    bytes: _Size = 0
    ranks: str = ""
    verify: _Text = ""
    optional: bool = False
    """The pod may start without its weights, so a started pod doesn't prove that they are loaded."""

    @property
    def entry_key(self) -> EntryKey:
        return EntryKey(self.key, self.medium)

    @property
    def ref(self) -> str:
        """``namespace/name`` of the ``ModelWeights``."""
        return f"{self.namespace}/{self.name}"


_HeldEntries = Annotated[tuple[HeldEntry, ...], msgspec.Meta(max_length=MAX_HELD_ENTRIES)]


def format_held_entries(held_entries: tuple[HeldEntry, ...]) -> str:
    """Returns the annotation's value."""
    return msgspec.json.encode(held_entries).decode()


def parse_held_entries(text: str) -> tuple[HeldEntry, ...]:
    """Parses the annotation's value. Users can edit annotations, so an invalid value is treated as empty."""
    if not text or len(text) > MAX_ANNOTATION_LENGTH:
        return ()
    try:
        return msgspec.json.decode(text, type=_HeldEntries)
    except DECODE_ERRORS:
        return ()
