"""One admission review: from the request's bytes to the answer. A pod that asks for nothing is never refused."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tonnage_operator.api import names
from tonnage_operator.domain import access, inject
from tonnage_operator.domain.inject import Refusal
from tonnage_operator.domain.requests import BadRequest, OnFailure, asks, failure_mode, read_request
from tonnage_operator.domain.weights import Unreadable, read_weights
from tonnage_operator.kube.gateway import ApiError
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NAMESPACES

if TYPE_CHECKING:
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.requests import Request, Wanted
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics
    from tonnage_operator.webhook.warmth import Warmth

_LOG = logging.getLogger("tonnage.webhook")

_LOOKUP_TIMEOUT: Final = 2.0
"""Seconds for reading one object, of which at most two are read one after the other: the API server waits longer."""

Body = dict[str, Any]


class NotAReview(Exception):
    """The request's body is no admission review."""


def parse(data: bytes) -> Body:
    """Returns the review's request.

    Raises:
        NotAReview: It is something else.
    """
    try:
        review = msgspec.json.decode(data)
        request = review["request"]
        if not isinstance(request["uid"], str):
            raise NotAReview("The review's request has no uid.")
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise NotAReview("This is no AdmissionReview of admission.k8s.io/v1.") from error
    return dict(request)


def patch(before: Body, after: Body) -> list[Body]:
    """Returns a JSON patch: whole members of ``metadata`` and ``spec`` that differ."""
    operations = []
    for part in ("metadata", "spec"):
        old, new = before.get(part) or {}, after.get(part) or {}
        if part not in before and new:
            operations.append({"op": "add", "path": f"/{part}", "value": new})
            continue
        operations += [
            {"op": "add", "path": f"/{part}/{key}", "value": value}
            for key, value in new.items()
            if key not in old or old[key] != value
        ]
    return operations


class Reviewer:
    """Answers reviews."""

    def __init__(self, gateway: Gateway, warmth: Warmth, installation: Installation, metrics: Metrics) -> None:
        self._gateway = gateway
        self._warmth = warmth
        self.installation = installation
        self._metrics = metrics

    async def answer(self, data: bytes) -> bytes:
        """Returns the answer to a review.

        Raises:
            NotAReview: The body is something else.
        """
        started = time.perf_counter()
        request = parse(data)
        response, result = await self._respond(request)
        self._metrics.admissions.labels(result).inc()
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        encoded = msgspec.json.encode({**review, "response": {"uid": request["uid"], **response}})
        self._metrics.admission_seconds.observe(time.perf_counter() - started)
        return encoded

    async def _respond(self, request: Body) -> tuple[Body, str]:
        pod = request.get("object")
        kind = (request.get("kind") or {}).get("kind")
        if request.get("operation") != "CREATE" or kind != "Pod" or not isinstance(pod, dict):
            return {"allowed": True}, "ignored"
        notes = _annotations(pod)
        if not asks(notes):
            return {"allowed": True}, "ignored"
        namespace = request.get("namespace") or (pod.get("metadata") or {}).get("namespace") or ""
        name = (pod.get("metadata") or {}).get("name") or (pod.get("metadata") or {}).get("generateName") or ""
        about = {"tonnage": {"pod": f"{namespace}/{name}", "object": notes.get(names.MODEL) or notes.get(names.MODELS)}}
        code, result = 403, "refused"
        try:
            if inject.is_injected(pod):
                return {"allowed": True}, "unchanged"
            injected = await self._inject(pod, notes, namespace)
        except (Refusal, BadRequest) as refusal:
            message = str(refusal)
        except ApiError as error:
            message, code, result = f"Tonnage can't look the model up now, try again: {error.message}", 503, "error"
            _LOG.warning("A lookup failed: %s", error.message, extra=about)
        except Exception:  # noqa: BLE001 - counted, logged, and answered: a crash would be a timeout for the pod
            message, code, result = "Tonnage failed on this pod; its webhook's log says how.", 500, "error"
            _LOG.exception("Injection failed", extra=about)
        else:
            _LOG.info("Injected a pod", extra=about)
            return _patched(pod, injected), "injected"
        if failure_mode(notes) is OnFailure.CONTINUE:
            _LOG.info("Admitted a pod without weights: %s", message, extra=about)
            answer = _patched(pod, inject.without_weights(pod, message))
            return {**answer, "warnings": [f"tonnage: started without weights: {message}"[:250]]}, "continued"
        _LOG.info("Refused a pod: %s", message, extra=about)
        return {"allowed": False, "status": {"code": code, "message": f"tonnage: {message}"}}, result

    async def _inject(self, pod: Body, notes: dict[str, str], namespace: str) -> Body:
        if not namespace:
            raise Refusal("The review names no namespace, so it can't be known which model is meant.")
        request = read_request(notes, namespace=namespace)
        found = await asyncio.gather(*(self._supply(wanted, namespace, request) for wanted in request.models))
        return inject.inject(pod, tuple(found), request, self.installation)

    async def _supply(self, wanted: Wanted, namespace: str, request: Request) -> inject.Supply:
        absent = Refusal(
            f"ModelWeights {wanted.namespace}/{wanted.name} does not exist"
            + ("." if wanted.namespace == namespace else f", or pods of namespace {namespace} may not use it.")
        )
        try:
            body = await self._gateway.get(MODEL_WEIGHTS, wanted.name, wanted.namespace, timeout=_LOOKUP_TIMEOUT)
        except ApiError as error:
            raise (absent if error.not_found else error) from error
        try:
            weights = read_weights(body)
        except Unreadable as error:
            raise Refusal(f"ModelWeights {wanted.namespace}/{wanted.name} can't be read: {error}") from error
        labels: dict[str, str] = {}
        if access.needs_labels(weights, namespace):
            found = await self._gateway.get(NAMESPACES, namespace, timeout=_LOOKUP_TIMEOUT)
            labels = found["metadata"].get("labels") or {}
        if not access.may_use(weights, namespace, labels):
            raise absent
        seen = weights.current
        key = weights.key(seen.revision, self.installation) if seen else ""
        hosts = self._warmth.hosts(key, weights.medium(self.installation), request.ranks_text)
        return inject.available(wanted, weights, hosts)


def _annotations(pod: Body) -> dict[str, str]:
    """Returns the pod's annotations; nonsense is none, so that it can't break anything."""
    metadata = pod.get("metadata")
    notes = metadata.get("annotations") if isinstance(metadata, dict) else None
    return {key: value for key, value in notes.items() if isinstance(value, str)} if isinstance(notes, dict) else {}


def _patched(before: Body, after: Body) -> Body:
    operations = patch(before, after)
    if not operations:
        return {"allowed": True}
    encoded = base64.b64encode(msgspec.json.encode(operations)).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}
