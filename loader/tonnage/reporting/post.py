"""One report on its way: a POST on a curl handle, and what became of it.

It imports as little as it can, for the process that takes its leave has a second.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pycurl

from tonnage.source.target import SUPPRESS_CONNECT_HEADERS, USER_AGENT

CONNECT_SECONDS = 2.0
ANSWER_LIMIT = 2048
"""Bytes of an answer that are read: a refusal is a sentence."""
TOKEN_LIMIT = 64 * 1024
_PERMANENT = frozenset({400, 404, 405, 413})
"""Answers that the same report will get again."""


class Endpoint(NamedTuple):
    """Where reports go. ``ca_bundle`` and ``token_file`` are paths, empty for none."""

    url: str
    ca_bundle: str = ""
    token_file: str = ""


class Failure(NamedTuple):
    """Why a report did not arrive, as a part of a sentence, and whether another try makes sense."""

    message: str
    permanent: bool = False


def read_token(path: str) -> str | Failure:
    """Returns the bearer token, or why there is none; it is read anew each time, because Kubernetes renews it."""
    try:
        with Path(path).open("rb") as file:
            token = file.read(TOKEN_LIMIT).decode("ascii").strip()
    except (OSError, ValueError) as error:
        return Failure(f"the token file {path} can't be read ({type(error).__name__})")
    return token if re.fullmatch(r"[!-~]+", token) else Failure(f"the token file {path} holds no token")


class Post:
    """Sends reports, one after the other, over a connection that it keeps."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._answer = bytearray()
        self._curl = pycurl.Curl()

    def send(self, body: bytes, *, seconds: float) -> Failure | None:
        """Sends a report and waits for the answer.

        Args:
            body: The report.
            seconds: How long it may take in all.

        Returns:
            Why it did not arrive; None: it was taken.
        """
        if seconds <= 0:
            return Failure("there was no answer in time")
        headers = ["Content-Type: application/json", "Expect:"]
        if self._endpoint.token_file:
            token = read_token(self._endpoint.token_file)
            if isinstance(token, Failure):
                return token
            headers.append(f"Authorization: Bearer {token}")
        self._answer.clear()
        code = 0
        try:
            self._prepare(headers, body, seconds)
        except pycurl.error as error:  # whatever libcurl thinks of a plan's URL or bundle, no load fails for it
            return Failure(f"libcurl refuses to send it ({error.args[0]})", permanent=True)
        try:
            self._curl.perform()
        except pycurl.error as error:
            code = error.args[0]
        return self._outcome(code)

    def _prepare(self, headers: list[str], body: bytes, seconds: float) -> None:
        endpoint, curl = self._endpoint, self._curl
        curl.reset()
        curl.setopt(pycurl.URL, endpoint.url.encode())
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.USERAGENT, USER_AGENT)
        curl.setopt(pycurl.POSTFIELDS, body)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(SUPPRESS_CONNECT_HEADERS, 1)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(min(seconds, CONNECT_SECONDS) * 1000)))
        curl.setopt(pycurl.TIMEOUT_MS, max(1, int(seconds * 1000)))
        curl.setopt(pycurl.WRITEFUNCTION, self._on_answer)
        if endpoint.ca_bundle:
            curl.setopt(pycurl.CAINFO, os.fsencode(endpoint.ca_bundle))

    def _on_answer(self, data: bytes) -> None:
        self._answer += data[: ANSWER_LIMIT - len(self._answer)]

    def _outcome(self, code: int) -> Failure | None:
        if code:
            from tonnage.source.failures import classify  # only failures need it

            connected = bool(self._curl.getinfo(pycurl.PRETRANSFER_TIME))
            failure = classify(curl_code=code, status=None, headers={}, body=b"", label="", connected=connected)
            return Failure(failure.message.removeprefix(": ").rstrip("."))
        status = self._curl.getinfo(pycurl.RESPONSE_CODE)
        if 200 <= status < 300:
            return None
        said = re.search(rb'"message"\s*:\s*"([^"\\]{1,300})"', self._answer)
        words = said[1].decode("utf-8", "replace") if said else ""
        words = "".join(each for each in words if each.isprintable())
        return Failure(f"it answers {status}" + (f": {words.rstrip('.')}" if words else ""), status in _PERMANENT)

    def close(self) -> None:
        """Closes the connection. It waits for a name that is still being looked up."""
        self._curl.close()
