"""The annotation that lists a pod's held entries. Written and signed at admission, read by the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from tonnage.contract import DECODE_ERRORS
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.domain import naming, signing

if TYPE_CHECKING:
    from datetime import datetime

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.signing import SigningKeys

MAX_ANNOTATION_LENGTH: Final = 64 << 10
"""Characters of the annotation that are parsed. The webhook writes about 400 for each model of a pod."""

MAX_HELD_ENTRIES: Final = 16
"""Models of one pod."""

MAX_HELD_ARTIFACTS: Final = 8
"""Directories of artifacts of one pod: one for each image and user."""

MAX_IMAGE_LENGTH: Final = 512

MAX_RANKS_LENGTH: Final = 2048
"""Characters of the ranks of an entry."""

_Text = Annotated[str, msgspec.Meta(max_length=317)]
"""Long enough for the longest name, a namespace with an object's name."""
_Key = Annotated[str, msgspec.Meta(pattern=rf"^({naming.CACHE_KEY_PATTERN})?\Z")]
_Ranks = Annotated[str, msgspec.Meta(pattern=r"^[0-9,-]*\Z", max_length=MAX_RANKS_LENGTH)]
_Image = Annotated[str, msgspec.Meta(max_length=MAX_IMAGE_LENGTH)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class HeldEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry that one loader of a pod holds."""

    container: _Text
    namespace: _Text
    name: _Text
    uid: _Text
    revision: _Text
    key: _Key = ""
    """Cache key on the node; empty if the entry is in a claim or an emptyDir."""
    medium: Medium = Medium.MEMORY
    bytes: _Size = 0
    ranks: _Ranks = ""
    verify: _Text = ""
    optional: bool = False
    """The pod may start without its weights, so a started pod doesn't prove that they are loaded."""
    group: _Text = ""
    """Name of the ``GroupRevision`` that keeps the revision for the pod's group; empty if it is of none."""
    image: _Image = ""
    """Image of the containers that use the artifacts; empty if the entry has weights."""

    @property
    def entry_key(self) -> EntryKey:
        return EntryKey(self.key, self.medium)

    @property
    def is_artifacts(self) -> bool:
        """Whether it is a directory of artifacts, and not of weights."""
        return naming.is_artifacts_key(self.key)

    @property
    def ref(self) -> str:
        """``namespace/name`` of the ``ModelWeights``."""
        return f"{self.namespace}/{self.name}"


_HeldEntries = Annotated[tuple[HeldEntry, ...], msgspec.Meta(max_length=MAX_HELD_ENTRIES + MAX_HELD_ARTIFACTS)]


def format_held_entries(held_entries: tuple[HeldEntry, ...]) -> str:
    """Returns the annotation's value."""
    return msgspec.json.encode(held_entries).decode()


def sign_held_entries(
    metadata: Body, *, namespace: str, review_uid: str, keys: SigningKeys, now: datetime
) -> dict[str, str]:
    """Returns the annotations that make the held entries of an admitted pod count.

    Args:
        metadata: The pod's, with the annotation that lists the entries.
        namespace: The pod's namespace.
        review_uid: Uid of the admission review. It makes the signature count for one pod only.
        keys: The installation's.
        now: The API server's time, which makes the signature count for a pod that is created now.
    """
    added = {names.ADMISSION: review_uid, names.SIGNED_AT: signing.format_time(now)}
    annotations = {**metadata["annotations"], **added}
    signature = keys.sign(*signing.pod_parts({**metadata, "annotations": annotations}, namespace))
    return {**added, names.SIGNATURE: signature}


def is_signed(metadata: Body, keys: SigningKeys) -> bool:
    """Returns whether the webhook admitted this pod with the held entries that its annotation lists."""
    signature = (metadata.get("annotations") or {}).get(names.SIGNATURE, "")
    parts = signing.pod_parts(metadata, metadata["namespace"])
    return keys.verifies(signature, *parts) and signing.is_timely(metadata)


def parse_held_entries(text: str) -> tuple[HeldEntry, ...]:
    """Parses the annotation's value. Users can edit annotations, so an invalid value is treated as empty."""
    if not text or len(text) > MAX_ANNOTATION_LENGTH:
        return ()
    try:
        return msgspec.json.decode(text, type=_HeldEntries)
    except DECODE_ERRORS:
        return ()
