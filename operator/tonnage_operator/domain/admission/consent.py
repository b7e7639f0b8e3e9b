"""Whether the author of a ``ModelWeights`` may have loaders use the Secrets and the ServiceAccount that it names.

Users who may create pods in a namespace can use both already, and so can users who may read the Secret. An owner gives
others the right with a Role: the verb ``use`` on the one Secret or ServiceAccount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from tonnage_operator.api.source import Credentials, ModelSource

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body


class Reference(NamedTuple):
    """An object in the namespace of the ``ModelWeights`` whose use needs consent."""

    resource: str
    """``secrets`` or ``serviceaccounts``."""
    name: str


class Right(NamedTuple):
    """A permission in the namespace of the ``ModelWeights``."""

    verb: str
    resource: str
    name: str = ""


CREATE_PODS = Right("create", "pods")
"""Includes the use of every Secret and ServiceAccount of the namespace, since a pod can."""


class InvalidReferences(Exception):
    """The source or the credentials can't be read: operator and CRD are of different releases."""


def sufficient_rights(reference: Reference) -> tuple[Right, ...]:
    """Returns the rights of which one is enough to use an object."""
    use = Right("use", reference.resource, reference.name)
    return (Right("get", "secrets", reference.name), use) if reference.resource == "secrets" else (use,)


def references_to_check(body: Body, old_body: Body | None) -> tuple[Reference, ...]:
    """Returns the references of an object that need consent now, sorted.

    Args:
        body: The object as it will be.
        old_body: The object before an update. If source and credentials stay the same, nothing needs consent again. If
            one changes, everything does, because the source decides what the identity is used for.

    Raises:
        InvalidReferences: The object doesn't match this operator's schema.
    """
    spec = body.get("spec") or {}
    old_spec = (old_body or {}).get("spec") or {}
    if old_body is not None and _relevant(spec) == _relevant(old_spec):
        return ()
    try:
        source = ModelSource.model_validate(spec.get("source") or {})
        credentials = Credentials.model_validate(spec.get("credentials") or {})
    except (ValidationError, AttributeError) as error:
        raise InvalidReferences("spec.source or spec.credentials can't be read") from error
    found = set()
    if credentials.secret_ref:
        found.add(Reference("secrets", credentials.secret_ref.name))
    if credentials.service_account_name:
        found.add(Reference("serviceaccounts", credentials.service_account_name))
    if source.http and source.http.urls_from:
        found.add(Reference("secrets", source.http.urls_from.name))
    location = source.location
    if location and location.ca_bundle and location.ca_bundle.secret_key_ref:
        found.add(Reference("secrets", location.ca_bundle.secret_key_ref.name))
    return tuple(sorted(found))


def _relevant(spec: Any) -> tuple[object, object]:  # noqa: ANN401 - foreign JSON
    return (spec.get("source"), spec.get("credentials") or {}) if isinstance(spec, dict) else (spec, None)


def access_review(user: Body, namespace: str, right: Right) -> Body:
    """Returns the SubjectAccessReview that asks whether a user has a right.

    Args:
        user: ``userInfo`` of an admission review.
        namespace: The namespace.
        right: The right.
    """
    attributes = {"namespace": namespace, "verb": right.verb, "group": "", "resource": right.resource}
    spec = {name: user[name] for name in ("groups", "uid", "extra") if user.get(name)}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            **spec,
            "user": user.get("username") or "",
            "resourceAttributes": {**attributes, **({"name": right.name} if right.name else {})},
        },
    }
