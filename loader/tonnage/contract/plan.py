"""The plan: what to load, from where, and how to verify it. It contains no secret and no signed URL.

The command line's flags are converted to a plan, too.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from tonnage.contract.checksum import CHECKSUM_PATTERN
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What msgspec raises for unexpected text; deep nesting raises ``RecursionError``, lone surrogates ``UnicodeError``."""
SCHEMA_VERSION = 1
"""Schema version of plans and reports; this release reads and writes no other."""

DEFAULT_TENSOR_PATTERNS = ("*.tensors",)
DEFAULT_COMPANION_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*")


class Layout(enum.StrEnum):
    """The layout of the files in an entry."""

    SAFETENSORS = "safetensors"
    """Safetensors shards, which any engine can read; the default."""
    TENSORIZER = "tensorizer"
    """Unmodified ``.tensors`` objects."""


class Weights(enum.StrEnum):
    """Which files of a source are a model's weights."""

    AUTO = "auto"
    """``.tensors`` files; where none match, ``.safetensors`` files. The default."""
    TENSORIZER = "tensorizer"
    """``.tensors`` files, which tensorizer wrote."""
    SAFETENSORS = "safetensors"
    """``.safetensors`` files."""


class ComputedBuffers(enum.StrEnum):
    """Where the Safetensors layout has buffers that engines compute themselves, such as rotary frequencies."""

    SEPARATE = "separate"
    """In a file of their own, which engines don't list; the default."""
    IN_SHARDS = "in-shards"
    """In the shards, like all other tensors."""


FileKind = Literal["shard", "index", "companion", "object"]
"""Kinds of files in an entry: a safetensors shard, the shards' index, a companion, or a ``.tensors`` object."""


class Verify(enum.StrEnum):
    """The level of verification, from highest to lowest. ``BEST`` is only requested, never reached."""

    SHA256 = "sha256"
    """By SHA-256."""
    CRC32 = "crc32"
    """By a checksum of 32 bits or more."""
    BEST = "best"
    """By the best checksum that the source has; by size and revision, where it has none."""
    SIZE = "size"
    """By size and revision only."""
    NONE = "none"

    @property
    def strength(self) -> int:
        """A number to compare levels; a higher level includes all lower ones."""
        return {"none": 0, "size": 1, "best": 2, "crc32": 2, "sha256": 3}[self.value]

    @property
    def reachable(self) -> Verify:
        """The level that is reached if nothing lacks a checksum."""
        return Verify.CRC32 if self is Verify.BEST else self


class AddressingStyle(enum.StrEnum):
    """Where a URL contains the bucket's name."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number of bytes or things."""


class WireStruct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the structs in plans and reports. Immutable; default values are omitted from the JSON."""


class ObjectPin(WireStruct, frozen=True, kw_only=True):
    """An object of a revision, pinned for all requests.

    ``etag`` is without quotes; empty if the server sends none. ``version_id`` is empty if the bucket has no versioning.
    ``key`` is the S3 key, or for HTTP the URL without its query string. For an HTTP server without strong ETags,
    ``etag`` is the weak one including ``W/``, or ``last-modified=`` and the date. ``checksum`` is that of the object's
    bytes, if the source states one (see ``ObjectChecksum``); it is no part of the revision's digest.
    """

    key: Annotated[str, msgspec.Meta(max_length=4096)]
    size: Size
    etag: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    version_id: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    checksum: Annotated[str, msgspec.Meta(pattern=CHECKSUM_PATTERN)] = ""


class StoreBehavior(WireStruct, frozen=True, kw_only=True):
    """How a store must be asked, as resolving a source found it by asking. A load asks again where it no longer holds.

    ``addressing_style`` is the one that the store demands in place of that of ``AddressingStyle.AUTO``; ``AUTO``: none.
    ``region`` is the bucket's, if it is not the configured one; else empty. ``etag_only``: objects have version IDs,
    but can't be requested by them.
    """

    addressing_style: AddressingStyle = AddressingStyle.AUTO
    region: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{0,64}\Z")] = ""
    etag_only: bool = False


class S3Source(WireStruct, frozen=True, kw_only=True, tag_field="kind", tag="s3"):
    """Objects of a bucket: either all under ``prefix``, or exactly ``keys``.

    A prefix that doesn't end in a slash is a directory or, if nothing is below it, the key of one object. An empty
    ``endpoint`` means AWS. ``ca_bundle`` is a path. ``requester_pays``: the requester agrees to pay for requests and
    transfer. ``behavior`` is what resolving found; None: nothing yet, or that the store is asked in the ordinary way.
    ``objects`` pins the revision; None means resolve first.
    """

    bucket: str
    prefix: str | None = None
    keys: tuple[str, ...] | None = None
    endpoint: str = ""
    region: str = ""
    addressing_style: AddressingStyle = AddressingStyle.AUTO
    ca_bundle: str = ""
    anonymous: bool = False
    requester_pays: bool = False
    behavior: StoreBehavior | None = None
    objects: tuple[ObjectPin, ...] | None = None


class HttpSource(WireStruct, frozen=True, kw_only=True, tag_field="kind", tag="http"):
    """Objects by URL. Presigned URLs are secrets, so they are read from a file or an environment variable.

    Exactly one of ``urls``, ``urls_file`` (a path; one URL per line) and ``urls_env`` (the name of a variable with URLs
    separated by white space) is set.
    """

    urls: tuple[str, ...] | None = None
    urls_file: str = ""
    urls_env: str = ""
    ca_bundle: str = ""
    objects: tuple[ObjectPin, ...] | None = None


class HubSource(WireStruct, frozen=True, kw_only=True, tag_field="kind", tag="hub"):
    """The files of a repository on a model hub, at one commit.

    ``repo`` is ``organization/model``. ``revision`` is a branch, a tag or a commit. An empty ``endpoint`` means that of
    ``HF_ENDPOINT``, or huggingface.co. ``objects`` pins the revision; the version of each is the commit.
    """

    repo: str
    revision: str = "main"
    endpoint: str = ""
    ca_bundle: str = ""
    anonymous: bool = False
    objects: tuple[ObjectPin, ...] | None = None


Source = S3Source | HttpSource | HubSource


class RankSelection(WireStruct, frozen=True, kw_only=True):
    """Selects rank-sharded files. ``pattern`` is a printf pattern of the file name with one integer field.

    ``wanted`` are the ranks to load; None means all ``count`` ranks, or all existing ones if ``count`` is None.
    """

    pattern: str = "model-rank-%03d.tensors"
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    wanted: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] | None = None


class FileSelection(WireStruct, frozen=True, kw_only=True):
    """Selects objects by shell patterns, matched against the key below the prefix and against its last component.

    ``tensors`` are patterns of weights; one that ends in ``.tensors`` or ``.safetensors`` selects no file of the other
    kind. With the default, all ``.safetensors`` files match where ``weights`` makes them the weights.
    """

    weights: Weights = Weights.AUTO
    tensors: tuple[str, ...] = DEFAULT_TENSOR_PATTERNS
    companions: tuple[str, ...] = DEFAULT_COMPANION_PATTERNS
    exclude: tuple[str, ...] = ()
    ranks: RankSelection | None = None


def file_selection(
    include: Sequence[str],
    exclude: Sequence[str],
    ranks: tuple[int, ...] | None = None,
    weights: Weights = Weights.AUTO,
) -> FileSelection:
    """Returns the selection for patterns to include and exclude, ranks, and the kind of the weights.

    Included patterns that end in ``.tensors`` or ``.safetensors`` select weights. Those of ``.safetensors`` and all
    others add companions to the default ones: beside ``.tensors`` files, a ``.safetensors`` file is a companion.
    """
    tensors = tuple(glob for glob in include if glob.endswith(".tensors")) or DEFAULT_TENSOR_PATTERNS
    companions = tuple(glob for glob in include if not glob.endswith(".tensors"))
    return FileSelection(
        weights=weights,
        tensors=(*tensors, *(glob for glob in companions if glob.endswith(".safetensors"))),
        companions=tuple(dict.fromkeys((*DEFAULT_COMPANION_PATTERNS, *companions))),
        exclude=tuple(exclude),
        ranks=None if ranks is None else RankSelection(wanted=ranks),
    )


class Limits(WireStruct, frozen=True, kw_only=True):
    """Limits on the use of machine and network. Sizes in bytes, times in seconds; 0 means automatic.

    ``min_free`` bytes of the cache's filesystem and ``min_free_percent`` of its size, whichever is more, must remain
    free; a load that would use them is rejected. All entries of the cache together, with what running loads have
    reserved, may have ``capacity`` bytes: a loader that sees the whole cache counts them, and one that sees its own
    entry only asks the operator.
    """

    workers: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    connections: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    part_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    segment_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    bandwidth: Annotated[int, msgspec.Meta(ge=0)] = 0
    timeout: Annotated[float, msgspec.Meta(ge=0)] = 0
    min_free: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_free_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    capacity: Size = 0


class Reporting(WireStruct, frozen=True, kw_only=True):
    """The report endpoint.

    ``url`` is its complete URL. ``token_file`` contains the bearer token and is read again for each report.
    ``interval`` is the time between two progress reports, in seconds.
    """

    url: str
    ca_bundle: str = ""
    token_file: str = ""
    interval: Annotated[float, msgspec.Meta(gt=0)] = 2.0


class PeerAccess(WireStruct, frozen=True, kw_only=True):
    """How a load uses peers, see ``contract.peers``. It asks for them at the report endpoint.

    ``server_name`` is the name in the peers' certificate, which the answers have (``PeersAnswer.certificates``).
    """

    server_name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")]


class Identity(WireStruct, frozen=True, kw_only=True):
    """The ``ModelWeights`` object that a plan belongs to."""

    namespace: str
    name: str
    uid: str
    generation: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to load.

    ``entry`` is the name of the cache entry; empty for ``entry_name(revision, layout, computed_buffers)``. If
    ``expected_digest`` is set, a revision with another digest is rejected. ``computed_buffers`` has no effect in the
    Tensorizer layout. ``verify_on_hit``: bytes that others may have written are verified with hashes from the source.
    """

    schema_version: int = SCHEMA_VERSION
    sources: tuple[Source, ...]
    entry: str = ""
    expected_digest: str = ""
    layout: Layout = Layout.SAFETENSORS
    computed_buffers: ComputedBuffers = ComputedBuffers.SEPARATE
    verify: Verify = Verify.BEST
    verify_on_hit: bool = False
    files: FileSelection = FileSelection()
    limits: Limits = Limits()
    reporting: Reporting | None = None
    peers: PeerAccess | None = None
    identity: Identity | None = None


def encode_plan(plan: Plan) -> bytes:
    """Returns the plan as a line of JSON."""
    return msgspec.json.encode(plan)


class _Versioned(msgspec.Struct):
    """Only the schema version, which is checked before the other fields are parsed."""

    schema_version: int


def check_version(data: bytes | str, *, document: str) -> None:
    """Checks that JSON has the schema version of this release.

    Raises:
        InvalidPlan: It is not a JSON object, or has no or another version.
    """
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
    except DECODE_ERRORS as error:
        raise InvalidPlan(f"This {document} is not JSON with a schema_version: {error}.") from error
    if version != SCHEMA_VERSION:
        raise InvalidPlan(
            f"This {document} has schema version {version}; this release of Tonnage reads version {SCHEMA_VERSION} "
            f"only."
        )


def decode_plan(data: bytes | str) -> Plan:
    """Parses a plan.

    Raises:
        InvalidPlan: It is not JSON, has an unknown schema version, or a field is invalid; the message names it.
    """
    check_version(data, document="plan")
    try:
        return msgspec.json.decode(data, type=Plan)
    except DECODE_ERRORS as error:
        raise InvalidPlan(f"The plan is invalid: {error}.") from error
