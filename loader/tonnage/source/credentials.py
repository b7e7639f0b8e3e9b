"""Loads credentials from mounted files, the environment or botocore's chain, and refreshes them before they expire.

Mounted files and the environment are read here, because importing botocore takes longer than a cache hit may. Order:
anonymous; the directory in ``TONNAGE_CREDENTIALS_DIR``; ``AWS_ACCESS_KEY_ID`` and the variables that belong to it,
which take precedence over ``AWS_PROFILE`` in botocore too; then botocore's chain with profiles, assumed roles, SSO, web
identity (IRSA), container credentials (Pod Identity) and instance metadata.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from tonnage.errors import (
    AccessDenied,
    CredentialsExpired,
    CredentialsMissing,
    EndpointUnreachable,
    InvalidPlan,
    TonnageError,
)
from tonnage.source.aws_config import CREDENTIALS_DIR, mounted_values
from tonnage.source.error_classification import redact
from tonnage.source.request_target import Credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from botocore.exceptions import ClientError

REFRESH_MARGIN = 300.0
"""Credentials are refreshed this many seconds before they expire."""

# Class names, so that the exceptions need not be imported from botocore.
_EXPIRED_ERRORS = {"SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError", "LoginRefreshRequired"}
_UNREACHABLE_ERRORS = {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"}


class CredentialProvider:
    """Provides the credentials of one source and refreshes them before they expire.

    Args:
        anonymous: Requests are not signed; there are no credentials.
        environment: The variables to read; None: those of the process. botocore's chain always reads the latter.
    """

    def __init__(self, *, anonymous: bool = False, environment: Mapping[str, str] | None = None) -> None:
        self._anonymous = anonymous
        self._environment = environment
        self._current: Credentials | None = None
        self._chain: Any = None

    def __repr__(self) -> str:
        return f"CredentialProvider(anonymous={self._anonymous})"

    @property
    def anonymous(self) -> bool:
        return self._anonymous

    def current(self) -> Credentials | None:
        """Returns credentials, refreshed if they expire within ``REFRESH_MARGIN``; None for anonymous access.

        If the refresh fails, credentials that are still valid are returned.

        Raises:
            CredentialsMissing: No credentials were found, or they are incomplete.
            CredentialsExpired: An SSO login or a web identity token has expired.
            AccessDenied: The role of the profile or the pod can't be assumed.
            EndpointUnreachable: The service that issues credentials does not respond.
            InvalidPlan: The mounted directory can't be read.
        """
        if self._anonymous:
            return None
        if self._current is None:
            self._current = self._load()
        elif _seconds_to_expiry(self._current) < REFRESH_MARGIN:
            try:
                self._current = self._load()
            except TonnageError:
                if _seconds_to_expiry(self._current) <= 0:
                    raise
        return self._current

    def refresh(self, failed: Credentials | None = None) -> Credentials | None:
        """Loads the credentials again and returns them, changed or not; None for anonymous access.

        Args:
            failed: The credentials that the store rejected. If others have been loaded since, those are returned
                without another refresh, so that many workers that fail together cause only one.

        Raises:
            TonnageError: As ``current``.
        """
        if self._anonymous:
            return None
        if failed is None or self._current is None or self._current == failed:
            self._chain = None
            self._current = self._load()
        return self._current

    def _load(self) -> Credentials:
        environment = os.environ if self._environment is None else self._environment
        mounted = mounted_values(environment)
        if mounted.get("AWS_ACCESS_KEY_ID"):
            return _from_values(mounted, place=f"the directory {environment[CREDENTIALS_DIR]}")
        if environment.get("AWS_ACCESS_KEY_ID"):
            return _from_values(environment, place="the environment")
        return self._from_chain(environment)

    def _from_chain(self, environment: Mapping[str, str]) -> Credentials:
        from botocore.exceptions import BotoCoreError, ClientError  # slow; see the module's docstring
        from botocore.session import Session

        try:
            if self._chain is None:
                self._chain = Session().get_credentials()
            if self._chain is None:
                raise CredentialsMissing(_missing_credentials_message(environment))
            frozen = self._chain.get_frozen_credentials()
        except ClientError as error:
            raise _service_error(error) from error
        except BotoCoreError as error:
            raise _chain_error(error) from error
        if not frozen.access_key or not frozen.secret_key:
            raise CredentialsMissing(_missing_credentials_message(environment))
        expiry = getattr(self._chain, "_expiry_time", None)
        return Credentials(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token or "",
            expires_at=None if expiry is None else expiry.timestamp(),
        )


def _from_values(values: Mapping[str, str], *, place: str) -> Credentials:
    secret = values.get("AWS_SECRET_ACCESS_KEY", "").strip()
    if not secret:
        raise CredentialsMissing(f"Found AWS_ACCESS_KEY_ID in {place}, but no AWS_SECRET_ACCESS_KEY.")
    return Credentials(
        access_key=values["AWS_ACCESS_KEY_ID"].strip(),
        secret_key=secret,
        session_token=(values.get("AWS_SECURITY_TOKEN") or values.get("AWS_SESSION_TOKEN", "")).strip(),
        expires_at=_parse_expiration(values.get("AWS_CREDENTIAL_EXPIRATION", ""), place),
    )


def _parse_expiration(text: str, place: str) -> float | None:
    if not text:
        return None
    import datetime as dt  # needed only for credentials with an expiration

    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidPlan(f"AWS_CREDENTIAL_EXPIRATION in {place} is not an ISO 8601 date and time.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def _seconds_to_expiry(credentials: Credentials) -> float:
    """Seconds until the credentials expire; infinite if they have no expiration."""
    return math.inf if credentials.expires_at is None else credentials.expires_at - time.time()


def _missing_credentials_message(environment: Mapping[str, str]) -> str:
    places = ["AWS_ACCESS_KEY_ID"]
    if environment.get(CREDENTIALS_DIR):
        places.insert(0, f"the directory {environment[CREDENTIALS_DIR]}")
    profile = environment.get("AWS_DEFAULT_PROFILE") or environment.get("AWS_PROFILE") or "default"
    places += [
        f"the profile {profile!r} of AWS's config and credentials files",
        "web identity (AWS_WEB_IDENTITY_TOKEN_FILE)",
        "container credentials (AWS_CONTAINER_CREDENTIALS_FULL_URI)",
        "instance metadata",
    ]
    return f"No credentials were found in {', '.join(places[:-1])} or {places[-1]}."


def _chain_error(error: Exception) -> TonnageError:
    kind = type(error).__name__
    text = f"Can't load credentials: {kind}: {redact(str(error)).rstrip('.')}."
    if kind in _EXPIRED_ERRORS:
        return CredentialsExpired(text)
    return EndpointUnreachable(text) if kind in _UNREACHABLE_ERRORS else CredentialsMissing(text)


def _service_error(error: ClientError) -> TonnageError:
    error_fields = error.response.get("Error", {})
    code = str(error_fields.get("Code", ""))
    detail = redact(str(error_fields.get("Message", "")))
    text = f"Can't load credentials: {error.operation_name} failed with {code}: {detail}"
    expired = code.startswith("ExpiredToken") or code == "InvalidIdentityToken"
    return (CredentialsExpired if expired else AccessDenied)(text)
