"""Every way in which Tonnage can fail: a stable reason, an exit code, and an error class for each.

The reason's name is what appears in reports, termination messages, status conditions and events, so it never changes
its meaning. The exit code is what a shell sees. ``remedy`` says what a person can do about it.

This module imports nothing of Tonnage and little of Python, for it is on the path of a cache hit.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Reason(enum.StrEnum):
    """Stable names of what went wrong, shared by the loader, the operator and the documentation."""

    ACCESS_DENIED = "AccessDenied"
    OBJECT_NOT_FOUND = "ObjectNotFound"
    BUCKET_NOT_FOUND = "BucketNotFound"
    ENDPOINT_UNREACHABLE = "EndpointUnreachable"
    TLS_VERIFICATION_FAILED = "TLSVerificationFailed"
    REQUEST_TIME_TOO_SKEWED = "RequestTimeTooSkewed"
    CREDENTIALS_MISSING = "CredentialsMissing"
    CREDENTIALS_EXPIRED = "CredentialsExpired"
    SOURCE_CHANGED = "SourceChanged"
    DIGEST_MISMATCH = "DigestMismatch"
    NO_TENSOR_FILES = "NoTensorFiles"
    NOT_A_TENSORIZER_FILE = "NotATensorizerFile"
    FORMAT_UNSUPPORTED = "FormatUnsupported"
    FORMAT_DAMAGED = "FormatDamaged"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    DTYPE_UNSUPPORTED = "DtypeUnsupported"
    NAME_COLLISION = "NameCollision"
    INSUFFICIENT_SPACE = "InsufficientSpace"
    CACHE_NOT_WRITABLE = "CacheNotWritable"
    CACHE_DAMAGED = "CacheDamaged"
    CACHE_IN_USE = "CacheInUse"
    TIMEOUT = "Timeout"
    INTERRUPTED = "Interrupted"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    LOADER_OOM_KILLED = "LoaderOOMKilled"
    LOADER_EVICTED = "LoaderEvicted"
    INVALID_PLAN = "InvalidPlan"
    INTERNAL_ERROR = "InternalError"


class TonnageError(Exception):
    """Base of every error that Tonnage raises on purpose.

    Attributes:
        reason: The stable reason, one a class.
        exit_code: What the ``tonnage`` command exits with. 137 and 143 are left to signals, as shells read them.
        remedy: One sentence telling the reader what to do next.
        message: One or two sentences naming the object, tensor and offset where there is one. Never a secret.
        details: Facts for the report of a load that failed, by the report's field names.
    """

    reason: ClassVar[Reason] = Reason.INTERNAL_ERROR
    exit_code: ClassVar[int] = 70
    remedy: ClassVar[str] = "This is a defect of Tonnage: please report it with the message above."

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = {}

    def __str__(self) -> str:
        return self.message


class AccessDenied(TonnageError):
    """The store knows the caller, or nobody, and says no."""

    reason = Reason.ACCESS_DENIED
    exit_code = 10
    remedy = "Allow s3:GetObject on the objects and s3:ListBucket on the prefix for this identity, or use --anonymous."


class ObjectNotFound(TonnageError):
    """The bucket is there, the object or prefix is not."""

    reason = Reason.OBJECT_NOT_FOUND
    exit_code = 11
    remedy = "Check the key or prefix; `tonnage inspect` on its parent lists what is there."


class BucketNotFound(TonnageError):
    """There is no such bucket at this endpoint."""

    reason = Reason.BUCKET_NOT_FOUND
    exit_code = 12
    remedy = "Check the bucket's name, the endpoint URL and the region."


class EndpointUnreachable(TonnageError):
    """The server could not be resolved, connected to, or did not speak HTTP."""

    reason = Reason.ENDPOINT_UNREACHABLE
    exit_code = 13
    remedy = "Check the endpoint URL, DNS, network policies and proxies between this machine and the store."


class TLSVerificationFailed(TonnageError):
    """The server's certificate is not trusted here."""

    reason = Reason.TLS_VERIFICATION_FAILED
    exit_code = 14
    remedy = "Pass the CA that signed the server's certificate with --ca-bundle (or AWS_CA_BUNDLE)."


class RequestTimeTooSkewed(TonnageError):
    """This machine's clock and the store's are too far apart for signatures to hold."""

    reason = Reason.REQUEST_TIME_TOO_SKEWED
    exit_code = 15
    remedy = "Set this machine's clock (NTP); stores refuse signatures that are more than about 15 minutes off."


class CredentialsMissing(TonnageError):
    """No place that was asked for credentials had any."""

    reason = Reason.CREDENTIALS_MISSING
    exit_code = 16
    remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role; or pass --anonymous."


class CredentialsExpired(TonnageError):
    """Credentials or a presigned URL ran out and could not be renewed."""

    reason = Reason.CREDENTIALS_EXPIRED
    exit_code = 17
    remedy = "Get fresh credentials or a new presigned URL and start again: what is on disk is kept and resumed."


class SourceChanged(TonnageError):
    """An object is no longer the one that was pinned."""

    reason = Reason.SOURCE_CHANGED
    exit_code = 18
    remedy = "Start again to load the new revision, or turn on bucket versioning so that old ones stay readable."


class DigestMismatch(TonnageError):
    """What lies at the source is not what the plan expects."""

    reason = Reason.DIGEST_MISMATCH
    exit_code = 19
    remedy = "Compare `tonnage resolve` with the digest you expect; someone published something else."


class NoTensorFiles(TonnageError):
    """Nothing at the source is a ``.tensors`` file, or filters left none."""

    reason = Reason.NO_TENSOR_FILES
    exit_code = 20
    remedy = "Check the prefix and the include and exclude patterns; the model's files must end in .tensors."


class NotATensorizerFile(TonnageError):
    """The object does not begin as tensorizer's files do."""

    reason = Reason.NOT_A_TENSORIZER_FILE
    exit_code = 21
    remedy = "Serialize the model with tensorizer's TensorSerializer and upload the result unchanged."


class FormatUnsupported(TonnageError):
    """A version or feature of the format that no released tensorizer writes, or that this layout cannot hold."""

    reason = Reason.FORMAT_UNSUPPORTED
    exit_code = 22
    remedy = "Update Tonnage, write the file with a released tensorizer, or use the layout that the message names."


class FormatDamaged(TonnageError):
    """The file contradicts itself or its size."""

    reason = Reason.FORMAT_DAMAGED
    exit_code = 23
    remedy = "Serialize and upload the file again: the object in the store is damaged."


class ChecksumMismatch(TonnageError):
    """A tensor's bytes do not have the hash that its header states, twice in a row."""

    reason = Reason.CHECKSUM_MISMATCH
    exit_code = 24
    remedy = "The object in the store is damaged, or something on the way changes bytes: upload it again."


class DtypeUnsupported(TonnageError):
    """The safetensors format cannot say this dtype."""

    reason = Reason.DTYPE_UNSUPPORTED
    exit_code = 25
    remedy = "Load with --layout tensorizer, which keeps the file as it is."


class NameCollision(TonnageError):
    """Two things want one name, or a name can't be used as one."""

    reason = Reason.NAME_COLLISION
    exit_code = 26
    remedy = "Rename one of them at the source, leave one out with --exclude, or use --layout tensorizer."


class InsufficientSpace(TonnageError):
    """The cache's medium has not enough room."""

    reason = Reason.INSUFFICIENT_SPACE
    exit_code = 27
    remedy = "Free room (`tonnage ls`, `tonnage rm`), enlarge the medium or the memory limit, or use another --cache."


class CacheNotWritable(TonnageError):
    """The cache directory can't be created or written."""

    reason = Reason.CACHE_NOT_WRITABLE
    exit_code = 28
    remedy = "Give this user write permission on the cache directory, or choose another with --cache."


class CacheDamaged(TonnageError):
    """A cache entry is not what its manifest says."""

    reason = Reason.CACHE_DAMAGED
    exit_code = 29
    remedy = "Remove the entry with `tonnage rm` and load it again."


class CacheInUse(TonnageError):
    """The entry is held by someone, so it can't be removed."""

    reason = Reason.CACHE_IN_USE
    exit_code = 30
    remedy = "Stop the processes or pods that hold the entry, then try again."


class Timeout(TonnageError):
    """The total deadline passed."""

    reason = Reason.TIMEOUT
    exit_code = 31
    remedy = "Start again: what is on disk is kept and resumed. Raise --timeout if the network is this slow."


class Interrupted(TonnageError):
    """A signal asked for an early end."""

    reason = Reason.INTERRUPTED
    exit_code = 32
    remedy = "Start again: what is on disk is kept and resumed."


class RetriesExhausted(TonnageError):
    """A request kept failing although failures of its kind usually pass."""

    reason = Reason.RETRIES_EXHAUSTED
    exit_code = 33
    remedy = "Look at the store's health and limits, then start again: what is on disk is kept and resumed."


class LoaderOOMKilled(TonnageError):
    """A loader process was killed for memory."""

    reason = Reason.LOADER_OOM_KILLED
    exit_code = 34
    remedy = "Raise the memory limit: pages of a memory cache are charged to whoever writes them."


class LoaderEvicted(TonnageError):
    """The loader's pod was evicted from its node. Stated by the operator, never by the loader itself."""

    reason = Reason.LOADER_EVICTED
    exit_code = 35
    remedy = "Look at the node's pressure conditions; the load is tried again."


class InvalidPlan(TonnageError):
    """The command's arguments or the plan contradict themselves."""

    reason = Reason.INVALID_PLAN
    exit_code = 2
    remedy = "See `tonnage load --help`."


class InternalError(TonnageError):
    """A defect of Tonnage."""


def error_classes() -> dict[Reason, type[TonnageError]]:
    """Returns the one error class of each reason."""
    return {cls.reason: cls for cls in TonnageError.__subclasses__()}


def error_for(reason: Reason, message: str) -> TonnageError:
    """Returns an error of the class that belongs to ``reason``."""
    return error_classes()[reason](message)
