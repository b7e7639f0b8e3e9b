"""A test's namespace, with its S3 prefix, models and pods."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from e2e_support.pods import Pod, server_pod
from operator_support.objects import deep_merge, get_condition
from support.waiting import eventually
from tonnage.cache.journal import read_journal
from tonnage.loading.resume import decode_records
from tonnage.transfer.transfer_spec import FetchedRange
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster

Object = dict[str, Any]

READER_SECRET = "s3-reader"
HELD_FROM = 48 << 20
"""Bytes of the large model that are served while its rest is held."""


@dataclass
class Model:
    """A ``ModelWeights`` and the S3 prefix of its source."""

    e2e: E2ECluster
    name: str
    namespace: str
    prefix: str

    def get(self) -> Object:
        return self.e2e.api.get("ModelWeights", self.name, self.namespace)

    def wait_for_condition(
        self, kind: str, status: str = "True", reason: str = "", *, timeout: float = 60, message: str = ""
    ) -> Object:
        """Waits for a condition that was observed at the current generation or later."""
        generation = self.get()["metadata"]["generation"]

        def predicate(body: Object) -> bool:
            found = get_condition(body, kind)
            current = (body.get("status") or {}).get("observedGeneration", 0) >= generation
            return current and found[0] == status and (not reason or found[1] == reason) and message in found[2]

        what = f"{kind} {status} {reason}"
        return self.e2e.api.wait_for(
            "ModelWeights", self.name, self.namespace, predicate, timeout=timeout, description=what
        )

    def wait_for_status(
        self, predicate: Callable[[Object], object], *, timeout: float = 60, description: str = ""
    ) -> Object:
        """Waits until ``predicate`` is true for its status."""
        return self.e2e.api.wait_for(
            "ModelWeights",
            self.name,
            self.namespace,
            lambda body: predicate(body.get("status") or {}),
            timeout=timeout,
            description=description,
        )

    @property
    def status(self) -> Object:
        status: Object = self.get().get("status") or {}
        return status

    @property
    def revision(self) -> str:
        revision: str = self.status["resolved"]["revision"]
        return revision

    def entry_path(self, medium: str = "Memory") -> Path:
        """Returns the path of its entry on the node."""
        return self.e2e.media[medium] / self.namespace / self.revision

    def visible_files(self, medium: str = "Memory") -> list[str]:
        """Returns the names of the files that a serving container would see."""
        return sorted(path.name for path in self.entry_path(medium).glob("model/*"))

    def hold_rest(self) -> AbstractContextManager[None]:
        """Lets loads of the large model go no further than ``HELD_FROM``, until the block ends."""
        return self.e2e.storage.hold(self.e2e.bucket, f"{self.prefix}model.tensors", start=HELD_FROM)

    def wait_for_partial_load(self) -> None:
        """Waits until a part of it is on the node. Fails if any of it is visible."""

        def recorded_bytes() -> int:
            found = [read_journal(path) for path in (self.entry_path() / ".tonnage" / "partial").glob("*/journal")]
            records = [record for each in found if each for record in decode_records(each.records)]
            return sum(record.end - record.start for record in records if isinstance(record, FetchedRange))

        eventually(lambda: recorded_bytes() > HELD_FROM // 3, timeout=60)
        assert not self.visible_files(), "a partial entry is visible"

    def nodecache_entry(self) -> Object | None:
        """Returns its entry in the NodeCache of the node; None if there is none."""
        cache = self.e2e.api.get_or_none("NodeCache", self.e2e.node)
        entries = ((cache or {}).get("status") or {}).get("entries") or ()
        return next((each for each in entries if each["name"].endswith(self.revision)), None)

    def patch_spec(self, spec: Object) -> None:
        self.e2e.api.patch("ModelWeights", self.name, self.namespace, {"spec": spec})

    def delete(self) -> None:
        """Deletes it without waiting."""
        self.e2e.api.delete("ModelWeights", self.name, self.namespace)

    def wait_deleted(self, *, timeout: float = 60) -> None:
        self.e2e.api.wait_deleted("ModelWeights", self.name, self.namespace, timeout=timeout)

    def event_reasons(self) -> set[str]:
        found = self.e2e.api.list("Event", self.namespace)
        return {each["reason"] for each in found if each["involvedObject"]["name"] == self.name}


@dataclass
class Namespace:
    """A namespace with a Secret of the S3 reader's credentials."""

    e2e: E2ECluster
    name: str
    prepared_model: Model | None = None
    """A resolved model that is on no node, returned by the first ``create_model`` with default arguments."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def create(cls, e2e: E2ECluster, name: str, *, labels: dict[str, str] | None = None) -> Namespace:
        """Creates the namespace and the Secret."""
        metadata = {"name": name, "labels": labels or {}}
        e2e.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        namespace = cls(e2e, name)
        namespace.apply_secret(READER_SECRET, e2e.reader_credentials)
        return namespace

    def apply_secret(self, name: str, values: dict[str, str]) -> None:
        metadata = {"name": name, "namespace": self.name}
        self.e2e.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})

    def create_model(
        self,
        name: str = "llama",
        *,
        files: Mapping[str, Path] | None = None,
        spec: Object | None = None,
        prefix: str = "",
        wait: bool = True,
    ) -> Model:
        """Uploads files below a new prefix and creates a ``ModelWeights`` for them.

        Args:
            name: Name of the object.
            files: By the last part of the key; None: a few small tensors.
            spec: Merged into the default spec.
            prefix: An existing prefix; nothing is uploaded.
            wait: Whether to wait until the model is ready.
        """
        if self.prepared_model and wait and (name, files, spec, prefix) == (self.prepared_model.name, None, None, ""):
            prepared, self.prepared_model = self.prepared_model, None
            return prepared
        if not prefix:
            prefix = f"{self.name}/{name}/"
            self.e2e.upload(prefix, self.e2e.model_files.small if files is None else files)
        source = {"s3": {"bucket": self.e2e.bucket, "prefix": prefix, "endpoint": self.e2e.storage.endpoint}}
        default_spec = {
            "source": source,
            "credentials": {"secretRef": {"name": READER_SECRET}},
            "placement": {"prewarm": "None"},
        }
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.MODEL_WEIGHTS_KIND,
            "metadata": {"name": name, "namespace": self.name},
            "spec": deep_merge(default_spec, spec or {}),
        }
        self.e2e.api.create(body)
        model = Model(self.e2e, name, self.name, prefix)
        if wait:
            model.wait_for_condition("Ready")
        return model

    def create_pod(
        self,
        name: str = "",
        *,
        model: str = "llama",
        annotations: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        **more: Any,
    ) -> Pod:
        """Creates a server's pod that requests a model; none if ``model`` is empty."""
        name = name or f"server-{next(self._numbers)}"
        model_annotation = {names.MODEL: model} if model else {}
        body = server_pod(
            name, self.name, self.e2e.images.loader, annotations={**model_annotation, **(annotations or {})}, **more
        )
        self.e2e.api.create(body, **(query or {}))
        return Pod(self.e2e, name, self.name)

    def prepare_model(self) -> None:
        """Creates ``prepared_model`` without waiting until it is ready."""
        self.prepared_model = self.create_model(wait=False)

    def create_deployment(self, name: str, *, model: str = "llama", replicas: int = 1) -> None:
        """Creates a Deployment of servers that request a model; its pods are labeled ``app: <name>``."""
        template = server_pod("", self.name, self.e2e.images.loader, annotations={names.MODEL: model})
        metadata = {"labels": {"app": name}, "annotations": template["metadata"]["annotations"]}
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": metadata, "spec": template["spec"]},
        }
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": self.name}}
        self.e2e.api.create({**body, "spec": spec})

    def list_pods(self, **query: str) -> list[Object]:
        return self.e2e.api.list("Pod", self.name, **query)

    def delete(self) -> None:
        """Deletes the namespace without waiting; its pods have a grace period of 2 seconds.

        What it has in the node's cache stays there until the cluster ends, so that no Jobs run to evict it.
        """
        for pod in self.list_pods():
            self.e2e.api.delete("Pod", pod["metadata"]["name"], self.name, grace_period=2)
        for model in self.e2e.api.list("ModelWeights", self.name):
            if "deletionTimestamp" not in model["metadata"]:
                keep = {"spec": {"cache": {"retention": "Evictable"}}}
                self.e2e.api.patch("ModelWeights", model["metadata"]["name"], self.name, keep)
        self.e2e.api.delete("Namespace", self.name)
