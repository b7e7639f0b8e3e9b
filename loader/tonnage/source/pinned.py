"""The result of pinning a source, the same for S3 and HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.contract import ObjectPin
    from tonnage.source.client import Client
    from tonnage.source.credentials import Botocore, CredentialProvider
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import SelectedObject


class RequestContext(NamedTuple):
    """Client, credentials, environment variables and what reads AWS's files, for the requests to a source."""

    client: Client
    provider: CredentialProvider
    environment: Mapping[str, str]
    botocore: Botocore


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
    """

    place: str
    pins: tuple[ObjectPin, ...]
    objects: tuple[PinnedObject, ...]
    notes: tuple[str, ...]
