"""``spec.source`` and ``spec.credentials``: where the objects are, and the identity for reading them."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import ConfigDict, Field

from tonnage_operator.api.base import ApiModel, DnsName, KeyReference, sentence, validation_rules


class AddressingStyle(enum.StrEnum):
    """Position of the bucket's name in a URL."""

    AUTO = "Auto"
    PATH = "Path"
    VIRTUAL = "Virtual"


class CaBundle(ApiModel):
    """CA certificates in PEM, from a ConfigMap or a Secret."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "has(self.configMapKeyRef) != has(self.secretKeyRef)",
                "set exactly one of configMapKeyRef and secretKeyRef",
            )
        )
    )

    config_map_key_ref: KeyReference | None = Field(
        default=None, description="ConfigMap key that contains the certificates."
    )
    secret_key_ref: KeyReference | None = Field(
        default=None,
        description="Secret key that contains the certificates; mounted into the loader, not read by the operator.",
    )


ENDPOINT_PATTERN = r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$"
"""The URL of a server: no user, password, query string or fragment."""

ObjectKey = Annotated[str, Field(min_length=1, max_length=1024)]


class S3Location(ApiModel):
    """Objects in an S3 bucket: all objects with a prefix, or the listed keys."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(("has(self.prefix) != has(self.keys)", "set exactly one of prefix and keys"))
    )

    bucket: str = Field(
        min_length=3,
        max_length=255,
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*[a-zA-Z0-9]$",
        json_schema_extra=sentence("bucket is the bucket's name alone; what follows it in an s3:// URL is the prefix"),
        description="Name of the bucket.",
    )
    prefix: str | None = Field(
        default=None,
        max_length=1024,
        description="All objects below this prefix; without a slash at its end, an object of this name too.",
    )
    keys: tuple[ObjectKey, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Keys of the objects."
    )
    endpoint: str | None = Field(
        default=None,
        max_length=1024,
        pattern=ENDPOINT_PATTERN,
        json_schema_extra=sentence(
            "endpoint is a URL such as https://s3.example.com:9000, without user, password and query string; "
            "keys belong into the Secret of spec.credentials.secretRef"
        ),
        description="URL of the S3 server, without credentials or query string; absent: AWS.",
    )
    region: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[a-z0-9-]+$",
        json_schema_extra=sentence("region is a name such as eu-central-1"),
        description="Region for signing requests; absent: the region in the loader's environment, or us-east-1.",
    )
    addressing_style: AddressingStyle = Field(
        default=AddressingStyle.AUTO,
        description="Position of the bucket's name in URLs: Path, Virtual (in the host name), or Auto (Virtual for AWS "
        "and for stores that refuse Path, Path for others).",
    )
    requester_pays: bool = Field(
        default=False,
        description="The requester pays for requests and transfer, as the buckets of some owners demand.",
    )
    ca_bundle: CaBundle | None = Field(
        default=None, description="CA certificates to trust for this endpoint, instead of those in the image."
    )


HttpUrl = Annotated[
    str,
    Field(
        max_length=2048,
        pattern=r"^https?://[^/?#@\s]+/[^?#@\s]+$",
        json_schema_extra=sentence(
            "a public URL has no user, password and query string; put presigned URLs into a Secret and set "
            "source.http.urlsFrom"
        ),
    ),
]


class HttpLocation(ApiModel):
    """Objects by URL. Presigned URLs are confidential and must be in a Secret."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            ("has(self.urls) != has(self.urlsFrom)", "set exactly one of urls and urlsFrom")
        )
    )

    urls: tuple[HttpUrl, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Public URLs. URLs with a query string or user are rejected: put presigned URLs into a Secret "
        "(urlsFrom).",
    )
    urls_from: KeyReference | None = Field(
        default=None, description="Secret key that contains URLs, one per line; for presigned URLs."
    )
    ca_bundle: CaBundle | None = Field(
        default=None, description="CA certificates to trust for these servers, instead of those in the image."
    )


class HubLocation(ApiModel):
    """Files of a repository on a model hub, at one commit."""

    repo: str = Field(
        min_length=1,
        max_length=193,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        json_schema_extra=sentence("repo is organization/model, without the hub's URL; that is endpoint"),
        description="Name of the repository, such as Qwen/Qwen3-0.6B.",
    )
    revision: str = Field(
        default="main",
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]*$",
        json_schema_extra=sentence("revision is a branch, a tag or a commit"),
        description="Branch, tag or commit. A branch is resolved to its commit when spec.revision demands it.",
    )
    endpoint: str | None = Field(
        default=None,
        max_length=1024,
        pattern=ENDPOINT_PATTERN,
        json_schema_extra=sentence(
            "endpoint is the hub's URL such as https://hub.example.com, without user, password and query string; the "
            "token belongs into the Secret of spec.credentials.secretRef"
        ),
        description="URL of the hub or a mirror; absent: HF_ENDPOINT in the loader's environment, or huggingface.co.",
    )
    ca_bundle: CaBundle | None = Field(
        default=None, description="CA certificates to trust for this hub, instead of those in the image."
    )


class ModelSource(ApiModel):
    """Location of the model's objects. Exactly one member is set."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "[has(self.s3), has(self.http), has(self.hub)].filter(x, x).size() == 1",
                "set exactly one of s3, http and hub",
            )
        )
    )

    s3: S3Location | None = Field(default=None, description="Objects in a bucket of S3 or of an S3-compatible server.")
    http: HttpLocation | None = Field(default=None, description="Objects at public or presigned URLs.")
    hub: HubLocation | None = Field(default=None, description="Files of a repository on a model hub.")

    @property
    def location(self) -> S3Location | HttpLocation | HubLocation | None:
        """The member that is set."""
        return self.s3 or self.http or self.hub


class SecretReference(ApiModel):
    """A Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret, in the namespace of the loader's pod.")


class Anonymous(ApiModel):
    """Requests without an identity; has no fields."""


class Credentials(ApiModel):
    """Identity for reading the source. At most one member is set; none: the ambient identity of the loader's pod."""

    model_config = ConfigDict(
        json_schema_extra=validation_rules(
            (
                "[has(self.secretRef), has(self.serviceAccountName), has(self.anonymous)].filter(x, x).size() <= 1",
                "set at most one of secretRef, serviceAccountName and anonymous",
            )
        )
    )

    secret_ref: SecretReference | None = Field(
        default=None,
        description="Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and optionally "
        "AWS_SESSION_TOKEN, AWS_REGION and AWS_DEFAULT_REGION. For a hub: with the key HF_TOKEN.",
    )
    service_account_name: DnsName | None = Field(
        default=None,
        description="ServiceAccount of resolve and load Jobs, for IRSA or EKS Pod Identity. An injected loader always "
        "uses the ServiceAccount of its pod.",
    )
    anonymous: Anonymous | None = Field(
        default=None, description="Set to {} to send unsigned requests, and none with a hub's token."
    )
