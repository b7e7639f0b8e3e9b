"""Metrics and logs. Labels are bounded: no pods, uids, paths or nodes; the revision only in ``tonnage_info``."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tonnage_operator import __version__

if TYPE_CHECKING:
    from tonnage_operator.kube.resources import Resource

_LOAD_BUCKETS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_RESOLVE_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_WAIT_BUCKETS: Final = (0.1, 0.25, 0.5, *_LOAD_BUCKETS)
_ADMISSION_BUCKETS: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All metrics of one process, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tonnage_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"tonnage_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"tonnage_{name}", text, labels, registry=registry, buckets=buckets)

        model = ("namespace", "name")
        gauge("build_info", "The running version.", "version").labels(__version__).set(1)
        self.info = gauge("info", "The revision in use.", *model, "revision")
        self.condition = gauge("condition", "1 for the status that a condition has.", *model, "type", "status")
        self.desired = gauge("desired_nodes", "Nodes that should be warm.", *model)
        self.warm = gauge("warm_nodes", "Desired nodes that are warm.", *model)
        self.failed = gauge("failed_nodes", "Nodes whose last load failed.", *model)
        self.reconciles = counter("reconcile_total", "Reconciles.", "kind", "result")
        self.reconcile_seconds = histogram(
            "reconcile_duration_seconds", "Time of one reconcile with its requests.", _ADMISSION_BUCKETS, "kind"
        )
        self.resolves = counter("source_resolve_total", "Resolve Jobs that finished.", "result", "reason")
        self.resolve_seconds = histogram(
            "source_resolve_duration_seconds", "Time of successful resolves.", _RESOLVE_BUCKETS
        )
        self.loads_started = counter("load_started_total", "Load Jobs that were created.", *model)
        self.loads_finished = counter("load_finished_total", "Load Jobs that finished.", "result", "reason")
        self.load_seconds = histogram("load_duration_seconds", "Time of successful loads.", _LOAD_BUCKETS, "medium")
        self.load_bytes = counter("load_bytes_total", "Bytes that loads downloaded.", "medium")
        self.load_peer_bytes = counter(
            "load_peer_bytes_total", "Bytes that loads downloaded from peers, a part of load_bytes_total.", "medium"
        )
        self.peers_dropped = counter("peers_dropped_total", "Peers that loads no longer asked.", "reason")
        self.peers_ready = gauge("ready_peers", "Nodes whose peer is ready to serve.")
        self.load_retries = counter("load_retries_total", "Requests for parts that were retried.")
        self.verified = counter("verify_total", "Loads that were verified.", "level", "result")
        self.cache_requests = counter("cache_requests_total", "Loads of pods that requested weights.", *model, "result")
        self.bytes_saved = counter(
            "bytes_saved_total", "Bytes that pods read from the cache instead of downloading.", *model
        )
        self.pod_wait_seconds = histogram(
            "pod_wait_seconds", "Time that a pod waited for its loader.", _WAIT_BUCKETS, "result"
        )
        self.evictions = counter("evictions_total", "Cleanup Jobs that were created.", "medium", "cause")
        self.evicted_bytes = counter("evicted_bytes_total", "Bytes of entries that were evicted.", "medium")
        self.cache_capacity = gauge(
            "cache_capacity_bytes", "Capacity of all nodes' media: the chart's, or as reported by loaders.", "medium"
        )
        self.cache_used = gauge("cache_used_bytes", "Bytes of all nodes' entries.", "medium")
        self.cache_reserved = gauge("cache_reserved_bytes", "Bytes that are reserved for loads on all nodes.", "medium")
        self.cache_waiting = gauge("cache_waiting_loads", "Loads that wait for room on a node.", "medium")
        self.cache_entries = gauge("cache_entries", "Entries on all nodes.", "medium", "state")
        self.artifacts = gauge(
            "artifacts_bytes", "Bytes of all nodes' engine artifacts, as measured when pods started."
        )
        self.unreadable = gauge("unreadable_objects", "Watched objects that can't be parsed.", "resource")
        self.unsigned = gauge(
            "unsigned_objects", "Watched Jobs and pods without the operator's signature, which are ignored.", "resource"
        )
        self.reports = counter("reports_total", "Reports that loaders sent.", "kind", "result")
        self.requests = counter("api_requests_total", "Requests to the API server.", "verb", "resource", "code")
        self.watch_restarts = counter("watch_restarts_total", "Watches that were restarted after an error.", "resource")
        self.events = counter("events_total", "Events that were posted.", "reason")
        self.admissions = counter("admission_requests_total", "Admission reviews.", "result")
        self.consents = counter(
            "consent_requests_total", "Reviews of ModelWeights that name Secrets or a ServiceAccount.", "result"
        )
        self.admission_seconds = histogram(
            "admission_duration_seconds", "Time of an admission review inside the server.", _ADMISSION_BUCKETS
        )
        self.gate_waiting = gauge("gate_waiting_nodes", "Nodes with a startup taint, or without the gate's condition.")
        self.gate_opened = counter("gate_opened_total", "Nodes that the gate has opened for pods.", "result")
        self.certificate_expiry = gauge(
            "certificate_expiry_timestamp_seconds", "When the serving certificate expires; 0 without one."
        )
        self.certificate_reloads = counter("certificate_reload_total", "Reloads of the serving certificate.", "result")

    def observe_request(self, verb: str, resource: Resource, label: str, status: int) -> None:
        """Counts one request to the API server; status 0: there was no response."""
        self.requests.labels(verb, label or resource.plural, str(status)).inc()

    def count_watch_restart(self, resource: str) -> None:
        self.watch_restarts.labels(resource).inc()

    def drop_model(self, namespace: str, name: str) -> None:
        """Removes the series of a deleted object."""
        of_models = (self.info, self.condition, self.desired, self.warm, self.failed)
        for metric in (*of_models, self.loads_started, self.cache_requests, self.bytes_saved):
            metric.remove_by_labels({"namespace": namespace, "name": name})


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON; ``extra={"tonnage": {...}}`` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "tonnage", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(*, json_lines: bool, level: str) -> None:
    """Sends all logs to stderr, as lines of JSON or of plain text."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if json_lines else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("kopf").setLevel(logging.WARNING)
