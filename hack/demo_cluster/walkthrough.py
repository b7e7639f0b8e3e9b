"""The steps of `make demo-cluster`: upload, prewarm, deploy replicas, roll out a new revision, evict, clean up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from demo_cluster.install import upload_models
from demo_cluster.manifests import NAMESPACE, deployment, model_weights
from demo_cluster.step_printer import DemoFailed, StepPrinter, expect
from e2e_support.e2e_cluster import BUCKET
from e2e_support.pods import Pod

if TYPE_CHECKING:
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster

STEPS = 7
REPLICAS = 3
_COLUMNS = "{:7}{:16}{:11}{:6}{:10}{}"

Object = dict[str, Any]


class Walkthrough:
    """The steps, on a cluster that has Tonnage."""

    def __init__(self, site: E2ECluster, folder: Path, *, small: bool) -> None:
        self._site = site
        self._folder = folder
        self._small = small
        self._printer = StepPrinter(STEPS)

    def run(self) -> None:
        step = self._printer.print_step
        step("Upload two versions of a model, serialized by tensorizer, to a bucket.")
        self._upload_models()
        step("Create a ModelWeights: Tonnage loads the model on every matching node.")
        first = self._prewarm()
        step(f"Deploy {REPLICAS} replicas with one annotation. All use the model that is on the node.")
        self._deploy_replicas(first)
        step("Show the objects.")
        self._kubectl("get", "mw,pods", "-n", NAMESPACE)
        self._kubectl("get", "nodecaches")
        step("Roll out a new version: first the node is warm, then the pods are replaced one by one.")
        second = self._roll_out_new_version(first)
        step("Wait for the eviction of the old version, which no pod uses any more.")
        self._wait_until_evicted(first)
        self._kubectl("get", "nodecaches")
        step("Delete the Deployment and the ModelWeights: the node is empty again.")
        self._clean_up(second)

    def _upload_models(self) -> None:
        prefixes = {version: f"demo/{version}/" for version in ("v1", "v2")}
        sizes = upload_models(self._site, self._folder, prefixes, small=self._small)
        for version, size in sizes.items():
            self._printer.print_details(f"s3://{BUCKET}/demo/{version}/: {size / 1e6:.0f} MB")

    def _prewarm(self) -> str:
        self._kubectl("apply", "-f", "model.yaml", text=model_weights(self._site, "v1"))
        revision = self._watch_until("Warm")
        sent = self._bytes_served("v1") / 1e6
        self._printer.print_details(f"Downloaded {sent:.0f} MB, and verified the checksum of every tensor.")
        return revision

    def _deploy_replicas(self, revision: str) -> None:
        before = self._bytes_served("v1")
        self._kubectl("apply", "-f", "server.yaml", text=deployment(self._site, REPLICAS))
        self._kubectl("rollout", "status", "-n", NAMESPACE, "deployment/server")
        self._check_replicas(revision)
        expect(self._bytes_served("v1") == before, "a replica downloaded the model again")
        self._printer.print_details("No replica downloaded anything.")

    def _roll_out_new_version(self, old: str) -> str:
        patch = '{"spec":{"source":{"s3":{"prefix":"demo/v2/"}}}}'
        self._kubectl("patch", "mw", "-n", NAMESPACE, "demo", "--type=merge", "-p", patch)
        new = self._watch_until("Warm", other_than=old)
        self._kubectl("rollout", "restart", "-n", NAMESPACE, "deployment/server")
        self._kubectl("rollout", "status", "-n", NAMESPACE, "deployment/server")
        self._check_replicas(new)
        return new

    def _clean_up(self, last: str) -> None:
        self._kubectl("delete", "-n", NAMESPACE, "deployment/server", "modelweights/demo")
        self._wait_until_evicted(last)
        self._kubectl("get", "nodecaches")
        self._printer.print_details("The node's memory has no weights any more.")

    def _kubectl(self, *arguments: str, text: str = "") -> None:
        """Prints and runs a command, and prints its output; ``text`` is the content of the file in ``arguments``."""
        shown = " ".join(f"'{each}'" if "{" in each else each for each in arguments)
        self._printer.print_command(f"kubectl {shown}")
        if text:
            arguments = tuple("-" if each.endswith(".yaml") else each for each in arguments)
        self._printer.print_details(self._site.kubectl(*arguments, stdin=text or None, timeout=180))

    def _watch_until(self, condition: str, *, other_than: str = "") -> str:
        """Prints the status until it has a condition, and returns its revision."""
        self._printer.print_command(f"kubectl get mw -n {NAMESPACE} -w")
        self._printer.print_details(_COLUMNS.format("READY", "REVISION", "SIZE", "WARM", "PROGRESS", "ETA"))
        last_row = ""
        for found in self._site.api.watch("ModelWeights", "demo", NAMESPACE, timeout=180):
            if found is None or "status" not in found:
                continue
            if (line := row(found["status"])) != last_row:
                self._printer.print_details(line)
                last_row = line
            revision = (found["status"].get("resolved") or {}).get("revision", "")
            current = found["status"].get("observedGeneration") == found["metadata"]["generation"]
            if current and revision not in {"", other_than} and condition_status(found["status"], condition) == "True":
                return str(revision)
        raise DemoFailed(f"ModelWeights demo did not become {condition} within 180 s")

    def _check_replicas(self, revision: str) -> None:
        """Prints each replica's outcome, and checks that all of them were hits."""
        for body in self._site.api.list("Pod", NAMESPACE, labelSelector="app=server"):
            if "deletionTimestamp" in body["metadata"]:
                continue
            pod = Pod(self._site, body["metadata"]["name"], NAMESPACE)
            pod.wait_ready()
            report = pod.last_report()
            expect(report.downloaded_bytes == 0, f"{pod.name} downloaded {report.downloaded_bytes} bytes")
            expect(report.revision == revision, f"{pod.name} has revision {report.revision}, not {revision}")
            pod.wait_for_log("serving")
            self._printer.print_details(f"{pod.name}: {report.outcome} in {1000 * report.seconds:.0f} ms")

    def _wait_until_evicted(self, revision: str) -> None:
        def is_evicted(body: Object) -> bool:
            return not any(each["name"].endswith(revision) for each in body["status"].get("entries") or ())

        self._site.api.wait_for(
            "NodeCache", self._site.node, "", is_evicted, timeout=120, description=f"eviction of {revision}"
        )
        left = list((self._site.media["Memory"] / NAMESPACE / revision).glob("model/*"))
        expect(not left, f"the evicted entry still has files: {left}")

    def _bytes_served(self, version: str) -> int:
        return self._site.storage.bytes_served(BUCKET, f"demo/{version}/model.tensors")


def condition_status(status: Object, condition: str) -> str:
    """Returns the status of a condition; empty if it isn't set."""
    return next((each["status"] for each in status.get("conditions") or () if each["type"] == condition), "")


def row(status: Object) -> str:
    """Returns the columns that ``kubectl get`` prints."""
    resolved, nodes, progress = (status.get(key) or {} for key in ("resolved", "nodes", "progress"))
    columns = (condition_status(status, "Ready"), resolved.get("revision"), status.get("size"), nodes.get("summary"))
    return _COLUMNS.format(*(each or "" for each in (*columns, status.get("progressSummary"), progress.get("eta"))))


def run_walkthrough(site: E2ECluster, folder: Path, *, small: bool) -> None:
    """Runs the steps on a cluster that has Tonnage, and deletes the namespace and objects that they created.

    Raises:
        DemoFailed: A check failed.
    """
    try:
        site.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        Walkthrough(site, folder, small=small).run()
    finally:
        site.api.delete("Namespace", NAMESPACE)
        for found in site.s3_client.list_objects_v2(Bucket=BUCKET, Prefix="demo/").get("Contents", ()):
            site.s3_client.delete_object(Bucket=BUCKET, Key=found["Key"])
    site.api.wait_deleted("Namespace", NAMESPACE, timeout=60)
