"""Takes loaders' reports: who sends them is checked by TokenReview, and what they say against what we know.

Reports are a courtesy: they bring progress and long object lists. How a load ended is told by the pod's termination
message, so that a lost or refused report costs nothing but that.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tonnage import contract
from tonnage.contract import ReportKind
from tonnage.errors import InvalidPlan
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.controller.tally import Tally
from tonnage_operator.kube.gateway import ApiError
from tonnage_operator.kube.resources import TOKEN_REVIEWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage_operator.controller.cluster import Cluster
    from tonnage_operator.domain.facts import Job, Pod
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.reports")

BODY_LIMIT: Final = 2 << 20
"""Bytes of a report: 2000 objects with long keys fit."""
_REVIEW_AGE: Final = 60.0
_REVIEWS_KEPT: Final = 10_000
_SOON: Final = "1"
"""Seconds after which a loader is asked to try again."""
_PROGRESS_INTERVAL: Final = 5.0
"""Seconds between two status writes for progress alone, for one object."""


@dataclass(frozen=True)
class Sender:
    """The pod that a token belongs to."""

    namespace: str
    pod: str
    uid: str


class Refused(Exception):
    """A report that is not taken; the text goes back to its sender."""

    def __init__(self, status: int, result: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.result = result


class ReportEndpoint:
    """The handler of ``POST /v1/reports``.

    ``complete`` says whether all pods and Jobs are known by now. Until then nobody is called unknown: a loader takes
    that for the last word, and a long list would have to be made again.
    """

    def __init__(
        self,
        cluster: Cluster,
        gateway: Gateway,
        metrics: Metrics,
        *,
        complete: Callable[[], bool],
        wake: Callable[[str], None],
        wake_node: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._complete = complete
        self._gateway = gateway
        self._metrics = metrics
        self._tally = Tally(metrics)
        self._wake = wake
        self._wake_node = wake_node
        self._senders: dict[str, tuple[float, Sender]] = {}
        self._told: dict[str, float] = {}

    async def handle(self, request: web.Request) -> web.Response:
        """Takes one report."""
        kind = "unknown"
        try:
            sender = await self._sender(request)
            report = await self._read(request)
            kind = report.kind.value
            self._take(sender, report)
        except Refused as refusal:
            self._metrics.reports.labels(kind, refusal.result).inc()
            _LOG.warning("Refused a %s report (%s): %s", kind, refusal.result, refusal)
            headers = {"Retry-After": _SOON} if refusal.status == 503 else None
            return web.json_response({"message": str(refusal)}, status=refusal.status, headers=headers)
        self._metrics.reports.labels(kind, "accepted").inc()
        return web.Response(status=204)

    async def _read(self, request: web.Request) -> contract.Report:
        if (request.content_length or 0) > BODY_LIMIT:
            raise Refused(413, "oversized", f"A report has at most {BODY_LIMIT} bytes.")
        data = b""
        async for chunk in request.content.iter_any():
            data += chunk
            if len(data) > BODY_LIMIT:
                raise Refused(413, "oversized", f"A report has at most {BODY_LIMIT} bytes.")
        try:
            return contract.decode_report(data)
        except InvalidPlan as error:
            raise Refused(400, "malformed", str(error)) from error

    async def _sender(self, request: web.Request) -> Sender:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise Refused(401, "unauthenticated", "Send the pod's projected token as a bearer token.")
        digest = hashlib.sha256(token.encode()).hexdigest()
        known = self._senders.get(digest)
        if known and known[0] > time.monotonic():
            return known[1]
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        try:
            answer = await self._gateway.create(TOKEN_REVIEWS, body)
        except ApiError as error:
            raise Refused(503, "unchecked", "The token can't be checked now; try again.") from error
        sender = _sender_of(answer.get("status") or {})
        while len(self._senders) >= _REVIEWS_KEPT:
            del self._senders[next(iter(self._senders))]
        self._senders[digest] = (time.monotonic() + _REVIEW_AGE, sender)
        return sender

    def _take(self, sender: Sender, report: contract.Report) -> None:
        if not self._complete():
            raise Refused(503, "too_early", "The controller has just started and doesn't know all pods yet; try again.")
        pod = self._cluster.pods.get(sender.uid)
        if pod is None or (pod.namespace, pod.name) != (sender.namespace, sender.pod):
            raise Refused(403, "unknown_pod", "This pod has no loader that the operator knows of.")
        if pod.job_uid:
            self._take_from_job(pod, report, report.identity)
        else:
            self._take_from_user(pod, report)
        if report.medium and pod.node and report.kind in {ReportKind.FINISHED, ReportKind.INVENTORY}:
            self._remember_medium(pod, report.medium, report)

    def _take_from_user(self, pod: Pod, report: contract.Report) -> None:
        """Takes what a loader in a pod of a user says."""
        about = report.identity.uid if report.identity else ""
        claims = [claim for claim in pod.claims if claim.uid == about]
        if not claims:
            raise Refused(403, "other_object", "This pod was not admitted with the object that the report is about.")
        if report.kind is not ReportKind.FINISHED or report.outcome is None:
            return
        for claim in claims:
            entry = claim.key.rpartition("/")[2]
            if not claim.key or not report.entry or entry == report.entry:
                self._tally.heard(pod, claim, report)
                self._cluster.told[pod.uid][entry] = report.outcome
        self._wake(about)
        if pod.node:
            self._wake_node(pod.node)

    def _take_from_job(self, pod: Pod, report: contract.Report, identity: contract.Identity | None) -> None:
        job = self._cluster.jobs.get(pod.job_uid)
        if job is None or (job.namespace, job.model_uid) != (pod.namespace, pod.model_uid):
            raise Refused(403, "unknown_pod", "This pod belongs to no Job of the operator.")
        if not identity or identity.uid != job.model_uid:
            raise Refused(403, "other_object", "The report is about another object than the Job is.")
        if report.kind is ReportKind.RESOLVED and job.role != names.ROLE_RESOLVE:
            raise Refused(403, "wrong_kind", "Only resolve Jobs say what was resolved.")
        before = self._cluster.reports.get(job.uid)
        if report.resolved or not (before and before.resolved):
            self._cluster.reports[job.uid] = report
        self._wake_soon(job, report)

    def _wake_soon(self, job: Job, report: contract.Report) -> None:
        """Wakes the object; for progress alone not too often, since each wake may write the status."""
        now = time.monotonic()
        if report.kind is ReportKind.PROGRESS and now - self._told.get(job.model_uid, 0.0) < _PROGRESS_INTERVAL:
            return
        if len(self._told) > _REVIEWS_KEPT:
            self._told.clear()
        self._told[job.model_uid] = now
        self._wake(job.model_uid)

    def _remember_medium(self, pod: Pod, medium: contract.Medium, report: contract.Report) -> None:
        job = self._cluster.jobs.get(pod.job_uid) if pod.job_uid else None
        if job and job.node.startswith(names.CLAIM_PREFIX):
            return  # a claim is no medium of the node
        if job and job.medium:
            self._cluster.media[pod.node][Medium(job.medium)] = medium
            return
        for claim in pod.claims:
            if report.entry and claim.key.rpartition("/")[2] == report.entry:
                self._cluster.media[pod.node][claim.medium] = medium


def _sender_of(status: dict[str, Any]) -> Sender:
    """Reads a TokenReview's answer."""
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    audiences = status.get("audiences") or ()
    if not status.get("authenticated") or names.TOKEN_AUDIENCE not in audiences:
        raise Refused(401, "unauthenticated", f"The token is not valid for the audience {names.TOKEN_AUDIENCE}.")
    parts = user.get("username", "").split(":")
    pod = extra.get("authentication.kubernetes.io/pod-name") or [""]
    uid = extra.get("authentication.kubernetes.io/pod-uid") or [""]
    if parts[:2] != ["system", "serviceaccount"] or not uid[0]:
        raise Refused(401, "unauthenticated", "The token belongs to no pod.")
    return Sender(namespace=parts[2], pod=pod[0], uid=uid[0])
