"""Takes over the identity that a cloud's webhook gave to a pod's containers before the loader existed.

Such webhooks (IRSA, EKS Pod Identity) may be registered so that they are not called again for containers that other
webhooks add. Without this, the loader would have no credentials although its pod has some.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.base import Body

_TOKEN_VOLUMES: Final = frozenset({"aws-iam-token", "eks-pod-identity-token"})
"""Volumes that the webhooks of IRSA and EKS Pod Identity add."""
_VARIABLES: Final = frozenset({
    "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_STS_REGIONAL_ENDPOINTS", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_REGION", "AWS_DEFAULT_REGION",
})  # fmt: skip
"""Variables that these webhooks set."""


def copy_cloud_identity(containers: Iterable[Body], loader: Body) -> None:
    """Adds to ``loader`` the mounts and variables of the first container that has an identity from such a webhook."""
    for container in containers:
        mounts = [each for each in container.get("volumeMounts") or () if each["name"] in _TOKEN_VOLUMES]
        if not mounts:
            continue
        mounted = {each["mountPath"] for each in loader["volumeMounts"]}
        loader["volumeMounts"] += [dict(each) for each in mounts if each["mountPath"] not in mounted]
        present = {each["name"] for each in loader["env"]}
        variables = [each for each in container.get("env") or () if each["name"] in _VARIABLES - present]
        loader["env"] += [dict(each) for each in variables]
        return
