"""The fields of a Node that placement and NodeCaches depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """A parsed Node."""

    name: str
    uid: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    unschedulable: bool
    ready: bool
    boot_id: str

    @property
    def hostname(self) -> str:
        """Value of the host name label, which node affinity uses; the node's name if the label is missing."""
        return self.labels.get(names.HOSTNAME_LABEL, self.name)


def parse_node(body: Body) -> Node:
    """Parses a Node. Without a Ready condition it counts as ready."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    ready = [each["status"] for each in status.get("conditions") or () if each["type"] == "Ready"]
    return Node(
        name=metadata["name"],
        uid=metadata["uid"],
        labels=metadata.get("labels") or {},
        taints=tuple(Taint(each["key"], each.get("value", ""), each["effect"]) for each in spec.get("taints") or ()),
        unschedulable=bool(spec.get("unschedulable")),
        ready=ready in ([], ["True"]),
        boot_id=(status.get("nodeInfo") or {}).get("bootID", ""),
    )
