"""Answers admission reviews of ``ModelWeights``: may their author use the Secrets and ServiceAccounts in them?"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from tonnage_operator.domain.admission.consent import (
    CREATE_PODS,
    InvalidReferences,
    Right,
    access_review,
    references_to_check,
    sufficient_rights,
)
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import SUBJECT_ACCESS_REVIEWS
from tonnage_operator.webhook.admission_handler import parse_review

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.admission.consent import Reference
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.webhook")

_TIMEOUT: Final = 2.0
"""Seconds for one SubjectAccessReview. At most two groups of them run one after the other."""


class ConsentHandler:
    """Answers reviews with SubjectAccessReviews, so that the API server's own authorizer decides."""

    def __init__(self, client: KubeClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    async def handle(self, data: bytes) -> bytes:
        """Returns the encoded AdmissionReview with the response.

        Raises:
            InvalidReview: The data is not an AdmissionReview.
        """
        request = parse_review(data)
        problem, code = "", 403
        try:
            problem = await self._find_problem(request)
        except InvalidReferences as error:
            problem = f"{error}. Are operator and CRD of one release?"
        except ApiError as error:
            problem, code = f"Your rights can't be checked now; try again: {error.message}", 503
            _LOG.warning("A SubjectAccessReview failed: %s", error.message)
        self._metrics.consents.labels("error" if code == 503 else "denied" if problem else "allowed").inc()
        response: Body = {"uid": request["uid"], "allowed": not problem}
        if problem:
            response["status"] = {"code": code, "message": f"tonnage: {problem}"}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        return msgspec.json.encode(review)

    async def _find_problem(self, request: Body) -> str:
        """Returns why the author may not write this object; empty if it may."""
        body, old_body = request.get("object"), request.get("oldObject")
        if request.get("operation") not in {"CREATE", "UPDATE"} or not isinstance(body, dict):
            return ""
        references = references_to_check(body, old_body if isinstance(old_body, dict) else None)
        user = request.get("userInfo")
        user, namespace = user if isinstance(user, dict) else {}, str(request.get("namespace") or "")
        if not references or await self._is_allowed(user, namespace, CREATE_PODS):
            return ""
        allowed = await asyncio.gather(*(self._may_use(user, namespace, each) for each in references))
        missing = [each for each, is_allowed in zip(references, allowed, strict=True) if not is_allowed]
        if not missing:
            return ""
        found = ", ".join(f"{each.resource}/{each.name}" for each in missing)
        return (
            f"{user.get('username') or 'the author'} may not use {found} of namespace {namespace}. Their owner can "
            "permit it with a Role that has the verb use on them."
        )

    async def _may_use(self, user: Body, namespace: str, reference: Reference) -> bool:
        for right in sufficient_rights(reference):
            if await self._is_allowed(user, namespace, right):
                return True
        return False

    async def _is_allowed(self, user: Body, namespace: str, right: Right) -> bool:
        answer = await self._client.create(
            SUBJECT_ACCESS_REVIEWS, access_review(user, namespace, right), timeout=_TIMEOUT
        )
        return bool((answer.get("status") or {}).get("allowed"))
