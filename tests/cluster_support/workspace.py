"""One test's corner of the cluster: a namespace, a bucket's prefix, models and pods in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster_support.api import condition
from cluster_support.pods import Pod, server_pod
from operator_support.objects import merged
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cluster_support.site import Site

Object = dict[str, Any]

SECRET = "s3-reader"


@dataclass
class Model:
    """A ``ModelWeights`` and the objects that it names."""

    site: Site
    name: str
    namespace: str
    prefix: str

    def body(self) -> Object:
        """Returns it as the API has it."""
        return self.site.api.get("ModelWeights", self.name, self.namespace)

    def until(
        self, kind: str, status: str = "True", reason: str = "", *, within: float = 60, message: str = ""
    ) -> Object:
        """Waits for a condition of the generation that it has now."""
        generation = self.body()["metadata"]["generation"]

        def holds(body: Object) -> bool:
            found = condition(body, kind)
            current = (body.get("status") or {}).get("observedGeneration", 0) >= generation
            return current and found[0] == status and (not reason or found[1] == reason) and message in found[2]

        what = f"{kind} {status} {reason}"
        return self.site.api.until("ModelWeights", self.name, self.namespace, holds, within=within, what=what)

    def until_status(self, holds: Callable[[Object], object], *, within: float = 60, what: str = "") -> Object:
        """Waits for something about its status."""
        return self.site.api.until(
            "ModelWeights",
            self.name,
            self.namespace,
            lambda body: holds(body.get("status") or {}),
            within=within,
            what=what,
        )

    @property
    def status(self) -> Object:
        """Returns its status."""
        status: Object = self.body().get("status") or {}
        return status

    @property
    def revision(self) -> str:
        """Returns the revision in use."""
        revision: str = self.status["resolved"]["revision"]
        return revision

    def entry(self, medium: str = "Memory") -> Path:
        """Returns where its entry lies on the node."""
        return self.site.media[medium] / self.revision

    def visible(self, medium: str = "Memory") -> list[str]:
        """Returns the files that a serving container would see on the node."""
        return sorted(path.name for path in self.entry(medium).glob("model/*"))

    def on_node(self) -> Object | None:
        """Returns what the node's record says about its entry."""
        cache = self.site.api.find("NodeCache", self.site.node)
        entries = ((cache or {}).get("status") or {}).get("entries") or ()
        return next((each for each in entries if each["name"].endswith(self.revision)), None)

    def patch(self, spec: Object) -> None:
        """Changes its spec."""
        self.site.api.merge("ModelWeights", self.name, self.namespace, {"spec": spec})

    def delete(self) -> None:
        """Deletes it, without waiting."""
        self.site.api.delete("ModelWeights", self.name, self.namespace)

    def gone(self, *, within: float = 60) -> None:
        """Waits until it is gone."""
        self.site.api.gone("ModelWeights", self.name, self.namespace, within=within)

    def events(self) -> set[str]:
        """Returns the reasons of its events."""
        found = self.site.api.list("Event", self.namespace)
        return {each["reason"] for each in found if each["involvedObject"]["name"] == self.name}


@dataclass
class Workspace:
    """A namespace with the reader's Secret."""

    site: Site
    namespace: str
    stock: Model | None = None
    """A model as tests want it as a rule, resolved already and on no node; the first who asks for one has it."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def make(cls, site: Site, name: str, *, labels: dict[str, str] | None = None) -> Workspace:
        """Makes the namespace and the Secret."""
        metadata = {"name": name, "labels": labels or {}}
        site.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        space = cls(site, name)
        space.secret(SECRET, site.credentials)
        return space

    def secret(self, name: str, values: dict[str, str]) -> None:
        """Applies a Secret."""
        metadata = {"name": name, "namespace": self.namespace}
        self.site.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})

    def model(
        self,
        name: str = "llama",
        *,
        files: Mapping[str, Path] | None = None,
        spec: Object | None = None,
        prefix: str = "",
        wait: bool = True,
    ) -> Model:
        """Puts files below a prefix of its own and creates a ``ModelWeights`` for them.

        Args:
            name: Of the object.
            files: By the key's last part; None: a few small tensors.
            spec: Merged into the usual spec.
            prefix: Instead of one of its own; nothing is put there then.
            wait: Whether to return once pods can use it.
        """
        if self.stock and wait and (name, files, spec, prefix) == (self.stock.name, None, None, ""):
            stocked, self.stock = self.stock, None
            return stocked
        if not prefix:
            prefix = f"{self.namespace}/{name}/"
            self.site.put(prefix, self.site.sources.small if files is None else files)
        source = {"s3": {"bucket": self.site.bucket, "prefix": prefix, "endpoint": self.site.storage.endpoint}}
        plain = {
            "source": source,
            "credentials": {"secretRef": {"name": SECRET}},
            "placement": {"prewarm": "None"},
        }
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.MODEL_WEIGHTS_KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": merged(plain, spec or {}),
        }
        self.site.api.create(body)
        model = Model(self.site, name, self.namespace, prefix)
        if wait:
            model.until("Ready")
        return model

    def pod(
        self,
        name: str = "",
        *,
        model: str = "llama",
        notes: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        **more: Any,
    ) -> Pod:
        """Creates a server's pod that asks for a model; an empty ``model`` asks for none."""
        name = name or f"server-{next(self._numbers)}"
        asked = {names.MODEL: model} if model else {}
        body = server_pod(name, self.namespace, self.site.images.loader, notes={**asked, **(notes or {})}, **more)
        self.site.api.create(body, **(query or {}))
        return Pod(self.site, name, self.namespace)

    def start_stocking(self) -> None:
        """Has a model made that is to be in stock; ``stock.until("Ready")`` waits for it."""
        self.stock = self.model(wait=False)

    def deployment(self, name: str, *, model: str = "llama", replicas: int = 1) -> None:
        """Creates a Deployment of servers that ask for a model; its pods are labeled ``app: <name>``."""
        template = server_pod("", self.namespace, self.site.images.loader, notes={names.MODEL: model})
        metadata = {"labels": {"app": name}, "annotations": template["metadata"]["annotations"]}
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": metadata, "spec": template["spec"]},
        }
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": self.namespace}}
        self.site.api.create({**body, "spec": spec})

    def pods(self, **query: str) -> list[Object]:
        """Returns all pods of the namespace."""
        return self.site.api.list("Pod", self.namespace, **query)

    def leave(self) -> None:
        """Has the namespace deleted, without waiting; pods end at once."""
        for pod in self.pods():
            self.site.api.delete("Pod", pod["metadata"]["name"], self.namespace, grace=2)
        self.site.api.delete("Namespace", self.namespace)
