"""Deterministic names and hashes: the same input always yields the same name, so creating an object is idempotent."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from tonnage.contract import ENTRY_NAME_PATTERN, ComputedBuffers, Layout, entry_name
from tonnage_operator.api import modelweights as api

if TYPE_CHECKING:
    from tonnage_operator.api.base import ApiModel


def short_digest(*parts: object) -> str:
    """Returns 16 hex digits of a SHA-256 over the parts, which must be serializable as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _dump(model: ApiModel | None) -> object:
    return None if model is None else model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _dump_files(files: api.FilesSpec) -> object:
    """Returns the files without a default of a later release, so that hashes of existing objects stay the same."""
    default = {"weights"} if files.weights is api.Weights.AUTO else None
    return files.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=default)


def source_hash(spec: api.ModelWeightsSpec) -> str:
    """Returns a hash of the fields that select a revision's objects."""
    return short_digest(_dump(spec.source), _dump_files(spec.files))


def resolve_key(spec: api.ModelWeightsSpec) -> str:
    """Returns a hash of the fields that a resolve Job depends on. A change starts a new Job without backoff."""
    return short_digest(
        _dump(spec.source), _dump_files(spec.files), _dump(spec.credentials), spec.revision.expected_digest
    )


def job_name(role: str, model: str, *parts: object) -> str:
    """Returns a readable, deterministic Job name that is a valid label value (at most 63 characters)."""
    readable = re.sub(r"[^a-z0-9-]", "-", model)[: 63 - len("tonnage-") - len(role) - 1 - 17].strip("-")
    return f"tonnage-{role}-{readable}-{short_digest(role, *parts)}"


def node_hash(node: str) -> str:
    """Returns a label value for a node, because node names may be too long for one."""
    return short_digest(node)


LAYOUTS = {api.Layout.SAFETENSORS: Layout.SAFETENSORS, api.Layout.TENSORIZER: Layout.TENSORIZER}


COMPUTED_BUFFERS = {
    api.ComputedBuffers.SEPARATE: ComputedBuffers.SEPARATE,
    api.ComputedBuffers.IN_SHARDS: ComputedBuffers.IN_SHARDS,
}


def cache_entry_name(revision: str, cache: api.CacheSpec) -> str:
    """Returns the name of the cache entry of a revision."""
    return entry_name(revision, LAYOUTS[cache.layout], COMPUTED_BUFFERS[cache.computed_buffers])


def cache_key(entry: str, namespace: str = "") -> str:
    """Returns the unique key of an entry within a medium; it is also the entry's path below the medium's folder.

    Args:
        entry: Name of the entry.
        namespace: The namespace that has the entry to itself; empty: all share it.
    """
    return f"{namespace}/{entry}" if namespace else entry


CACHE_KEY_PATTERN = rf"([a-z0-9]([a-z0-9-]{{0,61}}[a-z0-9])?/)?{ENTRY_NAME_PATTERN.pattern}"
"""What ``cache_key`` returns: the name of an entry, below its namespace if caches are not shared. Never a path to
elsewhere."""


def artifacts_key(namespace: str, model_ref: str, image: str, user: int | None) -> str:
    """Returns the cache key of the artifacts that containers with this image make of a model.

    Args:
        namespace: The containers' namespace. Artifacts are code, so no other namespace ever uses them.
        model_ref: ``namespace/name`` of the model.
        image: The image as the container names it.
        user: The user that the pod sets; None: the image's own. Another user could not write the files.
    """
    digest = hashlib.sha256(json.dumps([namespace, model_ref, image, user]).encode()).hexdigest()[:32]
    return cache_key(f"a-{digest}", namespace)


def is_artifacts_key(cache_key: str) -> bool:
    """Returns whether a cache key is one of artifacts, and not of weights."""
    return re.fullmatch(r"[^/]+/a-[0-9a-f]{32}", cache_key) is not None


def is_cache_key(text: str) -> bool:
    """Returns whether a text can be the key of an entry."""
    return re.fullmatch(CACHE_KEY_PATTERN, text) is not None


def entry_of(cache_key: str) -> str:
    """Returns the name of the entry with this cache key."""
    return cache_key.rpartition("/")[2]
