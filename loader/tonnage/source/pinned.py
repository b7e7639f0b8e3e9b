"""What pinning a source gives, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.contract import ObjectPin
    from tonnage.source.client import Client
    from tonnage.source.credentials import CredentialProvider
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import SelectedObject


class RequestContext(NamedTuple):
    """What asks the stores: the connections, the identity, and the environment that says how."""

    client: Client
    provider: CredentialProvider
    environment: Mapping[str, str]


class PinnedObject(NamedTuple):
    """One object that this load is for."""

    selected: SelectedObject
    pin: ObjectPin
    target: RequestTarget


class PinnedSource(NamedTuple):
    """A source. ``pins`` are those of all its objects, ``objects`` only what this load is for (its ranks).

    ``place`` is endpoint and bucket, empty for HTTP.
    """

    place: str
    pins: tuple[ObjectPin, ...]
    objects: tuple[PinnedObject, ...]
    notes: tuple[str, ...]
