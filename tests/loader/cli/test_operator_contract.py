"""The operator's Jobs and pods, run by the real loader, which reports to the operator's endpoint over TLS.

Kubernetes is left out: a container's arguments and environment are taken as they are, with its mounts moved into a
folder of the test, and one call of the API server, TokenReview, is answered here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from operator_support import objects
from operator_support.metrics import count
from support.faulty_server import Fault, FaultyServer
from support.tonnage_cli import CommandResult, run_tonnage, start_tonnage
from support.waiting import eventually_async
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.source import AddressingStyle
from tonnage_operator.api.status import SeenRevision, StoreBehavior
from tonnage_operator.controller.metrics_recorder import MetricsRecorder
from tonnage_operator.controller.peer_answers import PeerAnswers
from tonnage_operator.controller.report_endpoint import ReportEndpoint
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.domain.admission.inject import inject
from tonnage_operator.domain.admission.injected_model import resolve_injected_model
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed.held_entries import sign_held_entries
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.specs import jobs
from tonnage_operator.http_server import serve
from tonnage_operator.telemetry import Metrics
from tonnage_operator.tls import CertificateWatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from loader.cli.conftest import Model
    from support.faulty_server import Request
    from support.tls import CertificateAuthority
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

NOW = "2026-01-01T00:00:00Z"
TOKEN_FOLDER = "/var/run/secrets/tonnage.dev"
MOUNT_PATHS = ("/cache", "/run/tonnage", "/dev/termination-log", TOKEN_FOLDER)

Body = dict[str, Any]


class FakeTokenReviews:
    """TokenReviews whose tokens are the pods' UIDs."""

    def __init__(self, cluster: ControllerState) -> None:
        self._state = cluster

    async def create(self, _: object, body: Body) -> Body:
        pod = self._state.pods.get(body["spec"]["token"])
        if pod is None:
            return {"status": {"authenticated": False}}
        extra = {
            "authentication.kubernetes.io/pod-name": [pod.name],
            "authentication.kubernetes.io/pod-uid": [pod.uid],
        }
        user = {"username": f"system:serviceaccount:{pod.namespace}:default", "extra": extra}
        return {"status": {"authenticated": True, "audiences": [names.TOKEN_AUDIENCE], "user": user}}


@dataclasses.dataclass
class OperatorStub:
    """The report endpoint, and the node of the pods."""

    folder: Path
    state: ControllerState
    metrics: Metrics
    installation: Installation
    weights: ModelWeights
    secrets: Mapping[str, str]
    enqueued: list[str]

    def report_count(self, kind: str, result: str = "accepted") -> int:
        return count(self.metrics.reports, kind=kind, result=result)

    @property
    def rejected_reports(self) -> dict[str, float]:
        found = {}
        for metric in self.metrics.reports.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total") and sample.labels["result"] != "accepted":
                    found[str(sample.labels)] = sample.value
        return found

    def add_pod(self, pod: Body) -> None:
        """Adds a pod to the cluster before it runs."""
        self.state.pods.put({**pod, "status": {}})

    def start_job(self, job: Body) -> str:
        """Creates a Job and its pod, like the API server and the Job controller. Returns the Job's UID."""
        stored = objects.stored_job(job)
        stored["metadata"]["resourceVersion"] = "1"
        self.state.jobs.put(stored)
        template, uid = job["spec"]["template"], f"pod-{job['metadata']['name']}"
        self.add_pod({
            "metadata": {
                **template["metadata"],
                "name": uid,
                "uid": uid,
                "namespace": job["metadata"]["namespace"],
                "resourceVersion": "1",
                "ownerReferences": [{"kind": "Job", "uid": stored["metadata"]["uid"], "controller": True}],
            },
            "spec": {**template["spec"], "nodeName": "node-1"},
        })  # fmt: skip
        self.token(uid)
        uid_of_job: str = stored["metadata"]["uid"]
        return uid_of_job

    def token(self, pod_uid: str) -> None:
        folder = self.local_path(TOKEN_FOLDER)
        (folder / "token").write_text(pod_uid)

    def local_path(self, path: str) -> Path:
        return self.folder / path.strip("/").replace("/", "-")

    def with_local_paths(self, text: str) -> str:
        """Returns an argument or variable with the local paths of mounts."""
        for path in MOUNT_PATHS:
            text = text.replace(path, str(self.local_path(path)))
        return text

    def arguments(self, container: Body) -> list[str]:
        assert container["command"] == ["tonnage"]
        for mount in container["volumeMounts"]:
            if mount["mountPath"].startswith("/cache/"):
                self.local_path("/cache").joinpath(mount["mountPath"].removeprefix("/cache/")).mkdir(exist_ok=True)
        return [self.with_local_paths(word) for word in container["args"]]

    def environment(self, container: Body, pod: str = "server-0") -> dict[str, str]:
        fields = {"spec.nodeName": "node-1", "metadata.name": pod}
        environment = {}
        for each in container.get("env", ()):
            source = each.get("valueFrom", {})
            if "fieldRef" in source:
                environment[each["name"]] = fields[source["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in source:
                if source["secretKeyRef"]["key"] in self.secrets:
                    environment[each["name"]] = self.secrets[source["secretKeyRef"]["key"]]
            else:
                environment[each["name"]] = self.with_local_paths(each["value"])
        return environment

    async def run(self, container: Body) -> CommandResult:
        args, environment = self.arguments(container), self.environment(container)
        return await asyncio.to_thread(run_tonnage, *args, environment=environment)

    async def run_job(self, job: Body) -> CommandResult:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return await self.run(container)

    def termination_report(self) -> contract.Report:
        return contract.decode_report(self.local_path("/dev/termination-log").read_bytes())

    async def resolved(self) -> SeenRevision:
        """Runs the resolve Job, and returns the controller's result for its report."""
        uid = self.start_job(job := jobs.build_resolve_job(self.weights, self.installation, round_="", attempt=1))
        finished = await self.run_job(job)
        assert (finished.returncode, finished.stderr) == (0, "")
        seen = parse_resolve_report(self.state.reports[uid], self.weights, now=NOW)
        assert seen == parse_resolve_report(self.termination_report(), self.weights, now=NOW)
        assert isinstance(seen, SeenRevision)
        return seen

    def with_revision(self, seen: SeenRevision) -> ModelWeights:
        """Returns the object with a resolved revision."""
        status = self.weights.status.model_copy(update={"resolved": seen})
        return dataclasses.replace(self.weights, status=status)

    def injected(self, weights: ModelWeights, **annotations: str) -> dict[str, Body]:
        """Adds a user's pod to the cluster, and returns its injected containers by name."""
        pod_annotations = {names.MODEL: "llama", **annotations}
        pod = {"metadata": {"name": "server-0", "namespace": "serving", "annotations": pod_annotations},
               "spec": {"containers": [{"name": "server", "image": "vllm"}], "nodeName": "node-1"}}  # fmt: skip
        request = parse_annotations(pod_annotations, namespace="serving")
        made = inject(pod, (resolve_injected_model(request.models[0], weights, ()),), request, self.installation)
        made["metadata"]["annotations"] |= sign_held_entries(
            made["metadata"],
            namespace="serving",
            review_uid="review",
            keys=self.installation.signing,
            now=datetime(2026, 1, 1, tzinfo=UTC),
        )
        created = "2026-01-01T00:00:00Z"
        made["metadata"] |= {"uid": "pod-server-0", "resourceVersion": "1", "creationTimestamp": created}
        self.add_pod(made)
        self.token("pod-server-0")
        return {each["name"]: dict(each) for part in ("initContainers", "containers") for each in made["spec"][part]}


@pytest.fixture
async def operator(tmp_path: Path, authority: CertificateAuthority, model: Model) -> AsyncIterator[OperatorStub]:
    """An endpoint with a certificate, and a ModelWeights with a model on a real S3 server."""
    state, metrics, enqueued = ControllerState(objects.INSTALLATION), Metrics(), list[str]()
    endpoint = ReportEndpoint(
        state,
        FakeTokenReviews(state),  # type: ignore[arg-type]
        metrics,
        MetricsRecorder(metrics),
        enqueue_weights=enqueued.append,
        enqueue_node=enqueued.append,
        has_synced=lambda: True,
        peer_answers=PeerAnswers(state, lambda: None),
    )
    app = web.Application()
    app.router.add_post("/v1/reports", endpoint.handle)
    async with serve(app, host="127.0.0.1", port=0, certificate=certificate(tmp_path, authority, metrics)) as port:
        reports = {"url": f"https://localhost:{port}/v1/reports", "interval": 0.05}
        installation = objects.INSTALLATION.model_copy(
            update={"reports": objects.INSTALLATION.reports.model_copy(update=reports)}
        )
        s3 = {"bucket": model.bucket, "prefix": "tiny/", "endpoint": model.environment["AWS_ENDPOINT_URL_S3"]}
        spec = {"source": {"s3": s3}, "credentials": {"secretRef": {"name": "s3-reader"}}}
        weights = objects.modelweights(spec)
        state.weights.put(objects.modelweights_manifest(spec, resourceVersion="1"))
        made = OperatorStub(tmp_path, state, metrics, installation, weights, model.environment, enqueued)
        for path in ("/cache", "/run/tonnage", TOKEN_FOLDER):
            made.local_path(path).mkdir()
        made.local_path("/dev/termination-log").touch()
        (made.local_path(TOKEN_FOLDER) / "ca.crt").write_bytes(authority.bundle.read_bytes())
        yield made
        assert made.rejected_reports == {}


def certificate(folder: Path, authority: CertificateAuthority, metrics: Metrics) -> CertificateWatcher:
    issued = authority.ca.issue_cert("localhost")
    cert, key = folder / "tls.crt", folder / "tls.key"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(cert), append=True)
    return CertificateWatcher(cert, key, metrics)


async def test_what_a_resolve_job_finds_is_what_the_status_gets(operator: OperatorStub) -> None:
    seen = await operator.resolved()
    assert [pin.key for pin in seen.objects or ()] == ["tiny/config.json", "tiny/model.tensors"]
    assert operator.report_count("resolved") == 1
    assert operator.enqueued


async def test_a_load_job_reports_progress_and_the_nodes_cache(operator: OperatorStub) -> None:
    seen = await operator.resolved()
    weights = operator.with_revision(seen)
    node = parse_node(objects.node("node-1"))
    uid = operator.start_job(job := jobs.build_load_job(weights, seen, operator.installation, node=node, attempt=1))
    finished = await operator.run_job(job)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert operator.report_count("progress") >= 1
    assert operator.report_count("finished") == 1
    report = operator.state.reports[uid]
    assert (report.outcome, report.revision, report.node, report.pod) == ("loaded", seen.revision, "node-1", "server-0")
    assert (
        operator.state.reported_media["node-1"][Medium.MEMORY] == report.medium == operator.termination_report().medium
    )


async def test_a_users_pod_loads_and_then_holds_its_entry(operator: OperatorStub) -> None:
    seen = await operator.resolved()
    containers = operator.injected(operator.with_revision(seen))
    loaded = await operator.run(containers[names.LOADER_CONTAINER])
    assert loaded.returncode == 0
    assert operator.report_count("finished") == 1
    holder = containers[names.HOLDER_CONTAINER]
    node = parse_node(objects.node("node-1"))
    clean = jobs.build_cleanup_job(
        operator.installation,
        key=seen.revision,
        medium=Medium.MEMORY,
        node=node,
        attempt=1,
        uid="u",
        model_ref="s/l",
        cause="Unreferenced",
    )
    with start_tonnage(*operator.arguments(holder)) as process:
        await eventually_async(lambda: b"hold.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        assert (await operator.run_job(clean)).returncode == 30
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert operator.termination_report().outcome == "loaded"
    assert [(await operator.run_job(clean)).returncode for _ in range(2)] == [0, 0]
    assert not list(operator.local_path("/cache").glob("*/model/*"))


async def test_a_pod_that_continues_without_its_weights_gets_a_status_file(operator: OperatorStub) -> None:
    seen = await operator.resolved()
    operator.secrets = {**operator.secrets, "AWS_SECRET_ACCESS_KEY": "no-longer-valid"}
    containers = operator.injected(operator.with_revision(seen), **{names.ON_FAILURE: "continue", names.FORM: "Init"})
    finished = await operator.run(containers[names.LOADER_CONTAINER])
    assert finished.returncode == 0
    assert operator.local_path("/run/tonnage").joinpath("status").read_text().startswith("failed\nAccessDenied\n")
    assert operator.termination_report().outcome == "failed"


@pytest.mark.parametrize("form", ["Job", "pod"])
async def test_a_load_asks_the_store_nothing_that_the_resolve_job_found_out(
    operator: OperatorStub, model: Model, form: str
) -> None:
    def is_refused(request: Request) -> bool:
        return request.headers["host"].startswith("store.localhost") or "versionId" in request.query

    with FaultyServer(domain="store.localhost") as server:
        server.put("models/llama/model.tensors", model.file, version_id="v1")
        refusal = Fault(status=400, body=b"<Error><Code>PathStyleRequestNotAllowed</Code></Error>")
        server.add_fault(refusal, when=lambda request: "versionId" not in request.query and is_refused(request))
        server.add_fault(Fault(status=501), when=is_refused)
        spec = {
            "source": {
                "s3": {"bucket": "models", "prefix": "llama/", "endpoint": f"http://store.localhost:{server.port}"}
            },
            "credentials": {"secretRef": {"name": "s3-reader"}},
        }
        operator.weights = objects.modelweights(spec)
        operator.state.weights.put(objects.modelweights_manifest(spec, resourceVersion="2"))
        seen = await operator.resolved()
        assert any(map(is_refused, server.requests))
        assert seen.behavior == StoreBehavior(addressing_style=AddressingStyle.VIRTUAL, etag_only=True)
        server.requests.clear()
        if form == "Job":
            node = parse_node(objects.node("node-1"))
            job = jobs.build_load_job(operator.weights, seen, operator.installation, node=node, attempt=1)
            operator.start_job(job)
            loaded = await operator.run_job(job)
        else:
            containers = operator.injected(operator.with_revision(seen))
            loaded = await operator.run(containers[names.LOADER_CONTAINER])
        assert (loaded.returncode, operator.termination_report().outcome) == (0, "loaded")
        assert not any(map(is_refused, server.requests))
