"""From the models to CRD YAML. The files in ``crds/`` are this module's output, and a test keeps it so.

Pydantic's JSON schema is not a structural schema as Kubernetes wants it, so references are inlined, ``T or null``
becomes optional ``T``, titles go, and defaults that are objects are written out.
"""

from __future__ import annotations

from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tonnage_operator.api import names
from tonnage_operator.api.nodecache import NodeCacheResource
from tonnage_operator.api.status import ModelWeightsResource

Schema = dict[str, Any]

_HEADER: Final = "# Made by `tonnage-operator crd` from operator/tonnage_operator/api. Do not edit.\n"

_SCHEMA_KEYWORDS: Final[tuple[str, ...]] = (
    "type", "format", "description", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "required", "anyOf",
)  # fmt: skip


def _column(name: str, kind: str, path: str, description: str, *, priority: int = 0) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, "description": description, "priority": priority}


_MODEL_COLUMNS: Final = (
    _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether pods can use it now."),
    _column("Revision", "string", ".status.resolved.revision", "The revision in use."),
    _column("Size", "string", ".status.size", "Bytes of the revision in use."),
    _column("Warm", "string", ".status.nodes.summary", "Warm nodes of those desired."),
    _column("Progress", "string", ".status.progressSummary", "How far the slowest loading node is."),
    _column("Pods", "integer", ".status.consumers.pods", "Pods that use it."),
    _column("Age", "date", ".metadata.creationTimestamp", "Time since it was made."),
    _column("Medium", "string", ".status.medium", "Where it is cached.", priority=1),
    _column("ETA", "string", ".status.progress.eta", "Time until the slowest node has it.", priority=1),
    _column("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why it is (not) ready.", priority=1),
    _column("Source", "string", ".status.source", "Where the objects are.", priority=1),
)

_NODE_COLUMNS: Final = (
    _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether the node can load."),
    _column("Memory-Used", "string", ".status.summary.memoryUsed", "Bytes of entries in memory."),
    _column("Memory-Free", "string", ".status.summary.memoryFree", "Free bytes of the memory medium."),
    _column("Disk-Used", "string", ".status.summary.diskUsed", "Bytes of entries on disk."),
    _column("Entries", "integer", ".status.summary.entries", "Entries that are ready."),
    _column("Loading", "integer", ".status.summary.loading", "Entries that are being loaded."),
    _column("Age", "date", ".metadata.creationTimestamp", "Time since it was made."),
)


class _NoAliasDumper(yaml.SafeDumper):
    """Writes what occurs twice twice, since people read the files."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


class _StructuralSchema:
    """Turns one model's JSON schema into a structural one."""

    def __init__(self, model: type[BaseModel]) -> None:
        root = model.model_json_schema(by_alias=True, mode="validation")
        self._definitions: dict[str, Schema] = root.pop("$defs", {})
        self._root = root
        self._model_defaults = _model_defaults(model)

    def schema(self) -> Schema:
        return self._convert(self._root)

    def _convert(self, node: Schema, *, owner: str = "") -> Schema:
        node = self._inline(node)
        owner = node.get("title", owner)
        out: Schema = {key: node[key] for key in _SCHEMA_KEYWORDS if key in node}
        out |= {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}
        if "x-kubernetes-int-or-string" not in out:
            out.pop("anyOf", None)
        if out.get("default", ...) is None:
            del out["default"]
        if "properties" in node:
            out["properties"] = {key: self._property(owner, key, value) for key, value in node["properties"].items()}
        elif node.get("type") == "object" and isinstance(node.get("additionalProperties"), dict):
            out["additionalProperties"] = self._convert(node["additionalProperties"])
        if "items" in node:
            out["items"] = self._convert(node["items"])
        return out

    def _property(self, owner: str, name: str, node: Schema) -> Schema:
        out = self._convert(node)
        if (owner, name) in self._model_defaults:
            out["default"] = self._model_defaults[owner, name]
        return out

    def _inline(self, node: Schema) -> Schema:
        """Follows ``$ref`` and drops the null branch; what stands beside them wins."""
        siblings = {key: value for key, value in node.items() if key not in {"$ref", "anyOf", "allOf"}}
        if "$ref" in node:
            target = self._inline(self._definitions[node["$ref"].rpartition("/")[2]])
            return {**target, **siblings, "title": target.get("title", "")}
        branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
        if len(branches) == 1:
            target = self._inline(branches[0])
            return {**target, **siblings, "title": target.get("title", "")}
        return node


def _model_defaults(model: type[BaseModel]) -> dict[tuple[str, str], Schema]:
    """Returns the whole default of each field, at any depth, whose default is another model.

    Whole, since the API server evaluates rules on a default as it is written. Keys are (model's name, field's alias).
    """
    found: dict[tuple[str, str], Schema] = {}
    pending, seen = [model], {model}
    while pending:
        current = pending.pop()
        for name, field in current.model_fields.items():
            if field.default is not PydanticUndefined and isinstance(field.default, BaseModel):
                found[current.__name__, field.alias or name] = field.default.model_dump(
                    mode="json", by_alias=True, exclude_none=True
                )
            for inner in _models_in(field.annotation):
                if inner not in seen:
                    seen.add(inner)
                    pending.append(inner)
    return found


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """Returns the models that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]


def _definition(
    model: type[BaseModel], *, kind: str, plural: str, scope: str, short: tuple[str, ...], columns: tuple[Schema, ...]
) -> Schema:
    schema = _StructuralSchema(model).schema()
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of this object's schema."},
        "kind": {"type": "string", "description": "Kind of this object."},
        "metadata": {"type": "object"},
        **schema["properties"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower() if kind.lower() != plural else plural,
                "shortNames": list(short),
                "categories": ["tonnage"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [dict(column) for column in columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def definitions() -> dict[str, Schema]:
    """Returns each CRD as a dict, by the name of its file in ``crds/``."""
    return {
        "modelweights.yaml": _definition(
            ModelWeightsResource,
            kind=names.MODEL_WEIGHTS_KIND,
            plural=names.MODEL_WEIGHTS_PLURAL,
            scope="Namespaced",
            short=("mw",),
            columns=_MODEL_COLUMNS,
        ),
        "nodecaches.yaml": _definition(
            NodeCacheResource,
            kind=names.NODE_CACHE_KIND,
            plural=names.NODE_CACHE_PLURAL,
            scope="Cluster",
            short=("nodecache",),
            columns=_NODE_COLUMNS,
        ),
    }


def files() -> dict[str, str]:
    """Returns the text of each file in ``crds/``."""
    return {
        name: _HEADER + yaml.dump(definition, Dumper=_NoAliasDumper, sort_keys=False, width=120, allow_unicode=True)
        for name, definition in definitions().items()
    }
