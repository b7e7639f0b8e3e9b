"""A parsed ``ModelWeights``, with everything that depends only on its spec and the installation."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium, ModelWeightsSpec, RevisionPolicy, UpdatePolicy
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.api.status import ModelWeightsStatus, SeenRevision
from tonnage_operator.domain import naming
from tonnage_operator.domain.installation import Sharing

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.modelweights import FilesSpec
    from tonnage_operator.api.source import Credentials, ModelSource
    from tonnage_operator.domain.installation import Installation


def is_store_proven(source: ModelSource) -> bool:
    """Returns whether every loader uses the same store, whatever the authors of object and pod do.

    TLS with the CAs of the loader's image and of the administrator proves it: a CA in the object could be its author's.
    """
    if s3 := source.s3:
        return s3.ca_bundle is None and (s3.endpoint or "https://").startswith("https://")
    if hub := source.hub:
        return hub.ca_bundle is None and (hub.endpoint or "https://").startswith("https://")
    http = source.http
    return bool(http and http.ca_bundle is None and http.urls and all(url.startswith("https://") for url in http.urls))


def describe_source(source: ModelSource) -> str:
    """Returns a readable location of the objects, without query strings."""
    if s3 := source.s3:
        if s3.keys is not None:
            return f"s3://{s3.bucket}/{s3.keys[0]}" + (f" (+{len(s3.keys) - 1})" if len(s3.keys) > 1 else "")
        return f"s3://{s3.bucket}/{s3.prefix or ''}"
    if hub := source.hub:
        return f"hf://{hub.repo}@{hub.revision}"
    http = source.http
    if http and http.urls:
        return http.urls[0] + (f" (+{len(http.urls) - 1})" if len(http.urls) > 1 else "")
    return f"URLs of secret {http.urls_from.name}" if http and http.urls_from else ""


class InvalidModelWeights(Exception):
    """The object doesn't match this operator's schema: another version of the CRD is installed."""


@dataclass(frozen=True)
class ModelWeights:
    """A parsed ``ModelWeights``."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]
    spec: ModelWeightsSpec
    status: ModelWeightsStatus
    retry: str = ""
    """Digest of the annotation ``tonnage.dev/retry``; empty without it."""

    @property
    def ref(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def medium(self, installation: Installation) -> Medium:
        """The medium in effect. Claims count as disk, whatever their storage class."""
        if self.spec.cache.delivery is Delivery.CLAIM:
            return Medium.DISK
        return self.spec.cache.medium or installation.default_medium

    @functools.cached_property
    def source_hash(self) -> str:
        """See ``naming.source_hash``."""
        return naming.source_hash(self.spec)

    @property
    def current_revision(self) -> SeenRevision | None:
        """The revision in use, if it was resolved for the current source and files."""
        resolved = self.status.resolved
        return resolved if resolved and resolved.source_hash == self.source_hash else None

    def key(self, revision: str, installation: Installation, *, namespace: str = "", separate: bool = False) -> str:
        """Returns the cache key of a revision.

        Args:
            revision: Name of the revision.
            installation: Whether namespaces share entries.
            namespace: Namespace of the pod that loads it; default: the object's.
            separate: The pod uses no entry of other namespaces, and they none of it.
        """
        entry = naming.cache_entry_name(revision, self.spec.cache)
        shared = installation.sharing is Sharing.CLUSTER and not separate and is_store_proven(self.spec.source)
        return naming.cache_key(entry, "" if shared else namespace or self.namespace)

    @property
    def claim_ref(self) -> tuple[str, str]:
        """Namespace and name of the claim that holds its entries; both empty for other deliveries."""
        cache = self.spec.cache
        return (self.namespace, cache.claim_name or "") if cache.delivery is Delivery.CLAIM else ("", "")

    def claim_entries(self) -> frozenset[str]:
        """Returns the entries in its claim that this object needs."""
        if self.deleting or self.spec.cache.delivery is not Delivery.CLAIM:
            return frozenset()
        kept = [seen.revision for seen in (self.status.resolved, self.status.available) if seen]
        kept += [self.status.rollout.revision] if self.status.rollout else []
        return frozenset(naming.cache_entry_name(revision, self.spec.cache) for revision in kept)

    def references(self, installation: Installation) -> frozenset[EntryKey]:
        """Returns the node entries that this object needs: the revision in use, and the one that will replace it."""
        return frozenset() if self.deleting else self._node_entries(installation)

    def released(self, installation: Installation) -> frozenset[EntryKey]:
        """Returns the node entries that this object needed until its deletion; none of an object that isn't deleted."""
        return self._node_entries(installation) if self.deleting else frozenset()

    def _node_entries(self, installation: Installation) -> frozenset[EntryKey]:
        if self.spec.cache.delivery is not Delivery.HOST_PATH:
            return frozenset()
        status, spec = self.status, self.spec.revision
        kept = {status.resolved.revision} if status.resolved else set()
        if status.available and spec.update is UpdatePolicy.AUTOMATIC and spec.policy is RevisionPolicy.TRACK:
            kept.add(status.available.revision)
        if status.rollout:
            kept.add(status.rollout.revision)
        medium = self.medium(installation)
        return frozenset(EntryKey(self.key(revision, installation), medium) for revision in kept)


def with_origin(
    weights: ModelWeights, source: ModelSource, files: FilesSpec, credentials: Credentials | None
) -> ModelWeights:
    """Returns an object as it was with another source; the same one if that is its source now."""
    origin = {"source": source, "files": files}
    if all(getattr(weights.spec, field) == value for field, value in origin.items()):
        return weights
    return replace(weights, spec=weights.spec.model_copy(update={**origin, "credentials": credentials}))


def parse_model_weights(body: Body) -> ModelWeights:
    """Parses an object.

    Raises:
        InvalidModelWeights: The spec or status is invalid. The message names the field.
    """
    metadata = body["metadata"]
    try:
        spec = ModelWeightsSpec.model_validate(body.get("spec") or {})
        status = ModelWeightsStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidModelWeights(f"{where}: {first['msg']}") from error
    retry = (metadata.get("annotations") or {}).get(names.RETRY, "")
    return ModelWeights(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        finalizers=tuple(metadata.get("finalizers") or ()),
        spec=spec,
        status=status,
        retry=naming.short_digest(retry) if retry else "",
    )
