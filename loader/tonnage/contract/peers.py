"""Peers: what loaders ask the controller, what it answers, and who may ask a peer for which entry. Pure.

A *peer* is a node that serves entries of its cache to loaders of other nodes. A loader gets the peers of its entry, and
a *ticket* for it, as the answer to a report of kind ``peers``. At a peer it shows the ticket, proves that it can read
the entry's objects, and gets a *pass*, which all peers accept. Tickets and passes are signed with one key, which only
the controller and the peers have; neither grants anything but to read one entry.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from tonnage.contract.plan import DECODE_ERRORS, WireStruct
from tonnage.contract.revision import ENTRY_NAME_PATTERN
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PEERS: Final = 8
"""Peers in an answer; more are left out."""
MAX_LOADING: Final = 100_000
"""``PeersAnswer.loading`` at most."""
NO_PLACE: Final = -1
"""``PeersAnswer.place`` of a node whose peer isn't ready."""
READ_HEADERS: Final = "Read"
"""``PeersAnswer.headers``: this load is to read all headers first, for all others."""
AWAIT_HEADERS: Final = "Wait"
"""``PeersAnswer.headers``: another load reads them, and peers will have them soon."""
GRANT_SECONDS: Final = 600.0
"""For how long a ticket or a pass is valid, in seconds. Also for how long a caller that has proven its access to the
objects need not prove it again, such as while the bucket is down."""
CLOCK_LEEWAY_SECONDS: Final = 120.0
"""By how many seconds the clocks of controller and peers may differ."""
MIN_KEY_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 2048
MAX_CERTIFICATES_CHARACTERS: Final = 8192
CERTIFICATE_FILE: Final = "tls.crt"
PRIVATE_KEY_FILE: Final = "tls.key"
KEY_FILE: Final = "ticket-key"
PREVIOUS_KEY_FILE: Final = "ticket-key-previous"
"""The files of the Secret that a peer has mounted, which change when the controller renews them. The last one may be
empty. The bytes of a key are those of its file, as they are."""
MAX_PROOFS: Final = 8
"""Places that the objects of one entry may come from."""
MAX_URL_CHARACTERS: Final = 8192
MEDIUM_PATTERN: Final = r"[a-z][a-z0-9-]{0,30}"
"""The name of a medium as a path's first part: ``memory`` or ``disk``."""
KEY_PATTERN: Final = rf"([a-z0-9]([a-z0-9-]{{0,61}}[a-z0-9])?/)?{ENTRY_NAME_PATTERN.pattern}"
"""The key of an entry within a medium: its name, below its namespace if caches are not shared. Never another path."""
DIGEST_PATTERN: Final = r"^([0-9a-f]{64})?\Z"

_Address = Annotated[str, msgspec.Meta(pattern=r"^([0-9.]{7,15}|\[[0-9a-fA-F:]{2,39}\]):[0-9]{1,5}\Z")]
_NodeName = Annotated[str, msgspec.Meta(max_length=253)]
_Token = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~+/=-]*\Z", max_length=MAX_TOKEN_CHARACTERS)]
"""It is sent in a header, also to other peers, and a peer may be anyone's."""


class Peer(WireStruct, frozen=True, kw_only=True):
    """A node that serves the entry, or parts of it.

    Attributes:
        node: Its name.
        address: IP address and port.
        near: Whether bytes from there cost no more than others; not so if it is in another zone.
    """

    node: _NodeName
    address: _Address
    near: bool = True


class PeersAnswer(WireStruct, frozen=True, kw_only=True):
    """The controller's answer to a report of kind ``peers`` about ``Report.entry``.

    Attributes:
        peers: At most ``MAX_PEERS`` other nodes, the most useful ones first; may be empty.
        ticket: A signed ``Grant`` for the entry; empty: peers can't be used.
        headers_digest: SHA-256 of the entry's headers file, in hex, as a load reported it that had no bytes of peers,
            or compared them with this digest; empty: not known. See ``Report.headers_digest``.
        headers: What this load does about headers while none has ended: ``READ_HEADERS``, ``AWAIT_HEADERS``, or empty:
            it takes them from its source when it needs them, as with any other word, which a later release may have.
        certificates: PEM of the certificates that a peer may show: the current one, and after a renewal the one before
            it. Each is self-signed, for ``PeerAccess.server_name``. They are renewed while pods run, so they are in no
            plan, and the reports' own CA can't sign them, because its key is stored nowhere.
        interval: Seconds after which to ask again.
        loading: How many nodes load the entry now and have a ready peer; 0: not known. Each has a place, from 0 on, by
            which they share the source, as most of them don't know each other.
        place: This node's place, or ``NO_PLACE``.
    """

    peers: tuple[Peer, ...] = ()
    ticket: _Token = ""
    headers_digest: Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)] = ""
    certificates: Annotated[str, msgspec.Meta(max_length=MAX_CERTIFICATES_CHARACTERS)] = ""
    interval: Annotated[float, msgspec.Meta(ge=0.1, le=300)] = 5.0
    loading: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOADING)] = 0
    place: Annotated[int, msgspec.Meta(ge=NO_PLACE, lt=MAX_LOADING)] = NO_PLACE
    headers: Annotated[str, msgspec.Meta(max_length=32)] = ""


class Purpose(enum.StrEnum):
    """What a signed grant is. One kind is never accepted in place of the other."""

    TICKET = "ticket"
    """By the controller: the caller's object has this entry."""
    PASS = "pass"  # noqa: S105  # no password
    """By a peer: the caller has, in addition, proven that it can read the entry's objects."""


class Grant(WireStruct, frozen=True, kw_only=True):
    """That a caller may read one entry of a medium.

    Attributes:
        medium: The medium's name, ``memory`` or ``disk``.
        key: The entry's key within the medium, with the namespace if caches are not shared.
        caller: Names who has the same access to the objects, such as the UID of an object with its service account.
        expires: Unix time of its end, in seconds.
    """

    medium: Annotated[str, msgspec.Meta(pattern=rf"^{MEDIUM_PATTERN}\Z")]
    key: Annotated[str, msgspec.Meta(pattern=rf"^{KEY_PATTERN}\Z", max_length=200)]
    caller: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    expires: Annotated[int, msgspec.Meta(ge=0, le=2**53)]

    @property
    def path(self) -> str:
        """The entry's path below the directory of all media."""
        return f"{self.medium}/{self.key}"


class AccessRequest(WireStruct, frozen=True, kw_only=True):
    """What a caller sends: a URL for each place of the entry; none while its store can't be reached."""

    proofs: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_URL_CHARACTERS)], ...], msgspec.Meta(max_length=MAX_PROOFS)
    ] = ()


class AccessAnswer(WireStruct, frozen=True, kw_only=True):
    """What it gets: a pass, or a sentence why not. ``expires`` is the Unix time of the pass's end."""

    token: _Token = ""
    expires: float = 0.0
    message: Annotated[str, msgspec.Meta(max_length=2048)] = ""


class GrantRejected(ValueError):
    """A ticket or pass that is not valid. The message is a sentence without secrets."""


def sign_grant(grant: Grant, purpose: Purpose, key: bytes) -> str:
    """Returns the grant as a signed text of characters that need no escape in a header.

    Args:
        grant: The grant.
        purpose: What it is.
        key: At least ``MIN_KEY_BYTES`` bytes.

    Raises:
        ValueError: The key is too short.
    """
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes is too short to sign with")
    payload = base64.urlsafe_b64encode(msgspec.json.encode(grant)).rstrip(b"=").decode()
    return f"{purpose.value}.{payload}.{_signature(key, purpose, payload)}"


def verify_grant(text: str, purpose: Purpose, keys: Sequence[bytes], *, now: float) -> Grant:
    """Returns the grant of a signed text.

    Args:
        text: Untrusted; its length is checked before it is parsed.
        purpose: What it must be.
        keys: The valid keys: the current one, and during a rotation the previous one.
        now: Unix time in seconds.

    Raises:
        GrantRejected: It is no such grant, has no valid signature, or is not valid now.
    """
    name = purpose.value
    parts = _split(text)
    if len(parts) != 3 or parts[0] != name or not re.fullmatch(r"[A-Za-z0-9_-]+", parts[1]):
        raise GrantRejected(f"This is no {name}.")
    signature = parts[2].encode()
    if not any(hmac.compare_digest(signature, _signature(key, purpose, parts[1]).encode()) for key in keys):
        raise GrantRejected(f"The signature of the {name} is not valid here.")
    try:
        grant = _decode_grant(parts[1])
    except (*DECODE_ERRORS, ValueError) as error:
        raise GrantRejected(f"The contents of the {name} are not valid.") from error
    left = grant.expires - now
    if left < -CLOCK_LEEWAY_SECONDS:
        raise GrantRejected(f"The {name} has expired {-left:.0f} seconds ago by this node's clock.")
    if left > GRANT_SECONDS + CLOCK_LEEWAY_SECONDS:
        raise GrantRejected(
            f"The {name} is valid for {left:.0f} seconds by this node's clock, longer than any is: a clock is wrong."
        )
    return grant


def read_grant(text: str, purpose: Purpose) -> Grant | None:
    """Returns the grant of a signed text without a look at its signature, for callers, who have no key; None: none."""
    parts = _split(text)
    if len(parts) != 3 or parts[0] != purpose.value:
        return None
    try:
        return _decode_grant(parts[1])
    except (*DECODE_ERRORS, ValueError):
        return None


def new_grant(*, medium: str, key: str, caller: str, now: float) -> Grant:
    """Returns a grant that is valid from now on, for ``GRANT_SECONDS``.

    Raises:
        ValueError: A field is not valid.
    """
    fields = {"medium": medium, "key": key, "caller": caller, "expires": int(now + GRANT_SECONDS)}
    return msgspec.convert(fields, Grant)


def encode_peers_answer(answer: PeersAnswer) -> bytes:
    """Returns the answer as a line of JSON."""
    return msgspec.json.encode(answer)


def decode_peers_answer(data: bytes) -> PeersAnswer:
    """Parses an answer; of more than ``MAX_PEERS`` peers, the first ones.

    Raises:
        InvalidPlan: It is not one; a release that knows no peers rejects the report, or answers with an empty body.
    """
    try:
        answer = msgspec.json.decode(data, type=PeersAnswer)
    except DECODE_ERRORS as error:
        raise InvalidPlan(f"The answer about peers is invalid: {error}.") from error
    return msgspec.structs.replace(answer, peers=answer.peers[:MAX_PEERS])


def _split(text: str) -> list[str]:
    """Returns the parts of a signed text; none if it is too long or not ASCII."""
    return text.split(".", 3) if len(text) <= MAX_TOKEN_CHARACTERS and text.isascii() else []


def _decode_grant(payload: str) -> Grant:
    return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=Grant)


def _signature(key: bytes, purpose: Purpose, payload: str) -> str:
    """Returns the signature with a key of its own for each purpose, so that no other signature can be one."""
    derived = hmac.digest(key, f"tonnage peers {purpose.value}".encode(), hashlib.sha256)
    return hmac.digest(derived, payload.encode(), "sha256").hex()
