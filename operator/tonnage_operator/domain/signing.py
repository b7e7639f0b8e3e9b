"""Signatures over what the operator writes into objects that others can change: its Jobs, and pods at admission.

A signature counts only for an object that was created at about the time in it: the API server sets the time of
creation, so a copy that is made later has another one.

A signature is an HMAC-SHA256 with a key of the installation that controller and webhook share. During a rotation two
keys are valid: the current one signs, and the previous one still verifies.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body

MIN_KEY_BYTES: Final = 32
MAX_AGE: Final = timedelta(minutes=5)
"""Maximum time between signing and creation, both by the clocks of API servers."""

_JOB_LABELS: Final = (names.ROLE, names.MODEL_UID)
_JOB_ANNOTATIONS: Final = (
    names.MODEL_REF, names.CACHE_KEY, names.SOURCE_HASH, names.MEDIUM, names.NODE, names.CAUSE, names.BOOT_ID,
    names.ROUND, names.ATTEMPT, names.BYTES, names.REVISION, names.RETRY, names.TEMPLATE,
)  # fmt: skip


@dataclass(frozen=True)
class SigningKeys:
    """The keys of an installation, the current one first. Without keys nothing can be signed, and nothing verifies."""

    keys: tuple[bytes, ...] = field(default=(), repr=False)

    def sign(self, *parts: str) -> str:
        """Returns ``<key id>.<hex digits>`` over the parts; empty without keys."""
        return _signature(self.keys[0], parts) if self.keys else ""

    def verifies(self, signature: str, *parts: str) -> bool:
        """Returns whether one of the keys made this signature over exactly these parts."""
        given = signature.encode(errors="replace")
        return any(hmac.compare_digest(given, _signature(key, parts).encode()) for key in self.keys)

    def knows_review_token(self, token: str) -> bool:
        """Returns whether a token in the path of an admission review was made from one of the keys."""
        given = token.encode(errors="replace")
        return any(hmac.compare_digest(given, review_token(key).encode()) for key in self.keys)


NO_KEYS: Final = SigningKeys()


def _signature(key: bytes, parts: tuple[str, ...]) -> str:
    # JSON keeps the parts apart: ("a", "bc") and ("ab", "c") have different signatures.
    digest = hmac.digest(key, json.dumps(parts).encode(), "sha256").hex()
    return f"{key_id(key)}.{digest}"


def key_id(key: bytes) -> str:
    """Returns the name of a key in its signatures: 8 hex digits, which give nothing of the key away."""
    return hashlib.sha256(b"tonnage signing key\0" + key).hexdigest()[:8]


def review_token(key: bytes) -> str:
    """Returns the token that the chart puts into the paths of the webhook: 64 hex digits."""
    return hashlib.sha256(b"tonnage review token " + key).hexdigest()


def job_parts(metadata: Body) -> tuple[str, ...]:
    """Returns what the signature of a Job covers: its place, its owner, and the annotations that decisions read."""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return (
        "job",
        metadata["namespace"],
        metadata["name"],
        controller_uid(metadata),
        *(labels.get(name, "") for name in _JOB_LABELS),
        *(annotations.get(name, "") for name in _JOB_ANNOTATIONS),
        *_signed_at(annotations),
    )


def stamp_job(job: Body, keys: SigningKeys, now: datetime) -> Body:
    """Returns a Job that is signed for creation at this time. Its pod has the same signature, which relates both."""
    metadata, template = job["metadata"], job["spec"]["template"]
    annotations = {**metadata.get("annotations", {}), names.SIGNED_AT: format_time(now)}
    metadata = {**metadata, "annotations": annotations}
    annotations[names.SIGNATURE] = signature = keys.sign(*job_parts(metadata))
    pod = template.get("metadata") or {}
    pod = {**pod, "annotations": {**pod.get("annotations", {}), names.SIGNATURE: signature}}
    return {**job, "metadata": metadata, "spec": {**job["spec"], "template": {**template, "metadata": pod}}}


def format_time(time: datetime) -> str:
    """Returns a time as in the metadata of objects, in seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_timely(metadata: Body) -> bool:
    """Returns whether an object was created at about the time at which it was signed, if its signature has a time."""
    signed_at = (metadata.get("annotations") or {}).get(names.SIGNED_AT, "")
    if not signed_at:
        return True
    try:
        signed, created = (datetime.fromisoformat(text) for text in (signed_at, metadata["creationTimestamp"]))
        return abs(created - signed) <= MAX_AGE
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _signed_at(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the time in a signature; nothing without one, as in those of earlier releases."""
    signed_at = annotations.get(names.SIGNED_AT, "")
    return (signed_at,) if signed_at else ()


def pod_parts(metadata: Body, namespace: str) -> tuple[str, ...]:
    """Returns what the signature of an admitted pod covers: its held entries, its admission, and where it is.

    A pod of a ReplicaSet has no name at admission, but the prefix of its name.

    Args:
        metadata: The pod's, at admission or later.
        namespace: The pod's namespace, which its metadata may lack at admission.
    """
    annotations = metadata.get("annotations") or {}
    return (
        "pod",
        namespace,
        metadata.get("generateName") or metadata.get("name") or "",
        annotations.get(names.ADMISSION, ""),
        annotations.get(names.ENTRIES, ""),
        *_signed_at(annotations),
    )


def controller_uid(metadata: Body) -> str:
    """Returns the uid of the object that owns this one as its controller; empty without one."""
    return next((each["uid"] for each in metadata.get("ownerReferences") or () if each.get("controller")), "")
