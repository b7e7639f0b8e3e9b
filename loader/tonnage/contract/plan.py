"""The plan: what to load, where from, how to verify it. It holds no secret and no signed URL.

The command line's flags make the same object, so there is one way through the loader.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION = 1
"""The one schema version of plans and reports that this release reads and writes."""

DEFAULT_TENSOR_PATTERNS = ("*.tensors",)
DEFAULT_COMPANION_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*")


class Layout(enum.StrEnum):
    """In which form the cache holds the tensors."""

    SAFETENSORS = "safetensors"
    """Shards that any engine reads; the default."""
    TENSORIZER = "tensorizer"
    """The ``.tensors`` objects, byte for byte."""


FileKind = Literal["shard", "index", "companion", "object"]
"""Kinds of files in an entry: a safetensors shard, the shards' index, a companion, or a ``.tensors`` object."""


class Verify(enum.StrEnum):
    """How far the bytes are checked, from strongest to weakest."""

    SHA256 = "sha256"
    CRC32 = "crc32"
    SIZE = "size"
    NONE = "none"

    @property
    def strength(self) -> int:
        """How much is proven; a higher number includes all lower ones."""
        return {"none": 0, "size": 1, "crc32": 2, "sha256": 3}[self.value]


class AddressingStyle(enum.StrEnum):
    """Where the bucket's name goes in a URL."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


class WireStruct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything in the contract: immutable, and silent about what has its default."""


class ObjectPin(WireStruct, frozen=True, kw_only=True):
    """One object of a revision, as every later request pins it.

    ``etag`` is without quotes; empty where the server gives none. ``version_id`` is empty where the bucket has no
    versions. ``key`` is the S3 key, or for HTTP the URL without its query string. An HTTP server without strong ETags
    has its weak one here, with its ``W/``, or ``last-modified=`` and the date.
    """

    key: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    etag: str = ""
    version_id: str = ""


class S3Source(WireStruct, frozen=True, kw_only=True, tag_field="kind", tag="s3"):
    """Objects of one bucket: either all under ``prefix``, or exactly ``keys``.

    ``endpoint`` empty means AWS. ``ca_bundle`` is a path. ``objects`` pins the revision; None: resolve first.
    """

    bucket: str
    prefix: str | None = None
    keys: tuple[str, ...] | None = None
    endpoint: str = ""
    region: str = ""
    addressing_style: AddressingStyle = AddressingStyle.AUTO
    ca_bundle: str = ""
    anonymous: bool = False
    objects: tuple[ObjectPin, ...] | None = None


class HttpSource(WireStruct, frozen=True, kw_only=True, tag_field="kind", tag="http"):
    """Objects by URL. Presigned ones are secrets, so they come from a file or an environment variable.

    Exactly one of ``urls``, ``urls_file`` (a path, one URL a line) and ``urls_env`` (a variable's name, URLs separated
    by white space) is given.
    """

    urls: tuple[str, ...] | None = None
    urls_file: str = ""
    urls_env: str = ""
    ca_bundle: str = ""
    objects: tuple[ObjectPin, ...] | None = None


Source = S3Source | HttpSource


class RankSelection(WireStruct, frozen=True, kw_only=True):
    """Rank-sharded files: ``pattern`` is a printf pattern of the file's name, with one integer field.

    ``wanted`` are the ranks to load; None means all ``count``, or all that are there when ``count`` is None.
    """

    pattern: str = "model-rank-%03d.tensors"
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    wanted: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] | None = None


class FileSelection(WireStruct, frozen=True, kw_only=True):
    """Which objects count. Shell patterns, matched against the whole key below the prefix and against its last part."""

    tensors: tuple[str, ...] = DEFAULT_TENSOR_PATTERNS
    companions: tuple[str, ...] = DEFAULT_COMPANION_PATTERNS
    exclude: tuple[str, ...] = ()
    ranks: RankSelection | None = None


def file_selection(
    include: Sequence[str], exclude: Sequence[str], ranks: tuple[int, ...] | None = None
) -> FileSelection:
    """Returns which files lists of patterns to include and to leave out choose, and a list of ranks.

    Patterns that end in ``.tensors`` choose among the tensor files; others add companions to the usual ones.
    """
    tensors = tuple(glob for glob in include if glob.endswith(".tensors"))
    companions = tuple(glob for glob in include if not glob.endswith(".tensors"))
    return FileSelection(
        tensors=tensors or DEFAULT_TENSOR_PATTERNS,
        companions=tuple(dict.fromkeys((*DEFAULT_COMPANION_PATTERNS, *companions))),
        exclude=tuple(exclude),
        ranks=None if ranks is None else RankSelection(wanted=ranks),
    )


class Limits(WireStruct, frozen=True, kw_only=True):
    """How much of the machine and the network a load may take. Sizes in bytes, times in seconds; 0 means automatic.

    ``min_free`` are bytes of the cache's file system that must stay free; a load that would take of them is refused.
    """

    workers: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    connections: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    part_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    segment_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    bandwidth: Annotated[int, msgspec.Meta(ge=0)] = 0
    timeout: Annotated[float, msgspec.Meta(ge=0)] = 0
    min_free: Annotated[int, msgspec.Meta(ge=0)] = 0


class Reporting(WireStruct, frozen=True, kw_only=True):
    """Where reports go.

    ``url`` is the whole address of the endpoint. ``token_file`` holds the bearer token, which is read anew for each
    report. ``interval`` is the time between two reports of progress, in seconds.
    """

    url: str
    ca_bundle: str = ""
    token_file: str = ""
    interval: Annotated[float, msgspec.Meta(gt=0)] = 2.0


class Identity(WireStruct, frozen=True, kw_only=True):
    """The ``ModelWeights`` object that a plan was made for."""

    namespace: str
    name: str
    uid: str
    generation: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to load.

    ``entry`` names the cache entry; empty: ``entry_name(revision, layout)``. ``expected_digest`` refuses anything but
    that revision.
    """

    schema_version: int = SCHEMA_VERSION
    sources: tuple[Source, ...]
    entry: str = ""
    expected_digest: str = ""
    layout: Layout = Layout.SAFETENSORS
    verify: Verify = Verify.CRC32
    files: FileSelection = FileSelection()
    limits: Limits = Limits()
    reporting: Reporting | None = None
    identity: Identity | None = None


def encode_plan(plan: Plan) -> bytes:
    """Returns the plan as one line of JSON."""
    return msgspec.json.encode(plan)


class _Versioned(msgspec.Struct):
    """Just the field that says whether the rest may be read."""

    schema_version: int


def check_version(data: bytes | str, *, document: str) -> None:
    """Refuses JSON that is not of the schema version of this release.

    Raises:
        InvalidPlan: It is not a JSON object, has no version, or another one.
    """
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
    except msgspec.MsgspecError as error:
        raise InvalidPlan(f"This {document} is not JSON with a schema_version: {error}.") from error
    if version != SCHEMA_VERSION:
        raise InvalidPlan(
            f"This {document} has schema version {version}; this release of Tonnage reads version {SCHEMA_VERSION} "
            f"only."
        )


def decode_plan(data: bytes | str) -> Plan:
    """Reads a plan.

    Raises:
        InvalidPlan: It is not JSON, of an unknown schema version, or a field is wrong (which one, is said).
    """
    check_version(data, document="plan")
    try:
        return msgspec.json.decode(data, type=Plan)
    except msgspec.MsgspecError as error:
        raise InvalidPlan(f"The plan can't be used: {error}.") from error
