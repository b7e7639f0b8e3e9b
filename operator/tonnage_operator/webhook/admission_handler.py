"""Answers admission reviews of pods. A pod that does not request weights is always admitted."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Final

import msgspec

from tonnage.contract import DECODE_ERRORS
from tonnage_operator.api import names
from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain.admission import access, inject
from tonnage_operator.domain.admission.annotation_names import find_idle_annotation, find_misspelling
from tonnage_operator.domain.admission.injected_model import AdmissionDenied, InjectedModel, resolve_injected_model
from tonnage_operator.domain.admission.node_affinity import find_cold_nodes
from tonnage_operator.domain.admission.pod_groups import find_group, weights_of_group
from tonnage_operator.domain.admission.pod_request import (
    InvalidAnnotation,
    OnFailure,
    parse_annotations,
    parse_on_failure,
    requests_weights,
)
from tonnage_operator.domain.admission.reinvocation import complete_injection
from tonnage_operator.domain.observed import held_entries
from tonnage_operator.domain.observed.model_weights import InvalidModelWeights, parse_model_weights
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NAMESPACES
from tonnage_operator.namespace_rules import NamespaceRules
from tonnage_operator.webhook.group_revisions import GroupRevisions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.admission.pod_groups import PodGroup
    from tonnage_operator.domain.admission.pod_request import PodRequest, RequestedModel
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics
    from tonnage_operator.webhook.group_revisions import KeptRevision
    from tonnage_operator.webhook.warm_nodes import WarmNodes

_LOG = logging.getLogger("tonnage.webhook")

_LOOKUP_TIMEOUT: Final = 2.0
"""Seconds to read one object. A review reads at most two one after the other; the API server waits longer than that."""


_WARNING_LIMIT: Final = 250
"""Characters of a warning; the API server shortens longer ones."""


class InvalidReview(Exception):
    """The request's body is not an AdmissionReview."""


def parse_review(data: bytes) -> Body:
    """Returns the request of an AdmissionReview.

    Raises:
        InvalidReview: The data is something else.
    """
    try:
        review = msgspec.json.decode(data)
        request = review["request"]
        if not isinstance(request["uid"], str):
            raise InvalidReview("The review's request has no uid.")
    except (*DECODE_ERRORS, KeyError, TypeError) as error:
        raise InvalidReview("The body is not an AdmissionReview of admission.k8s.io/v1.") from error
    return dict(request)


def json_patch(before: Body, after: Body) -> list[Body]:
    """Returns the JSON Patch that replaces the members of ``metadata`` and ``spec`` that differ, as a whole.

    Members that ``after`` lacks are kept.
    """
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


class AdmissionHandler:
    """Answers admission reviews with the current ``installation``."""

    def __init__(
        self,
        client: KubeClient,
        warm_nodes: WarmNodes,
        nodes: Iterable[Node],
        installation: Installation,
        metrics: Metrics,
    ) -> None:
        self._client = client
        self._namespace_rules = NamespaceRules(client)
        self._warm_nodes = warm_nodes
        self._nodes = nodes
        self.installation = installation
        self._metrics = metrics

    async def handle(self, data: bytes) -> bytes:
        """Returns the encoded AdmissionReview with the response.

        Raises:
            InvalidReview: The data is not an AdmissionReview.
        """
        started = time.perf_counter()
        request = parse_review(data)
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
        annotations = _annotations(pod)
        misspelling = find_misspelling(annotations)
        if not requests_weights(annotations):
            return {"allowed": True, **_warnings(misspelling or find_idle_annotation(annotations))}, "ignored"
        namespace = request.get("namespace") or (pod.get("metadata") or {}).get("namespace") or ""
        name = (pod.get("metadata") or {}).get("name") or (pod.get("metadata") or {}).get("generateName") or ""
        log_extra = {
            "tonnage": {
                "pod": f"{namespace}/{name}",
                "object": annotations.get(names.MODEL) or annotations.get(names.MODELS),
            }
        }
        code, result = 403, "refused"
        try:
            if misspelling:
                raise InvalidAnnotation(misspelling)
            if inject.is_injected(pod):
                wanted = parse_annotations(annotations, namespace=namespace)
                return _patch_response(pod, complete_injection(pod, wanted.containers)), "unchanged"
            injected = await self._inject(pod, annotations, namespace, dry_run=bool(request.get("dryRun")))
            self._sign(injected, namespace, request)
        except (AdmissionDenied, InvalidAnnotation) as refusal:
            message = str(refusal)
        except ApiError as error:
            message, code, result = f"The model can't be looked up now; try again: {error.message}", 503, "error"
            _LOG.warning("Looking up a model failed: %s", error.message, extra=log_extra)
        except Exception:  # noqa: BLE001 - counted, logged and answered; a crash would be a timeout for the pod
            message, code, result = "The webhook failed on this pod; its log has the error.", 500, "error"
            _LOG.exception("Injecting a pod failed", extra=log_extra)
        else:
            _LOG.info("Injected a pod", extra=log_extra)
            return _patch_response(pod, injected), "injected"
        if parse_on_failure(annotations) is OnFailure.CONTINUE:
            _LOG.info("Admitted a pod without weights: %s", message, extra=log_extra)
            response = _patch_response(pod, inject.without_weights(pod, message))
            return {**response, **_warnings(f"started without weights: {message}")}, "continued"
        _LOG.info("Denied a pod: %s", message, extra=log_extra)
        return {"allowed": False, "status": {"code": code, "message": f"tonnage: {message}"}}, result

    async def _inject(self, pod: Body, annotations: dict[str, str], namespace: str, *, dry_run: bool) -> Body:
        if not namespace:
            raise AdmissionDenied("The review names no namespace, so the model can't be determined.")
        request = parse_annotations(annotations, namespace=namespace)
        group = find_group(pod.get("metadata") or {}) if request.same_revision else None
        models, limits = await asyncio.gather(
            asyncio.gather(*(self._look_up_model(wanted, pod, request, group) for wanted in request.models)),
            self._namespace_rules.get(namespace),
        )
        injected = inject.inject(pod, tuple(models), request, self.installation, limits)
        if group is None or dry_run or all(model.group for model in models):
            return injected
        # Only a pod that can be admitted decides, so this comes last. If another pod was earlier, its revision counts.
        kept = await asyncio.gather(*(self._keep(model, pod, request, group) for model in models))
        return inject.inject(pod, tuple(kept), request, self.installation, limits)

    async def _keep(self, model: InjectedModel, pod: Body, request: PodRequest, group: PodGroup) -> InjectedModel:
        """Returns a model with the revision that is kept for a group from now on."""
        if model.group:
            return model
        kept = await GroupRevisions(self._client, request.namespace).keep(group, model.weights, model.seen)
        return self._resolve(model.requested, model.weights, pod, request, kept)

    def _sign(self, pod: Body, namespace: str, request: Body) -> None:
        """Signs the held entries, but not in a dry run: the signature could be used for another pod."""
        if not request.get("dryRun"):
            pod["metadata"]["annotations"] |= held_entries.sign_held_entries(
                pod["metadata"],
                namespace=namespace,
                review_uid=request["uid"],
                keys=self.installation.signing,
                now=self._client.server_time(),
            )

    async def _look_up_model(
        self, wanted: RequestedModel, pod: Body, request: PodRequest, group: PodGroup | None
    ) -> InjectedModel:
        weights, kept = await asyncio.gather(
            self._read_model(wanted, request.namespace), self._find_kept(wanted, request.namespace, group)
        )
        return self._resolve(wanted, weights, pod, request, kept)

    async def _find_kept(self, wanted: RequestedModel, namespace: str, group: PodGroup | None) -> KeptRevision | None:
        if group is None:
            return None
        return await GroupRevisions(self._client, namespace).find(group, f"{wanted.namespace}/{wanted.name}")

    async def _read_model(self, wanted: RequestedModel, namespace: str) -> ModelWeights:
        absent = AdmissionDenied(
            f"ModelWeights {wanted.namespace}/{wanted.name} does not exist"
            + ("." if wanted.namespace == namespace else f", or pods of namespace {namespace} may not use it.")
        )
        try:
            body = await self._client.get(MODEL_WEIGHTS, wanted.name, wanted.namespace, timeout=_LOOKUP_TIMEOUT)
        except ApiError as error:
            raise (absent if error.not_found else error) from error
        try:
            weights = parse_model_weights(body)
        except InvalidModelWeights as error:
            raise AdmissionDenied(f"ModelWeights {wanted.namespace}/{wanted.name} can't be read: {error}") from error
        labels: dict[str, str] = {}
        if access.needs_namespace_labels(weights, namespace):
            namespace_body = await self._client.get(NAMESPACES, namespace, timeout=_LOOKUP_TIMEOUT)
            labels = namespace_body["metadata"].get("labels") or {}
        if not access.is_allowed(weights, namespace, labels):
            raise absent
        return weights

    def _resolve(
        self, wanted: RequestedModel, weights: ModelWeights, pod: Body, request: PodRequest, kept: KeptRevision | None
    ) -> InjectedModel:
        """Returns a model with its revision in use, or with the one that the pod's group keeps."""
        current = weights.current_revision
        weights = weights_of_group(weights, kept.spec) if kept else weights
        seen = kept.spec.revision if kept else current
        key = inject.cache_key(weights, seen.revision, pod, request, self.installation) if seen else ""
        hostnames = self._warm_nodes.hostnames(key, weights.medium(self.installation), request.ranks_text)
        is_warmed = seen is None or bool(current and key == weights.key(current.revision, self.installation))
        model = resolve_injected_model(
            wanted,
            weights,
            hostnames,
            is_warmed=is_warmed,
            kept=kept.spec.revision if kept else None,
            group=kept.name if kept else "",
        )
        if model.scheduling(request) is not Scheduling.REQUIRE or not is_warmed:
            return model
        cold = find_cold_nodes(weights, set(hostnames), self._nodes, pod, self.installation)
        return dataclasses.replace(model, cold=cold)


def _warnings(message: str) -> Body:
    """Returns the part of a response with which kubectl shows a warning; empty without a message."""
    return {"warnings": [f"tonnage: {message}"[:_WARNING_LIMIT]]} if message else {}


def _annotations(pod: Body) -> dict[str, str]:
    """Returns the pod's annotations. Malformed ones are dropped, so that they can't cause an error."""
    metadata = pod.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return (
        {key: value for key, value in annotations.items() if isinstance(value, str)}
        if isinstance(annotations, dict)
        else {}
    )


def _patch_response(before: Body, after: Body) -> Body:
    operations = json_patch(before, after)
    if not operations:
        return {"allowed": True}
    encoded = base64.b64encode(msgspec.json.encode(operations)).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}
