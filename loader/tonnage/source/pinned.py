"""The result of pinning a source, the same for S3 and HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tonnage.contract import parse_checksum
from tonnage.errors import SourceChanged
from tonnage.source.stated_checksums import choose_checksum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.contract import ObjectChecksum, ObjectPin, StoreBehavior, Verify
    from tonnage.source.client import Client
    from tonnage.source.credentials import Botocore, CredentialProvider
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import SelectedObject


class RequestContext(NamedTuple):
    """Client, credentials, environment variables and what reads AWS's files, for the requests to a source.

    ``verify`` is the level at which the plan verifies objects.
    """

    client: Client
    provider: CredentialProvider
    environment: Mapping[str, str]
    botocore: Botocore
    verify: Verify


def pin_checksum(pin: ObjectPin | None, stated: Sequence[ObjectChecksum], level: Verify, *, label: str) -> str:
    """Returns the checksum for an object's pin: of those that the source states and that of an earlier pin.

    Raises:
        SourceChanged: The source states another value than the pin has.
    """
    known = parse_checksum(pin.checksum) if pin is not None else None
    if known is not None:
        for each in stated:
            if (each.algorithm, each.parts) == (known.algorithm, known.parts) and each.value != known.value:
                raise SourceChanged(f"{label}: the object's checksum was {known} and is now {each}.")
    chosen = choose_checksum([*stated, *([known] if known is not None else [])], level)
    return str(chosen or known or "")


class PinnedObject(NamedTuple):
    """An object to load."""

    selected: SelectedObject
    pin: ObjectPin
    target: RequestTarget


class PinnedSource(NamedTuple):
    """A source with its objects pinned.

    Attributes:
        place: Endpoint and bucket; empty for HTTP.
        pins: The pins of all objects of the revision, of all ranks.
        objects: The objects to load, only those of the selected ranks.
        notes: Remarks for the report.
        behavior: How the store must be asked, as it was found by asking; None: in the ordinary way.
    """

    place: str
    pins: tuple[ObjectPin, ...]
    objects: tuple[PinnedObject, ...]
    notes: tuple[str, ...]
    behavior: StoreBehavior | None = None
