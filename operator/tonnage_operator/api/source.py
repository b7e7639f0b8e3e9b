"""Where the bytes are, and with which identity they are read: ``spec.source`` and ``spec.credentials``."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import ApiModel, DnsName, KeyReference, validation_rules


class AddressingStyle(enum.StrEnum):
    """Where the bucket's name goes in a URL."""

    AUTO = "Auto"
    PATH = "Path"
    VIRTUAL = "Virtual"


class CaBundle(ApiModel):
    """PEM certificates that sign the server's, in exactly one place."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "has(self.configMapKeyRef) != has(self.secretKeyRef)",
                "give exactly one of configMapKeyRef and secretKeyRef",
            )
        )
    )

    config_map_key_ref: KeyReference | None = Field(default=None, description="A key of a ConfigMap that holds them.")
    secret_key_ref: KeyReference | None = Field(
        default=None,
        description="A key of a Secret that holds them; mounted into the loader, not read by the operator.",
    )


ObjectKey = Annotated[str, Field(min_length=1, max_length=1024)]


class S3Location(ApiModel):
    """Objects of one S3 bucket: all below a prefix, or exactly the given keys."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            ("has(self.prefix) != has(self.keys)", "give exactly one of prefix and keys")
        )
    )

    bucket: str = Field(
        min_length=3,
        max_length=255,
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*[a-zA-Z0-9]$",
        description="Name of the bucket.",
    )
    prefix: str | None = Field(
        default=None, max_length=1024, description="Everything below this prefix counts; ends with a slash as a rule."
    )
    keys: tuple[ObjectKey, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Exactly these objects count."
    )
    endpoint: str | None = Field(
        default=None,
        max_length=1024,
        pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$",
        description="URL of the S3 server, without credentials or query; absent: AWS.",
    )
    region: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[a-z0-9-]+$",
        description="Region that requests are signed for; absent: that of the loader's environment, or us-east-1.",
    )
    addressing_style: AddressingStyle = Field(
        default=AddressingStyle.AUTO,
        description="Where the bucket's name goes: Path, Virtual (in the host name), or Auto, which chooses by "
        "endpoint.",
    )
    ca_bundle: CaBundle | None = Field(
        default=None, description="Certificates to trust for this endpoint, instead of the image's own."
    )


HttpUrl = Annotated[str, Field(max_length=2048, pattern=r"^https?://[^/?#@\s]+/[^?#@\s]+$")]


class HttpLocation(ApiModel):
    """Objects by URL. Presigned URLs are secrets and come from a Secret."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            ("has(self.urls) != has(self.urlsFrom)", "give exactly one of urls and urlsFrom")
        )
    )

    urls: tuple[HttpUrl, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Public URLs. One with a query or user part is refused: put presigned URLs into a Secret "
        "(urlsFrom).",
    )
    urls_from: KeyReference | None = Field(
        default=None, description="A key of a Secret that holds URLs, one a line; meant for presigned ones."
    )
    ca_bundle: CaBundle | None = Field(
        default=None, description="Certificates to trust for these servers, instead of the image's own."
    )


class ModelSource(ApiModel):
    """Where the model's objects are. Exactly one member is given."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(("has(self.s3) != has(self.http)", "give exactly one of s3 and http"))
    )

    s3: S3Location | None = Field(default=None, description="A bucket of S3 or of a server that speaks its protocol.")
    http: HttpLocation | None = Field(default=None, description="Plain or presigned URLs.")


class SecretReference(ApiModel):
    """A Secret of the same namespace."""

    name: DnsName = Field(description="Name of the Secret, in the namespace of the pod that loads.")


class Anonymous(ApiModel):
    """No identity at all; has no fields."""


class Credentials(ApiModel):
    """With which identity the source is read. At most one member; none: the ambient identity of the pod that loads."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "[has(self.secretRef), has(self.serviceAccountName), has(self.anonymous)].filter(x, x).size() <= 1",
                "give at most one of secretRef, serviceAccountName and anonymous",
            )
        )
    )

    secret_ref: SecretReference | None = Field(
        default=None,
        description="A Secret whose keys are the AWS environment names: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, and "
        "AWS_SESSION_TOKEN where there is one.",
    )
    service_account_name: DnsName | None = Field(
        default=None,
        description="ServiceAccount of resolve and load Jobs (IRSA, Pod Identity, …). An injected loader always "
        "has the "
        "identity of its own pod.",
    )
    anonymous: Anonymous | None = Field(default=None, description="Read without any identity, as {}.")
