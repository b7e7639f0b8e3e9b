"""Deterministic names: the same wish always has the same name, so that doing it twice is doing it once."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from tonnage.contract import Layout, entry_name
from tonnage_operator.api import modelweights as api
from tonnage_operator.domain.installation import Sharing

if TYPE_CHECKING:
    from tonnage_operator.api.base import ApiModel


def short_digest(*parts: object) -> str:
    """Returns 16 hex digits over the parts, which must be JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _dump(model: ApiModel | None) -> object:
    return None if model is None else model.model_dump(mode="json", by_alias=True, exclude_none=True)


def source_hash(spec: api.ModelWeightsSpec) -> str:
    """Returns what a revision was resolved for: it changes when other objects may be meant."""
    return short_digest(_dump(spec.source), _dump(spec.files))


def resolve_key(spec: api.ModelWeightsSpec) -> str:
    """Returns what a resolve Job depends on: a change starts a new one at once, without waiting for a retry."""
    return short_digest(_dump(spec.source), _dump(spec.files), _dump(spec.credentials), spec.revision.expected_digest)


def job_name(role: str, model: str, *parts: object) -> str:
    """Returns the name of a Job: readable, valid as a label's value (at most 63 characters), and deterministic."""
    readable = re.sub(r"[^a-z0-9-]", "-", model)[: 63 - len("tonnage-") - len(role) - 1 - 17].strip("-")
    return f"tonnage-{role}-{readable}-{short_digest(role, *parts)}"


def node_hash(node: str) -> str:
    """Returns a label's value for a node, whose name may be too long for one."""
    return short_digest(node)


LAYOUTS = {api.Layout.SAFETENSORS: Layout.SAFETENSORS, api.Layout.TENSORIZER: Layout.TENSORIZER}


def cache_entry_name(revision: str, layout: api.Layout) -> str:
    """Returns the name of the cache entry of a revision."""
    return entry_name(revision, LAYOUTS[layout])


def cache_key(entry: str, *, namespace: str, sharing: Sharing) -> str:
    """Returns what tells entries of one medium apart; it is also their path below the medium's folder."""
    return entry if sharing is Sharing.CLUSTER else f"{namespace}/{entry}"


def entry_of(cache_key: str) -> str:
    """Returns the name of the cache entry of a cache key."""
    return cache_key.rpartition("/")[2]
