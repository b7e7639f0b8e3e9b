"""Remedies for the loader's failures in the words of a ``ModelWeights``: those of the command line name its options."""

from __future__ import annotations

from typing import Final

from tonnage.errors import CHANGED_SINCE_LISTED, Reason

REMEDIES: Final = {
    Reason.ACCESS_DENIED: "Allow s3:GetObject on the objects and s3:ListBucket on the prefix for the identity of "
    "spec.credentials, or choose another one there; set spec.source.s3.requesterPays where the requester pays.",
    Reason.OBJECT_NOT_FOUND: "Check bucket, prefix and keys in spec.source.",
    Reason.BUCKET_NOT_FOUND: "Check bucket, endpoint and region in spec.source.s3.",
    Reason.ENDPOINT_UNREACHABLE: "Check spec.source.s3.endpoint, DNS, network policies and the egress proxy of the "
    "namespace (the chart's value loader.env).",
    Reason.TLS_VERIFICATION_FAILED: "Set caBundle in spec.source.s3 or spec.source.http to the CA that signed the "
    "server's certificate; for all namespaces, the administrator sets the chart's value loader.caBundle.",
    Reason.REQUEST_TIME_TOO_SKEWED: "Synchronize the node's clock (NTP).",
    Reason.CREDENTIALS_MISSING: "Set spec.credentials to a Secret or a ServiceAccount in the namespace of the pod that "
    "loads, or to anonymous: {}.",
    Reason.CREDENTIALS_EXPIRED: "Renew the session token or the presigned URLs in the Secret.",
    Reason.SOURCE_CHANGED: "Set spec.revision.policy to Track, or change spec.source, so that the new revision is "
    "used; versioning of the bucket keeps old revisions readable.",
    Reason.DIGEST_MISMATCH: "Find out who changed the objects, then set spec.revision.expectedDigest to the new "
    "digest.",
    Reason.NO_TENSOR_FILES: "Check spec.source, spec.files.weights, spec.files.tensors and spec.files.exclude; weights "
    "are .tensors or .safetensors files.",
    Reason.NOT_A_TENSORIZER_FILE: "Serialize the model with tensorizer's TensorSerializer and upload the result "
    "unchanged.",
    Reason.FORMAT_UNSUPPORTED: "Set spec.cache.layout to Tensorizer for encrypted files and to Safetensors for "
    ".safetensors files, or update Tonnage.",
    Reason.FORMAT_DAMAGED: "Upload the file again: the object in the store is damaged.",
    Reason.CHECKSUM_MISMATCH: "Upload the object again: it is damaged in the store, or a proxy on the way changes its "
    "bytes.",
    Reason.NO_CHECKSUM: "Set spec.verify to Best, which uses what there is and reports it, or upload the objects with "
    "checksums.",
    Reason.DTYPE_UNSUPPORTED: "Set spec.cache.layout to Tensorizer, which keeps the files unchanged.",
    Reason.NAME_COLLISION: "Set spec.files.exclude, or spec.cache.layout to Tensorizer.",
    Reason.INSUFFICIENT_SPACE: "Delete objects that the node doesn't need, enlarge the medium, or set "
    "spec.cache.medium.",
    Reason.CACHE_NOT_WRITABLE: "Check owner, mount and SELinux label of the cache's folder on the node (the chart's "
    "values loader.uid and loader.seLinuxOptions).",
    Reason.CACHE_DAMAGED: "The next attempt loads the entry again; if it happens again, check the node's disk.",
    Reason.CACHE_IN_USE: "Stop the pods that use the entry.",
    Reason.TIMEOUT: "Raise spec.loader.timeout if the network is slow; the next attempt resumes.",
    Reason.INTERRUPTED: "The next attempt resumes.",
    Reason.RETRIES_EXHAUSTED: "Check the store's health and limits; spec.loader.connections and "
    "spec.placement.maxConcurrentNodes lower the load on it.",
    Reason.LOADER_OOM_KILLED: "Raise or remove spec.loader.resources.limits.memory.",
    Reason.LOADER_EVICTED: "Check the node's pressure conditions.",
    Reason.STORE_UNSUPPORTED: "Set spec.source.s3.endpoint to a server that implements what the message names.",
    Reason.REQUEST_REJECTED: "Follow the store's message; check endpoint, region and addressingStyle in "
    "spec.source.s3, and that the objects are not encrypted with a customer's key (SSE-C).",
    Reason.TARGET_EXISTS: "Choose another target for tonnage serialize.",
    Reason.TARGET_NOT_WRITABLE: "Give tonnage serialize write permission on its target.",
    Reason.INVALID_PLAN: "Loader and operator are of different releases: finish the upgrade.",
    Reason.INTERNAL_ERROR: "This is a bug in Tonnage: report it with the message above.",
}
"""A sentence for each reason."""
_BY_NAME: Final = {str(reason): sentence for reason, sentence in REMEDIES.items()}

_WRONG_KEY: Final = (
    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the Secret of spec.credentials.secretRef: the store doesn't "
    "accept them."
)
_WRONG_REGION: Final = "Set spec.source.s3.region to the region that the message names."
_WRONG_KEY_WORDS: Final = (
    "the signature does not match",
    "the access key does not exist",
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
)
"""Words of the loader, and codes of services that issue credentials."""
_CHANGED_SINCE_LISTED: Final = (
    "Restore the objects; or set spec.revision.policy to Track, and create the pod again once the status has the new "
    "revision. Nodes that have the old one still serve it."
)


_HUB: Final = {
    Reason.ACCESS_DENIED: "Set spec.credentials.secretRef to a Secret whose key HF_TOKEN is a token that may read the "
    "repository; for a gated one, its user must accept the terms on the hub.",
    Reason.OBJECT_NOT_FOUND: "Check repo and revision in spec.source.hub; a private repository needs a Secret with the "
    "key HF_TOKEN in spec.credentials.secretRef.",
    Reason.ENDPOINT_UNREACHABLE: "Check spec.source.hub.endpoint, DNS, network policies and the egress proxy of the "
    "namespace (the chart's value loader.env).",
    Reason.STORE_UNSUPPORTED: "Set spec.source.hub.endpoint to a hub that implements what the message names.",
}
"""Sentences for sources on a hub."""


def remedy(reason: str, message: str) -> str:
    """Returns what to change at a ``ModelWeights`` after a failure of the loader; empty for other reasons."""
    if message.startswith("hf://") and reason in _HUB:
        return _HUB[Reason(reason)]
    if reason == Reason.ACCESS_DENIED and any(each in message for each in _WRONG_KEY_WORDS):
        return _WRONG_KEY
    if reason == Reason.ACCESS_DENIED and "is in the region" in message:
        return _WRONG_REGION
    if reason == Reason.DIGEST_MISMATCH and message.startswith(CHANGED_SINCE_LISTED):
        return _CHANGED_SINCE_LISTED
    return _BY_NAME.get(reason, "")
