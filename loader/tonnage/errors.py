"""All failures of Tonnage: a stable reason, an exit code, and an error class for each.

The reason's name appears in reports, termination messages, status conditions and events, so its meaning never changes.
The exit code is for shells and scripts. ``remedy`` is the next step for the user.

This module is imported on a cache hit, so it imports nothing else of Tonnage and little of the standard library.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Reason(enum.StrEnum):
    """Stable names of failures, shared by the loader, the operator and the documentation."""

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
    NO_CHECKSUM = "NoChecksum"
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
    STORE_UNSUPPORTED = "StoreUnsupported"
    REQUEST_REJECTED = "RequestRejected"
    TARGET_EXISTS = "TargetExists"
    TARGET_NOT_WRITABLE = "TargetNotWritable"
    INVALID_PLAN = "InvalidPlan"
    INTERNAL_ERROR = "InternalError"


CHANGED_SINCE_LISTED = "The source has changed since it was listed"
"""The beginning of the message of ``DigestMismatch`` for a plan that the operator made."""


def escape_unprintable(text: str) -> str:
    """Returns text from outside so that it can't forge lines, control a terminal, or change the direction of text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class TonnageError(Exception):
    """Base class of all expected errors.

    Attributes:
        reason: The stable reason; each direct subclass has its own.
        exit_code: Exit code of the ``tonnage`` command. 137 and 143 are reserved for signals, as in a shell.
        remedy: One sentence: what to do next. An error may have a more specific one than its class.
        message: One or two sentences that name the object, tensor and offset if there are any. Never a secret.
            Characters that control a terminal or the direction of text are escaped.
        details: Values for the report of a failed load, by the report's field names.
    """

    reason: ClassVar[Reason] = Reason.INTERNAL_ERROR
    exit_code: ClassVar[int] = 70
    remedy: str = "This is a bug in Tonnage: report it with the message above."

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = escape_unprintable(message)
        if remedy:
            self.remedy = remedy
        self.details: dict[str, object] = {}

    def __str__(self) -> str:
        return self.message


class AccessDenied(TonnageError):
    """The store denied access to this identity, or to anonymous requests."""

    reason = Reason.ACCESS_DENIED
    exit_code = 10
    remedy = (
        "Allow s3:GetObject on the objects and s3:ListBucket on the prefix for this identity; use --anonymous for a "
        "public bucket, --requester-pays (spec.source.s3.requesterPays) for one whose requester pays."
    )


class ObjectNotFound(TonnageError):
    """The bucket exists, but the object or prefix does not."""

    reason = Reason.OBJECT_NOT_FOUND
    exit_code = 11
    remedy = "Check the key or prefix; `tonnage inspect` on its parent lists the objects that exist."


class BucketNotFound(TonnageError):
    """The bucket does not exist at this endpoint."""

    reason = Reason.BUCKET_NOT_FOUND
    exit_code = 12
    remedy = "Check the bucket's name, the endpoint URL and the region."


class EndpointUnreachable(TonnageError):
    """The server's name could not be resolved, the connection failed, or the answer was not HTTP."""

    reason = Reason.ENDPOINT_UNREACHABLE
    exit_code = 13
    remedy = "Check the endpoint URL, DNS, network policies and proxies between this machine and the store."


class TLSVerificationFailed(TonnageError):
    """This machine does not trust the server's certificate."""

    reason = Reason.TLS_VERIFICATION_FAILED
    exit_code = 14
    remedy = "Pass the CA that signed the server's certificate with --ca-bundle (or AWS_CA_BUNDLE)."


class RequestTimeTooSkewed(TonnageError):
    """This machine's clock differs too much from the store's, so the store rejects signatures."""

    reason = Reason.REQUEST_TIME_TOO_SKEWED
    exit_code = 15
    remedy = "Synchronize this machine's clock (NTP); stores reject signatures that are more than about 15 minutes off."


class CredentialsMissing(TonnageError):
    """No credential provider returned credentials."""

    reason = Reason.CREDENTIALS_MISSING
    exit_code = 16
    remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role; or pass --anonymous."


class CredentialsExpired(TonnageError):
    """Credentials or a presigned URL expired and could not be renewed."""

    reason = Reason.CREDENTIALS_EXPIRED
    exit_code = 17
    remedy = "Get new credentials or a new presigned URL and start again: the load resumes from the data on disk."


class SourceChanged(TonnageError):
    """An object's version or ETag is no longer the pinned one."""

    reason = Reason.SOURCE_CHANGED
    exit_code = 18
    remedy = "Start again to load the new revision, or enable bucket versioning so that old versions stay readable."


class DigestMismatch(TonnageError):
    """The source's digest differs from the one that the plan expects."""

    reason = Reason.DIGEST_MISMATCH
    exit_code = 19
    remedy = "Compare the expected digest with that of `tonnage resolve`; the objects at the source were changed."


class NoTensorFiles(TonnageError):
    """The source has no ``.tensors`` and no ``.safetensors`` file, or the patterns exclude all of them."""

    reason = Reason.NO_TENSOR_FILES
    exit_code = 20
    remedy = "Check the prefix and the include and exclude patterns; weights are .tensors or .safetensors files."


class NotATensorizerFile(TonnageError):
    """The object does not begin with the header of a tensorizer file."""

    reason = Reason.NOT_A_TENSORIZER_FILE
    exit_code = 21
    remedy = "Serialize the model with tensorizer's TensorSerializer and upload the result unchanged."


class FormatUnsupported(TonnageError):
    """The file has a version or feature that no released tensorizer writes, or that this layout can't represent."""

    reason = Reason.FORMAT_UNSUPPORTED
    exit_code = 22
    remedy = "Update Tonnage, write the file with a released tensorizer, or use the layout that the message names."


class FormatDamaged(TonnageError):
    """The file is truncated, or its contents are inconsistent."""

    reason = Reason.FORMAT_DAMAGED
    exit_code = 23
    remedy = "Serialize and upload the file again: the object in the store is damaged."


class ChecksumMismatch(TonnageError):
    """A tensor did not match the hash in its header, or an object the checksum of its source, twice in a row."""

    reason = Reason.CHECKSUM_MISMATCH
    exit_code = 24
    remedy = "Upload the object again: it is damaged in the store, or a proxy on the way changes its bytes."


class NoChecksum(TonnageError):
    """Weights without hashes of their own have no checksum at their source that the requested level needs."""

    reason = Reason.NO_CHECKSUM
    exit_code = 40
    remedy = (
        "Use level best (--verify best, spec.verify: Best), which compares what there is and reports it; or "
        "upload the objects with checksums, or a SHA256SUMS file beside them."
    )


class DtypeUnsupported(TonnageError):
    """safetensors has no encoding for this dtype."""

    reason = Reason.DTYPE_UNSUPPORTED
    exit_code = 25
    remedy = "Load with --layout tensorizer, which keeps the files unchanged."


class NameCollision(TonnageError):
    """Two files or two tensors have the same name, or a name is invalid."""

    reason = Reason.NAME_COLLISION
    exit_code = 26
    remedy = "Rename one of them at the source, omit one with --exclude, or use --layout tensorizer."


class InsufficientSpace(TonnageError):
    """The cache's medium has too little free space."""

    reason = Reason.INSUFFICIENT_SPACE
    exit_code = 27
    remedy = "Free space (`tonnage ls`, `tonnage rm`), enlarge the medium or the memory limit, or use another --cache."


class CacheNotWritable(TonnageError):
    """The cache directory can't be created or written."""

    reason = Reason.CACHE_NOT_WRITABLE
    exit_code = 28
    remedy = "Give this user write permission on the cache directory, or use another one with --cache."


class CacheDamaged(TonnageError):
    """A cache entry is damaged: its files do not match its manifest."""

    reason = Reason.CACHE_DAMAGED
    exit_code = 29
    remedy = "Remove the entry with `tonnage rm` and load it again."


class CacheInUse(TonnageError):
    """The entry is in use and can't be removed."""

    reason = Reason.CACHE_IN_USE
    exit_code = 30
    remedy = "Stop the processes or pods that use the entry, then try again."


class Timeout(TonnageError):
    """The command took longer than its timeout."""

    reason = Reason.TIMEOUT
    exit_code = 31
    remedy = "Start again: the load resumes from the data on disk. Raise --timeout if the network is slow."


class Interrupted(TonnageError):
    """The command was terminated by a signal."""

    reason = Reason.INTERRUPTED
    exit_code = 32
    remedy = "Start again: the load resumes from the data on disk."


class RetriesExhausted(TonnageError):
    """A request still failed after all retries."""

    reason = Reason.RETRIES_EXHAUSTED
    exit_code = 33
    remedy = "Check the store's health and limits, then start again: the load resumes from the data on disk."


class LoaderOOMKilled(TonnageError):
    """A loader process was killed by the kernel's OOM killer."""

    reason = Reason.LOADER_OOM_KILLED
    exit_code = 34
    remedy = "Raise the memory limit: pages of a cache in memory count against the loader that writes them."


class LoaderEvicted(TonnageError):
    """The loader's pod was evicted from its node. Reported by the operator, never by the loader."""

    reason = Reason.LOADER_EVICTED
    exit_code = 35
    remedy = "Check the node's pressure conditions; the load is retried."


class StoreUnsupported(TonnageError):
    """The server lacks something that a load needs, such as range requests or complete listings."""

    reason = Reason.STORE_UNSUPPORTED
    exit_code = 36
    remedy = "Load from a server that implements what the message names, such as the store's S3 endpoint."


class RequestRejected(TonnageError):
    """The store rejected a request for a reason of its own, which the message repeats."""

    reason = Reason.REQUEST_REJECTED
    exit_code = 37
    remedy = "Follow the store's message; check the endpoint URL, the region and the addressing style too."


class TargetExists(TonnageError):
    """The target of ``tonnage serialize`` or of ``tonnage load --into`` has files already."""

    reason = Reason.TARGET_EXISTS
    exit_code = 38
    remedy = "Use another TARGET, or replace the files with --overwrite."


class TargetNotWritable(TonnageError):
    """The target or the scratch folder of ``tonnage serialize`` can't be written."""

    reason = Reason.TARGET_NOT_WRITABLE
    exit_code = 39
    remedy = "Give this user write permission on the folder that the message names, or use another one."


class InvalidPlan(TonnageError):
    """The command's arguments or the plan are invalid."""

    reason = Reason.INVALID_PLAN
    exit_code = 2
    remedy = "See `tonnage load --help`."


class InternalError(TonnageError):
    """A bug in Tonnage."""


def error_classes() -> dict[Reason, type[TonnageError]]:
    """Returns the error class of each reason."""
    return {cls.reason: cls for cls in TonnageError.__subclasses__()}


def error_for(reason: Reason, message: str, *, remedy: str = "") -> TonnageError:
    """Returns an error of the class of ``reason``; an empty ``remedy`` is that of the class."""
    return error_classes()[reason](message, remedy=remedy)
