"""``spec.placement``: which nodes are warmed, and whether pods prefer or require them."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import ApiModel, Duration, Int64, LabelValue, sentence, validation_rules


class PrewarmMode(enum.StrEnum):
    """Which nodes are loaded before a pod needs them."""

    NONE = "None"
    ALL_MATCHING = "AllMatching"
    COUNT = "Count"


class Scheduling(enum.StrEnum):
    """Whether pods prefer or require warm nodes."""

    IGNORE = "Ignore"
    PREFER = "Prefer"
    REQUIRE = "Require"


class NodeSelectorOperator(enum.StrEnum):
    """Relation between a node's label and values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeSelectorRequirement(ApiModel):
    """A requirement on a label or field of a node."""

    key: str = Field(min_length=1, max_length=317, description="Label key; for matchFields: metadata.name.")
    operator: NodeSelectorOperator = Field(
        description="Relation to the values: In, NotIn, Exists, DoesNotExist, Gt or Lt."
    )
    values: tuple[Annotated[str, Field(max_length=253)], ...] | None = Field(
        default=None, max_length=1000, description="Values for In and NotIn; one integer for Gt and Lt."
    )


class NodeSelectorTerm(ApiModel):
    """Requirements that must all match."""

    match_expressions: tuple[NodeSelectorRequirement, ...] | None = Field(
        default=None, max_length=50, description="Requirements on labels."
    )
    match_fields: tuple[NodeSelectorRequirement, ...] | None = Field(
        default=None, max_length=50, description="Requirements on fields; Kubernetes supports only metadata.name."
    )


class NodeSelector(ApiModel):
    """Node selector terms; a node matches if any of them matches."""

    node_selector_terms: tuple[NodeSelectorTerm, ...] | None = Field(
        default=None, max_length=50, description="Terms, at least one of which must match; absent: all nodes."
    )


class TolerationOperator(enum.StrEnum):
    """Relation between a toleration and a taint's value."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(enum.StrEnum):
    """Effect of a taint on pods that don't tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A toleration of load Jobs."""

    key: str | None = Field(
        default=None, max_length=317, description="Key of the taint; absent with Exists: all taints."
    )
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Equal compares the value, Exists does not."
    )
    value: str | None = Field(default=None, max_length=63, description="Value of the taint, with Equal.")
    effect: TaintEffect | None = Field(default=None, description="Effect of the taint; absent: all effects.")
    toleration_seconds: Int64 | None = Field(
        default=None, description="How long a NoExecute taint is tolerated; absent: forever."
    )


TAINT_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
"""The key of a taint: a name, with a DNS subdomain before it or without."""

MAX_GATE_TAINTS = 8
"""Maximum number of startup taints of a gate."""

TaintKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=TAINT_KEY_PATTERN,
        json_schema_extra=sentence(
            "the key of a taint is a name of letters, digits, dashes, dots and underscores, or such a name after a DNS "
            "name and a slash"
        ),
    ),
]


class GateSpec(ApiModel):
    """Keeps pods from new nodes until the model is warm there, with a startup taint that these nodes are born with."""

    taints: tuple[TaintKey, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_GATE_TAINTS,
        description="Keys of the startup taints that wait for this model, of those in the chart's gate.taints; absent: "
        "all of them.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    timeout: Duration = Field(
        default="10m",
        description="Time after which a node takes pods although the model is not warm there; at most the chart's "
        "gate.maxTimeout. It counts from the creation of the node, or from a later return of the taint.",
    )


class PlacementSpec(ApiModel):
    """Which nodes are warmed, and whether pods prefer or require them."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.prewarm == 'Count' ? has(self.count) : !has(self.count)",
                "count is required with prewarm: Count and forbidden otherwise",
            ),
            (
                "!has(self.gate) || self.prewarm == 'AllMatching'",
                "gate requires prewarm: AllMatching, because nothing else warms each new node",
            ),
        )
    )

    prewarm: PrewarmMode = Field(
        default=PrewarmMode.NONE,
        description="None: the first pod on a node loads. AllMatching: all matching nodes are warmed. Count: "
        "that number of matching nodes is warmed.",
    )
    count: int | None = Field(default=None, ge=1, le=10000, description="With Count: number of nodes to keep warm.")
    node_selector: dict[str, LabelValue] | None = Field(
        default=None, max_length=50, description="Labels that nodes must have to be warmed."
    )
    node_affinity: NodeSelector | None = Field(
        default=None, description="Further requirements on nodes, in the format of required node affinity in a pod."
    )
    tolerations: tuple[Toleration, ...] | None = Field(
        default=None, max_length=100, description="Tolerations of load Jobs; nodes with other taints are not warmed."
    )
    max_concurrent_nodes: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Maximum number of nodes that load at the same time, to limit the load on the source.",
    )
    scheduling: Scheduling = Field(
        default=Scheduling.PREFER,
        description="Ignore: pods run on any node. Prefer: pods prefer warm nodes. Require: pods don't run on nodes "
        "that are not warm when the pod is created, and are denied while one of these could become the first warm one; "
        "a node that joins later can take a pod that waits, and with gate only once it is warm. Pods whose entry this "
        "object doesn't warm, such as those of other namespaces that share no entries, prefer warm nodes.",
    )
    gate: GateSpec | None = Field(
        default=None,
        description="Keeps pods from new nodes until the model is warm there; needs nodes with a startup taint, and "
        "gate.enabled in the chart.",
    )
