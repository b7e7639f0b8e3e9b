"""Receives loaders' reports. A TokenReview authenticates the sender; its Job or held entries must match the report.

Reports are best effort: they carry progress and object lists too long for a termination message. The termination
message stays authoritative for a load's result, so a lost report costs only these.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import web

from tonnage import contract
from tonnage.contract import ReportKind
from tonnage.contract.peers import encode_peers_answer
from tonnage.errors import InvalidPlan
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.connection_limits import ConnectionLimits
from tonnage_operator.domain import naming
from tonnage_operator.domain.nodecache.capacity import find_size_problem, has_room
from tonnage_operator.http_server import BodyRejected, read_body
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import TOKEN_REVIEWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.controller.metrics_recorder import MetricsRecorder
    from tonnage_operator.controller.peer_answers import PeerAnswers
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.pod import Pod
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.reports")

MAX_BODY_BYTES: Final = 2 << 20
"""Maximum size of a report in bytes; enough for 2,000 objects with long keys."""
_TOKEN_REVIEW_TTL: Final = 60.0
_TOKEN_REVIEW_TIMEOUT: Final = 5.0
_MAX_TOKEN_REVIEWS: Final = 64
"""TokenReviews at a time. Every pod that reaches the endpoint can cause them."""
_MAX_CACHED: Final = 10_000
CONNECTIONS: Final = ConnectionLimits(connections=2560)
"""A loader keeps two connections open, one for its progress and one for its questions about peers: enough for 1,000
loaders, and for those that end. With fewer, each report would open one again, and close that of another loader."""
_RETRY_AFTER: Final = "1"
"""Seconds, for the ``Retry-After`` header."""
_SIZE_TOLERANCE: Final = 64 << 20
"""Bytes by which an entry may exceed its revision by more than a twentieth: headers, and files that loads generate."""
_PROGRESS_INTERVAL: Final = 5.0
"""Minimum seconds between enqueues of one object for progress alone."""


@dataclass(frozen=True)
class Sender:
    """The pod that a token belongs to."""

    namespace: str
    pod: str
    uid: str
    account: str
    """Namespace and name of its ServiceAccount."""


class AskedEntry(NamedTuple):
    """An entry that a pod loads, with its size in the Job or at the pod's admission, and the object's uid.

    ``of_job`` is whether a load Job does, not the container of a pod of others.
    """

    key: EntryKey
    bytes: int
    model_uid: str
    of_job: bool


class ReportRejected(Exception):
    """A rejected report: HTTP status, value of the metric's label ``result``, and the message for the sender."""

    def __init__(self, status: int, result: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.result = result


class ReportEndpoint:
    """The handler of ``POST /v1/reports``.

    Until ``has_synced`` returns True, reports get 503: the cache may lack their pods, and a loader does not retry after
    a 403, so that a resolve Job would have to list the source again.
    """

    def __init__(
        self,
        state: ControllerState,
        client: KubeClient,
        metrics: Metrics,
        metrics_recorder: MetricsRecorder,
        *,
        has_synced: Callable[[], bool],
        enqueue_weights: Callable[[str], None],
        enqueue_node: Callable[[str], None],
        peer_answers: PeerAnswers,
    ) -> None:
        self._state = state
        self._peer_answers = peer_answers
        self._has_synced = has_synced
        self._client = client
        self._metrics = metrics
        self._metrics_recorder = metrics_recorder
        self._enqueue_weights = enqueue_weights
        self._enqueue_node = enqueue_node
        self._senders: dict[str, tuple[float, Sender]] = {}
        self._last_progress: dict[str, float] = {}
        self._token_reviews = 0

    async def handle(self, request: web.Request) -> web.Response:
        """Answers one request: 204, 200 to a reservation, or a 4xx or 503 with a message."""
        kind = "unknown"
        try:
            sender = await self._authenticate(request)
            pod = self._find_pod(sender)
            report = await self._read_report(request)
            kind = report.kind.value
            if report.kind is ReportKind.RESERVATION:
                answer = contract.encode_reservation_answer(self._answer_reservation(pod, report))
                self._metrics.reports.labels(kind, "accepted").inc()
                return web.Response(body=answer, content_type="application/json")
            if report.kind is ReportKind.PEERS:
                answer = self._answer_peers(pod, sender, report)
                self._metrics.reports.labels(kind, "accepted").inc()
                return web.Response(body=answer, content_type="application/json")
            self._accept(pod, report)
        except ReportRejected as rejection:
            self._metrics.reports.labels(kind, rejection.result).inc()
            _LOG.warning("Rejected a %s report (%s): %s", kind, rejection.result, rejection)
            headers = {"Retry-After": _RETRY_AFTER} if rejection.status == 503 else None
            return web.json_response({"message": str(rejection)}, status=rejection.status, headers=headers)
        self._metrics.reports.labels(kind, "accepted").inc()
        return web.Response(status=204)

    async def _read_report(self, request: web.Request) -> contract.Report:
        try:
            return contract.decode_report(await read_body(request, max_bytes=MAX_BODY_BYTES))
        except BodyRejected as error:
            result = "oversized" if error.status == 413 else "malformed"
            raise ReportRejected(error.status, result, str(error)) from error
        except InvalidPlan as error:
            raise ReportRejected(400, "malformed", str(error)) from error

    async def _authenticate(self, request: web.Request) -> Sender:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise ReportRejected(401, "unauthenticated", "Send the pod's projected token as a bearer token.")
        digest = hashlib.sha256(token.encode()).hexdigest()
        cached = self._senders.get(digest)
        if cached and cached[0] > time.monotonic():
            return cached[1]
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        unchecked = ReportRejected(503, "unchecked", "The token can't be verified now; try again.")
        if self._token_reviews >= _MAX_TOKEN_REVIEWS:
            raise unchecked
        self._token_reviews += 1
        try:
            async with asyncio.timeout(_TOKEN_REVIEW_TIMEOUT):
                token_review = await self._client.create(TOKEN_REVIEWS, body)
        except (ApiError, TimeoutError) as error:
            raise unchecked from error
        finally:
            self._token_reviews -= 1
        sender = _parse_token_review(token_review.get("status") or {})
        while len(self._senders) >= _MAX_CACHED:
            del self._senders[next(iter(self._senders))]
        self._senders[digest] = (time.monotonic() + _TOKEN_REVIEW_TTL, sender)
        return sender

    def _find_pod(self, sender: Sender) -> Pod:
        """Returns the sender's pod, before the report is read."""
        if not self._has_synced():
            raise ReportRejected(
                503, "too_early", "The controller is starting and does not know all pods yet; try again."
            )
        pod = self._state.pods.get(sender.uid)
        if pod is None or (pod.namespace, pod.name) != (sender.namespace, sender.pod):
            raise ReportRejected(403, "unknown_pod", "The operator knows no loader in this pod.")
        return pod

    def _answer_reservation(self, pod: Pod, report: contract.Report) -> contract.ReservationAnswer:
        """Answers a loader that asks for room, from the record of its node, where reservations are made."""
        asked = self._find_asked_entry(pod, report)
        limits = self._state.installation.limits(asked.key.medium)
        if not limits.needs_reservation:
            return contract.ReservationAnswer(granted=True)
        if problem := find_size_problem(report.bytes, limits, asked.key.medium):
            return contract.ReservationAnswer(granted=False, message=problem)
        size = min(report.bytes, asked.bytes + asked.bytes // 20 + _SIZE_TOLERANCE)
        self._state.reported_sizes[pod.uid][report.entry] = size
        if has_room(self._state.cache_index.entry(pod.node, *asked.key), size):
            return contract.ReservationAnswer(granted=True)
        self._enqueue_node(pod.node)
        shortage = self._state.shortages.get(pod.node, {}).get(asked.key)
        if shortage is None:
            return contract.ReservationAnswer(granted=False, wait=True, message="The room is being reserved.")
        return contract.ReservationAnswer(
            granted=False, wait=shortage.waits, message=shortage.describe(pod.node, pod.namespace)
        )

    def _answer_peers(self, pod: Pod, sender: Sender, report: contract.Report) -> bytes:
        asked = self._find_asked_entry(pod, report)
        return encode_peers_answer(
            self._peer_answers.answer(
                asked.key,
                pod.node,
                asked.model_uid,
                sender.account,
                of_job=asked.of_job,
                headers_digest=report.headers_digest,
            )
        )

    def _find_asked_entry(self, pod: Pod, report: contract.Report) -> AskedEntry:
        """Returns the entry that a pod loads and asks about: the Job's, or one that it was admitted with.

        Raises:
            ReportRejected: The pod's loader has nothing to do with this entry.
        """
        job = self._state.job_of(pod)
        if job and job.role == names.ROLE_LOAD and job.node_name and pod.node == job.node_name:
            if report.entry == naming.entry_of(job.key):
                return AskedEntry(job.entry_key, job.bytes, job.model_uid, of_job=True)
        elif not pod.job_uid and pod.node and self._state.is_admitted(pod):
            for held in pod.held_entries:
                if held.key and report.entry == naming.entry_of(held.key):
                    return AskedEntry(held.entry_key, held.bytes, held.uid, of_job=False)
        raise ReportRejected(403, "other_object", "This pod loads no such entry on its node.")

    def _accept(self, pod: Pod, report: contract.Report) -> None:
        if pod.job_uid:
            self._accept_from_job_pod(pod, report, report.identity)
        else:
            self._accept_from_user_pod(pod, report)
        if report.medium and pod.node and report.kind in {ReportKind.FINISHED, ReportKind.INVENTORY}:
            self._store_medium(pod, report.medium, report)

    def _accept_from_user_pod(self, pod: Pod, report: contract.Report) -> None:
        model_uid = report.identity.uid if report.identity else ""
        held_entries = [held for held in pod.held_entries if held.uid == model_uid and self._state.is_admitted(pod)]
        if not held_entries:
            raise ReportRejected(
                403, "other_object", "This pod was not admitted with the object that the report is about."
            )
        if report.kind is not ReportKind.FINISHED or report.outcome is None:
            return
        for held in held_entries:
            entry = held.key.rpartition("/")[2]
            if not held.key or not report.entry or entry == report.entry:
                if self._state.weights.get(held.uid):  # the series of deleted objects have been removed
                    self._metrics_recorder.record_pod_load(pod, held, report)
                self._state.reported_outcomes[pod.uid][entry] = report.outcome
        self._enqueue_weights(model_uid)
        if pod.node:
            self._enqueue_node(pod.node)

    def _accept_from_job_pod(self, pod: Pod, report: contract.Report, identity: contract.Identity | None) -> None:
        job = self._state.job_of(pod)
        if job is None or job.model_uid != pod.model_uid:
            raise ReportRejected(403, "unknown_pod", "This pod does not belong to a Job of the operator.")
        if not identity or identity.uid != job.model_uid:
            raise ReportRejected(403, "other_object", "The report is about another object than the Job.")
        if report.kind is ReportKind.RESOLVED and job.role != names.ROLE_RESOLVE:
            raise ReportRejected(403, "wrong_kind", "Only resolve Jobs report a resolved source.")
        before = self._state.reports.get(job.uid)
        if report.resolved or not (before and before.resolved):
            self._state.reports[job.uid] = report
        self._enqueue_throttled(job, report)

    def _enqueue_throttled(self, job: Job, report: contract.Report) -> None:
        """Enqueues the object; for progress alone at a limited rate, since each reconcile may write the status."""
        now = time.monotonic()
        if (
            report.kind is ReportKind.PROGRESS
            and now - self._last_progress.get(job.model_uid, 0.0) < _PROGRESS_INTERVAL
        ):
            return
        if len(self._last_progress) > _MAX_CACHED:
            self._last_progress.clear()
        self._last_progress[job.model_uid] = now
        self._enqueue_weights(job.model_uid)

    def _store_medium(self, pod: Pod, medium: contract.Medium, report: contract.Report) -> None:
        job = self._state.job_of(pod)
        if job and job.target.startswith(names.CLAIM_PREFIX):
            return  # a claim is not a medium of the node
        if job and job.medium:
            self._state.reported_media[pod.node][Medium(job.medium)] = medium
            return
        for held in pod.held_entries:
            if report.entry and held.key.rpartition("/")[2] == report.entry:
                self._state.reported_media[pod.node][held.medium] = medium


def _parse_token_review(status: dict[str, Any]) -> Sender:
    """Parses the status of a TokenReview.

    Raises:
        ReportRejected: The token is not valid, or belongs to no pod.
    """
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    audiences = status.get("audiences") or ()
    if not status.get("authenticated") or names.TOKEN_AUDIENCE not in audiences:
        raise ReportRejected(401, "unauthenticated", f"The token is not valid for the audience {names.TOKEN_AUDIENCE}.")
    parts = user.get("username", "").split(":")
    pod = extra.get("authentication.kubernetes.io/pod-name") or [""]
    uid = extra.get("authentication.kubernetes.io/pod-uid") or [""]
    if parts[:2] != ["system", "serviceaccount"] or not uid[0]:
        raise ReportRejected(401, "unauthenticated", "The token belongs to no pod.")
    return Sender(namespace=parts[2], pod=pod[0], uid=uid[0], account="/".join(parts[2:]))
