"""Which nodes are warmed, and how pods are steered to them: ``spec.placement``."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import ApiModel, Int64, validation_rules


class PrewarmMode(enum.StrEnum):
    """Which nodes are loaded before a pod asks."""

    NONE = "None"
    ALL_MATCHING = "AllMatching"
    COUNT = "Count"


class Scheduling(enum.StrEnum):
    """How pods are steered to warm nodes."""

    IGNORE = "Ignore"
    PREFER = "Prefer"
    REQUIRE = "Require"


class NodeSelectorOperator(enum.StrEnum):
    """How a label of a node is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeSelectorRequirement(ApiModel):
    """One requirement on a node."""

    key: str = Field(min_length=1, max_length=317, description="The label's key; for matchFields: metadata.name.")
    operator: NodeSelectorOperator = Field(description="How it is compared: In, NotIn, Exists, DoesNotExist, Gt or Lt.")
    values: tuple[Annotated[str, Field(max_length=253)], ...] | None = Field(
        default=None, max_length=1000, description="Values for In and NotIn; one whole number for Gt and Lt."
    )


class NodeSelectorTerm(ApiModel):
    """Requirements that must all hold."""

    match_expressions: tuple[NodeSelectorRequirement, ...] | None = Field(
        default=None, max_length=50, description="Requirements on labels."
    )
    match_fields: tuple[NodeSelectorRequirement, ...] | None = Field(
        default=None, max_length=50, description="Requirements on fields; Kubernetes knows metadata.name alone."
    )


class NodeSelector(ApiModel):
    """Required terms; a node matches when one of them does."""

    node_selector_terms: tuple[NodeSelectorTerm, ...] | None = Field(
        default=None, max_length=50, description="Terms, of which one must match; absent: every node."
    )


class TolerationOperator(enum.StrEnum):
    """How a taint is compared."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(enum.StrEnum):
    """What a taint does to pods that don't tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A taint that load Jobs tolerate."""

    key: str | None = Field(
        default=None, max_length=317, description="The taint's key; absent with Exists: every taint."
    )
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Equal compares the value, Exists does not."
    )
    value: str | None = Field(default=None, max_length=63, description="The taint's value, with Equal.")
    effect: TaintEffect | None = Field(default=None, description="The taint's effect; absent: all effects.")
    toleration_seconds: Int64 | None = Field(
        default=None, description="How long a NoExecute taint is tolerated; absent: forever."
    )


class PlacementSpec(ApiModel):
    """Which nodes are warmed, and how pods are steered to them."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "self.prewarm == 'Count' ? has(self.count) : !has(self.count)",
                "count is given with prewarm: Count, and only with it",
            )
        )
    )

    prewarm: PrewarmMode = Field(
        default=PrewarmMode.NONE,
        description="None: the first pod on a node loads. AllMatching: every matching node is warmed. Count: "
        "that many of them.",
    )
    count: int | None = Field(default=None, ge=1, le=10000, description="With Count: how many nodes to keep warm.")
    node_selector: dict[str, Annotated[str, Field(max_length=63)]] | None = Field(
        default=None, description="Labels that a node must have to be warmed."
    )
    node_affinity: NodeSelector | None = Field(
        default=None, description="Requirements beyond labels' equality, as the required part of a pod's node affinity."
    )
    tolerations: tuple[Toleration, ...] | None = Field(
        default=None, max_length=100, description="Taints that load Jobs tolerate; nodes with others are not warmed."
    )
    max_concurrent_nodes: int = Field(
        default=4, ge=1, le=1000, description="Nodes that load at the same time, so that the source is not overrun."
    )
    scheduling: Scheduling = Field(
        default=Scheduling.PREFER,
        description="Ignore: pods go anywhere. Prefer: warm nodes are preferred. Require: only warm nodes; "
        "refused while none is.",
    )
