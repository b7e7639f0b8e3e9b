"""What all API models share: immutable, camelCase outside, tolerant of fields that a newer schema has."""

from __future__ import annotations

import enum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

Body = dict[str, Any]
"""A Kubernetes object, or a part of one, as parsed JSON."""


class ApiModel(BaseModel):
    """Base of every object of the API.

    Unknown fields are ignored, since a newer CRD may be installed before a newer operator is.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, use_enum_values=False
    )


def validation_rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Returns the schema's extra part that holds CEL rules.

    Args:
        pairs: An expression over ``self``, and the sentence that a person reads when it doesn't hold.
    """
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


QUANTITY_PATTERN = r"^([0-9]+|[0-9]+\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
"""Non-negative quantities in the forms that people write. Exponents are left out on purpose: nobody writes them."""

DURATION_PATTERN = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
"""Hours, minutes, seconds, in this order, as Go prints durations."""


def _quantity_to_str(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_quantity_to_str),
    Field(pattern=QUANTITY_PATTERN),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""A Kubernetes quantity, written as a number or as a string with a unit."""

Duration = Annotated[str, Field(pattern=DURATION_PATTERN, min_length=2, max_length=32)]
"""Time as ``1h30m``; at least one part."""

DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of a Kubernetes object."""

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""RFC 3339 in UTC, with seconds, as Kubernetes writes it."""

Int64 = Annotated[int, WithJsonSchema({"type": "integer", "format": "int64"})]
"""A count or size that may pass 2**31."""


class ConditionStatus(enum.StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One observation about the object, as in all of Kubernetes."""

    type: str = Field(max_length=316, description="Which aspect is observed, in CamelCase.")
    status: ConditionStatus = Field(description="Whether it holds: True, False or Unknown.")
    reason: str = Field(
        max_length=1024,
        description="Stable reason in CamelCase; docs/guides/operations/reasons.md lists cause and remedy.",
    )
    message: str = Field(default="", max_length=32768, description="A sentence for a person, which says what to do.")
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: Int64 | None = Field(
        default=None, description="The generation of the spec that this observation is about."
    )


class KeyReference(ApiModel):
    """One key of a ConfigMap or Secret in the same namespace."""

    name: DnsName = Field(description="Name of the ConfigMap or Secret, in the namespace of this object.")
    key: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="The key within it that holds the value.",
    )


class LabelSelectorOperator(enum.StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelSelectorRequirement(ApiModel):
    """One requirement on a label of a namespace."""

    key: str = Field(min_length=1, max_length=317, description="The label's key.")
    operator: LabelSelectorOperator = Field(description="How it is compared: In, NotIn, Exists or DoesNotExist.")
    values: tuple[Annotated[str, Field(max_length=63)], ...] | None = Field(
        default=None, max_length=100, description="The values for In and NotIn; must be absent for the other operators."
    )


class LabelSelector(ApiModel):
    """Labels that must match; all requirements are joined by and."""

    match_labels: dict[str, Annotated[str, Field(max_length=63)]] | None = Field(
        default=None, description="Labels that must have exactly these values."
    )
    match_expressions: tuple[LabelSelectorRequirement, ...] | None = Field(
        default=None, max_length=50, description="Requirements beyond equality."
    )
