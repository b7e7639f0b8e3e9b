"""Base class and common types of the API models."""

from __future__ import annotations

import enum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

Body = dict[str, Any]
"""A Kubernetes object, or a part of one, as parsed JSON."""


class ApiModel(BaseModel):
    """Base class of the API models: immutable, with camelCase aliases.

    Unknown fields are ignored, because a newer CRD may be installed before the newer operator.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, use_enum_values=False
    )


def validation_rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Returns the schema extension for CEL validation rules.

    Args:
        pairs: An expression over ``self``, and the message if it is false.
    """
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


SENTENCE_KEY = "x-tonnage-sentence"
"""Key of a schema for the sentence that the API server shows, in place of the pattern, for other values."""


def sentence(text: str) -> dict[str, Any]:
    """Returns the schema extension for a field with a pattern: the message for values that don't match it."""
    return {SENTENCE_KEY: text}


LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=LABEL_VALUE_PATTERN,
        json_schema_extra=sentence("the value of a label has letters, digits, dashes, dots and underscores only"),
    ),
]
"""The value of a label; others match no object."""

QUANTITY_PATTERN = r"^([0-9]+|[0-9]+\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
"""Non-negative Kubernetes quantities, without exponents."""

DURATION_PATTERN = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
"""Hours, minutes and seconds, in this order, as in Go."""


def quantity_to_str(value: object) -> object:
    """Returns an integer as text, as YAML may have a quantity without a unit; other values as they are."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(quantity_to_str),
    Field(pattern=QUANTITY_PATTERN),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "maxLength": 32,
            "x-kubernetes-int-or-string": True,
            **sentence("a quantity is a number, with a unit if any, such as 500m, 16Mi or 2G: no sign, no exponent"),
        }
    ),
]
"""A Kubernetes quantity: a number, or a string with a unit."""

INT_OR_PERCENT_PATTERN = r"^([0-9]{1,5}|(100|[0-9]{1,2})%)$"

IntOrPercent = Annotated[
    str,
    BeforeValidator(quantity_to_str),
    Field(pattern=INT_OR_PERCENT_PATTERN),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": INT_OR_PERCENT_PATTERN,
            "minimum": 0,
            "maxLength": 5,
            "x-kubernetes-int-or-string": True,
            **sentence("a number such as 1, or a percentage from 0% to 100%"),
        }
    ),
]
"""A number of nodes, or a percentage of them."""

Duration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        min_length=2,
        max_length=32,
        json_schema_extra=sentence("a duration has hours, minutes and seconds, such as 90s, 10m or 1h30m"),
    ),
]
"""A duration such as ``1h30m``, with at least one part."""

DnsName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        json_schema_extra=sentence(
            "a name has lower-case letters, digits, dashes and dots only, and begins and ends with a letter or digit"
        ),
    ),
]
"""The name of a Kubernetes object."""

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""RFC 3339 in UTC with whole seconds."""

Int64 = Annotated[int, WithJsonSchema({"type": "integer", "format": "int64"})]
"""An integer that may exceed 2**31."""


class ConditionStatus(enum.StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """A standard Kubernetes condition."""

    type: str = Field(max_length=316, description="Type of the condition, in CamelCase.")
    status: ConditionStatus = Field(description="Status of the condition: True, False or Unknown.")
    reason: str = Field(
        max_length=1024,
        description="Stable reason in CamelCase; see docs/guides/operations/reasons.md for cause and remedy.",
    )
    message: str = Field(default="", max_length=32768, description="Readable explanation, with a remedy.")
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: Int64 | None = Field(
        default=None, description="Generation of the spec that this condition is based on."
    )


class KeyReference(ApiModel):
    """One key of a ConfigMap or Secret in the same namespace."""

    name: DnsName = Field(description="Name of the ConfigMap or Secret, in the namespace of this object.")
    key: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key that contains the value.",
        json_schema_extra=sentence("a key has letters, digits, dashes, underscores and dots only"),
    )


class LabelSelectorOperator(enum.StrEnum):
    """Relation between a label and values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelSelectorRequirement(ApiModel):
    """A requirement on a label of a namespace."""

    key: str = Field(min_length=1, max_length=317, description="The label's key.")
    operator: LabelSelectorOperator = Field(description="Relation to the values: In, NotIn, Exists or DoesNotExist.")
    values: tuple[LabelValue, ...] | None = Field(
        default=None, max_length=100, description="The values for In and NotIn; must be absent for the other operators."
    )


class LabelSelector(ApiModel):
    """A label selector. All requirements must match."""

    match_labels: dict[str, LabelValue] | None = Field(
        default=None, max_length=50, description="Labels that must have these values."
    )
    match_expressions: tuple[LabelSelectorRequirement, ...] | None = Field(
        default=None, max_length=50, description="Requirements other than equality."
    )
