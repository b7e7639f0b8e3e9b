"""Loads credentials from mounted files, the environment or botocore's chain, and refreshes them before they expire.

Mounted files and the environment are read here, because starting botocore takes longer than a cache hit may. Order:
anonymous; the directory in ``TONNAGE_CREDENTIALS_DIR``; ``AWS_ACCESS_KEY_ID`` and the variables that belong to it,
which take precedence over ``AWS_PROFILE`` in botocore too; then botocore's chain with profiles, assumed roles, SSO, web
identity (IRSA), container credentials (Pod Identity) and instance metadata, in a process that ends by the deadline.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any

from tonnage.errors import CredentialsMissing, InvalidPlan, TonnageError
from tonnage.source.aws_config import CREDENTIALS_DIR, AwsSettings, aws_values, mounted_values
from tonnage.source.sigv4 import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tonnage.source.botocore_process import BotocoreProcess

REFRESH_MARGIN = 300.0
"""Credentials are refreshed this many seconds before they expire."""
BLOCKING_MARGIN = 30.0
"""Until this many seconds before they expire, the current ones are used while botocore gets new ones."""
REFRESH_PAUSE = 20.0
"""Seconds after a failed refresh in which the current credentials are used without another try."""

_HEADER_TEXT = re.compile(r"[\x21-\x2b\x2d\x2e\x30-\x7e]+")
"""What an access key consists of: printable ASCII without space, comma and slash, which separate it from the rest."""
_TOKEN_TEXT = re.compile(r"[\x21-\x7e]+")


class Botocore:
    """Botocore for one run: its process starts when it is first asked, and ends with ``close``.

    Args:
        environment: The variables that it reads.
        deadline: Value of ``time.monotonic()`` by which it must have answered; None: no limit but its own.
        canceled: Polled while it is waited for; True ends the wait.

    Attributes:
        lock: Held while it is asked: a load with peers has several threads that do.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
    ) -> None:
        self.environment = os.environ if environment is None else environment
        self._deadline = deadline
        self._canceled = canceled or (lambda: False)
        self.lock = threading.Lock()
        self._process: BotocoreProcess | None = None

    def settings(self) -> AwsSettings:
        """Returns what variables, mounted files and AWS's files configure for S3. It needs no process.

        Raises:
            TonnageError: The files can't be used.
        """
        from tonnage.source.aws_files import read_settings  # most loads have no such files

        return read_settings(aws_values(self.environment))

    def credentials(self, *, wait: bool = True) -> Credentials | None:
        """Returns the credentials that botocore's chain finds; None if ``wait`` is False and it hasn't answered yet.

        Raises:
            TonnageError: There are none, or they can't be loaded.
        """
        process = self._start()
        if wait:
            answer: dict[str, Any] | None = process.ask("credentials")
        else:
            process.begin("credentials")
            answer = process.poll()
        if answer is None:
            return None
        self.close()
        from tonnage.source.credential_errors import answer_error, missing_credentials_error

        if "error" in answer:
            raise answer_error(answer["error"], self.environment)
        if not answer.get("access_key") or not answer.get("secret_key"):
            raise missing_credentials_error(self.environment)
        place = f"botocore ({answer['method']})"
        return Credentials(
            access_key=_checked("The access key", answer["access_key"], place, _HEADER_TEXT),
            secret_key=answer["secret_key"].strip(),
            session_token=_checked("The session token", answer["session_token"], place, _TOKEN_TEXT),
            expires_at=answer["expires_at"],
        )

    def _start(self) -> BotocoreProcess:
        if self._process is None:
            from tonnage.source.botocore_process import BotocoreProcess  # subprocess is slow to import

            values = aws_values(self.environment)
            self._process = BotocoreProcess(values, deadline=self._deadline, canceled=self._canceled)
        return self._process

    def close(self) -> None:
        """Ends the process and what it started. The next request starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None


class CredentialProvider:
    """Provides the credentials of one source and refreshes them before they expire. Any thread may ask.

    Args:
        anonymous: Requests are not signed; there are no credentials.
        environment: The variables to read; None: those of the process.
        botocore: Reads the same variables; None: one without deadline.
    """

    def __init__(
        self,
        *,
        anonymous: bool = False,
        environment: Mapping[str, str] | None = None,
        botocore: Botocore | None = None,
    ) -> None:
        self._anonymous = anonymous
        self._botocore = botocore or Botocore(environment)
        self._environment = self._botocore.environment
        self._current: Credentials | None = None
        self._failed_at = -math.inf

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
        with self._botocore.lock:
            if self._current is None:
                self._current = self._load()
                return self._current
            remaining = _seconds_to_expiry(self._current)
            if remaining < REFRESH_MARGIN and time.monotonic() - self._failed_at > REFRESH_PAUSE:
                try:
                    self._current = self._load(wait=remaining < BLOCKING_MARGIN) or self._current
                except TonnageError:
                    self._failed_at = time.monotonic()
                    if remaining <= 0:
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
        with self._botocore.lock:
            if failed is None or self._current is None or self._current == failed:
                self._botocore.close()
                self._current = self._load()
            return self._current

    def _load(self, *, wait: bool = True) -> Credentials | None:
        """Returns the credentials; None only if ``wait`` is False and botocore hasn't answered yet."""
        environment = self._environment
        mounted = mounted_values(environment)
        if mounted.get("AWS_ACCESS_KEY_ID"):
            return _from_values(mounted, place=f"the directory {environment[CREDENTIALS_DIR]}")
        values = aws_values(environment)
        if values.get("AWS_ACCESS_KEY_ID"):
            return _from_values(values, place="the environment")
        return self._botocore.credentials(wait=wait)


def _from_values(values: Mapping[str, str], *, place: str) -> Credentials:
    secret = values.get("AWS_SECRET_ACCESS_KEY", "")
    if not secret:
        raise CredentialsMissing(
            f"Found AWS_ACCESS_KEY_ID in {place}, but no AWS_SECRET_ACCESS_KEY.",
            remedy=f"Add AWS_SECRET_ACCESS_KEY to {place}.",
        )
    token = values.get("AWS_SECURITY_TOKEN") or values.get("AWS_SESSION_TOKEN", "")
    return Credentials(
        access_key=_checked("AWS_ACCESS_KEY_ID", values["AWS_ACCESS_KEY_ID"], place, _HEADER_TEXT),
        secret_key=secret,
        session_token=_checked("AWS_SESSION_TOKEN", token, place, _TOKEN_TEXT),
        expires_at=_parse_expiration(values.get("AWS_CREDENTIAL_EXPIRATION", ""), place),
    )


def _checked(name: str, value: str, place: str, allowed: re.Pattern[str]) -> str:
    """Returns a value that becomes part of a header, without white space around it.

    Raises:
        CredentialsMissing: It has characters that a header can't have. The message doesn't repeat it.
    """
    value = value.strip()
    if value and not allowed.fullmatch(value):
        at = next(index for index, each in enumerate(value) if not allowed.fullmatch(each))
        raise CredentialsMissing(
            f"{name} in {place} can't be sent: its character {at + 1} of {len(value)} is {value[at]!a}.",
            remedy=f"Write {name} again as the store issued it: one line, without quotes, blanks and line ends.",
        )
    return value


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
