"""Errors about credentials, from botocore's answer: a reason, a name for what failed, and what to set where. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tonnage.errors import (
    AccessDenied,
    CredentialsExpired,
    CredentialsMissing,
    EndpointUnreachable,
    InvalidPlan,
    TLSVerificationFailed,
    TonnageError,
)
from tonnage.source.aws_config import CREDENTIALS_DIR
from tonnage.source.error_classification import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

# Class names, so that the exceptions need not be imported from botocore.
_EXPIRED = {
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "SSOError",
    "TokenRetrievalError",
    "LoginRefreshRequired",
    "LoginTokenLoadError",
    "LoginError",
}
_BY_KIND: dict[type[TonnageError], set[str]] = {
    CredentialsExpired: _EXPIRED,
    TLSVerificationFailed: {"SSLError"},
    EndpointUnreachable: {"ConnectionError", "HTTPClientError", "EndpointConnectionError", "MetadataRetrievalError"},
}
_FILES = {"ConfigParseError", "ConfigNotFound"}


class _Provider(NamedTuple):
    """What a provider of botocore's chain is, and what to check if it fails."""

    name: str
    remedy: str


_PROVIDERS = {
    "custom-process": _Provider(
        "credential_process",
        "Run the program of credential_process yourself: it must exist in this image, be executable and print JSON.",
    ),
    "assume-role-with-web-identity": _Provider(
        "web identity (IRSA)",
        "Check AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN: the annotation eks.amazonaws.com/role-arn of the "
        "ServiceAccount sets both, and the role must trust that ServiceAccount.",
    ),
    "container-role": _Provider(
        "container credentials (Pod Identity)",
        "Check AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: the Pod Identity agent "
        "must run on the node and sets both.",
    ),
    "iam-role": _Provider(
        "instance metadata",
        "Allow this machine or pod to reach 169.254.169.254 (a hop limit of 2 for pods), or set other credentials.",
    ),
    "assume-role": _Provider(
        "the role of the profile",
        "Check role_arn, source_profile and credential_source of the profile, and that the role's trust policy allows "
        "this identity sts:AssumeRole.",
    ),
    "sso": _Provider("IAM Identity Center (SSO)", "Run `aws sso login` for the profile, then start again."),
    "login": _Provider("the login of the profile", "Run `aws login` for the profile, then start again."),
    "shared-credentials-file": _Provider("AWS's credentials file", "Correct the file, or AWS_SHARED_CREDENTIALS_FILE."),
    "config-file": _Provider("AWS's config file", "Correct the file, or AWS_CONFIG_FILE."),
}
_MFA_REMEDY = (
    "Get a session where you can type the code, with `aws configure export-credentials --format env`, and set its "
    "variables here; or use a role without MFA."
)
_TRUST_REMEDY = "Set AWS_CA_BUNDLE to the CA that signed the certificate of the service or of the proxy before it."


def missing_credentials_error(environment: Mapping[str, str]) -> CredentialsMissing:
    """Returns the error for a chain that found nothing; it lists where credentials were looked for."""
    places = ["AWS_ACCESS_KEY_ID"]
    if environment.get(CREDENTIALS_DIR):
        places.insert(0, f"the directory {environment[CREDENTIALS_DIR]}")
    places += [
        f"the profile {_profile(environment)!r} of AWS's config and credentials files",
        "web identity (AWS_WEB_IDENTITY_TOKEN_FILE)",
        "container credentials (AWS_CONTAINER_CREDENTIALS_FULL_URI)",
        "instance metadata",
    ]
    return CredentialsMissing(f"No credentials were found in {', '.join(places[:-1])} or {places[-1]}.")


def answer_error(answer: Mapping[str, Any], environment: Mapping[str, str]) -> TonnageError:
    """Returns the error for an exception of botocore.

    Args:
        answer: What ``botocore_main.describe`` returned.
        environment: The variables that botocore read.
    """
    kinds = set(answer["kinds"])
    provider = _PROVIDERS.get(answer["method"], _Provider("", ""))
    name = f"{provider.name} {answer['program']}".strip()
    text = f"Can't load credentials{f' from {name}' if name else ''}: {_cause(answer)}."
    if "EOFError" in kinds:
        text = f"Can't load credentials from {name or 'the profile'}: it needs the code of an MFA device (mfa_serial)."
        return CredentialsMissing(text, remedy=_MFA_REMEDY)
    if answer["operation"]:
        return _service_error(answer["code"], text, provider.remedy)
    if kinds & _FILES or ("UnicodeDecodeError" in kinds and answer["method"] != "custom-process"):
        return InvalidPlan(
            f"AWS's config file can't be used: {_cause(answer)}.",
            remedy="Correct the file that the message names, or AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE.",
        )
    remedies: dict[type[TonnageError], str] = {
        CredentialsExpired: provider.remedy,
        TLSVerificationFailed: _TRUST_REMEDY,
        EndpointUnreachable: _network_remedy(kinds, provider.name),
        CredentialsMissing: provider.remedy,
    }
    if "ProfileNotFound" in kinds:
        remedies[CredentialsMissing] = f"Add {_profile(environment)!r} to AWS's files, or correct AWS_PROFILE."
    error = next((error for error, names in _BY_KIND.items() if kinds & names), CredentialsMissing)
    return error(text, remedy=remedies[error])


def _cause(answer: Mapping[str, Any]) -> str:
    """Returns what went wrong, with the file's name or the service's own code and message."""
    if answer["operation"]:
        message = clean(answer["message"])
        return f"{answer['operation']} failed with {answer['code']}{f': {message}' if message else ''}"
    kind = answer["kinds"][0] if answer["kinds"] else "Exception"
    if answer["file"]:
        problem = {
            "FileNotFoundError": "does not exist",
            "IsADirectoryError": "is a directory",
            "PermissionError": "can't be read or run by this user",
        }.get(kind, f"can't be used ({kind})")
        return f"{clean(answer['file'])} {problem}"
    return f"{kind}: {clean(answer['text'])}".rstrip(": ")


def _service_error(code: str, text: str, remedy: str) -> TonnageError:
    if code.startswith("ExpiredToken") or code in {"InvalidIdentityToken", "ExpiredTokenException"}:
        return CredentialsExpired(text, remedy=remedy)
    if code.startswith(("AccessDenied", "Unauthorized", "Forbidden")) or code in {"403", "401"}:
        return AccessDenied(text, remedy=remedy)
    if code.startswith(("Throttl", "ServiceUnavailable", "InternalFailure", "InternalError", "5", "RequestLimit")):
        return EndpointUnreachable(text, remedy="The service that issues credentials is busy or down: try again later.")
    return CredentialsMissing(text, remedy=remedy)


def _network_remedy(kinds: set[str], provider: str) -> str:
    if "ProxyConnectionError" in kinds:
        return "Check HTTPS_PROXY and HTTP_PROXY: the proxy does not answer. NO_PROXY lists hosts to reach without it."
    return f"Check network policies, DNS and proxies on the way to {provider or 'the service that issues credentials'}."


def _profile(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_DEFAULT_PROFILE") or environment.get("AWS_PROFILE") or "default"
