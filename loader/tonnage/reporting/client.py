"""One report on its way: a POST on a curl handle, and what became of it.

It imports as little as it can, for the process that takes its leave has a second.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pycurl

from tonnage.source.request_target import SUPPRESS_CONNECT_HEADERS, USER_AGENT

CONNECT_TIMEOUT = 2.0
MAX_RESPONSE_BYTES = 2048
"""Bytes of an answer that are read: a refusal is a sentence."""
MAX_TOKEN_BYTES = 64 * 1024
_PERMANENT_STATUSES = frozenset({400, 404, 405, 413})
"""Answers that the same report will get again."""


class Endpoint(NamedTuple):
    """Where reports go. ``ca_bundle`` and ``token_file`` are paths, empty for none."""

    url: str
    ca_bundle: str = ""
    token_file: str = ""


class DeliveryFailure(NamedTuple):
    """Why a report did not arrive, as a part of a sentence, and whether another try makes sense."""

    message: str
    permanent: bool = False


def read_token(path: str) -> str | DeliveryFailure:
    """Returns the bearer token, or why there is none; it is read anew each time, because Kubernetes renews it."""
    try:
        with Path(path).open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        return DeliveryFailure(f"the token file {path} can't be read ({type(error).__name__})")
    return token if re.fullmatch(r"[!-~]+", token) else DeliveryFailure(f"the token file {path} holds no token")


class ReportClient:
    """Sends reports, one after the other, over a connection that it keeps."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._response = bytearray()
        self._curl = pycurl.Curl()

    def send(self, body: bytes, *, timeout: float) -> DeliveryFailure | None:
        """Sends a report and waits for the answer.

        Args:
            body: The report.
            timeout: How long it may take in all.

        Returns:
            Why it did not arrive; None: it was taken.
        """
        if timeout <= 0:
            return DeliveryFailure("there was no answer in time")
        headers = ["Content-Type: application/json", "Expect:"]
        if self._endpoint.token_file:
            token = read_token(self._endpoint.token_file)
            if isinstance(token, DeliveryFailure):
                return token
            headers.append(f"Authorization: Bearer {token}")
        self._response.clear()
        code = 0
        try:
            self._prepare(headers, body, timeout)
        except pycurl.error as error:  # whatever libcurl thinks of a plan's URL or bundle, no load fails for it
            return DeliveryFailure(f"libcurl refuses to send it ({error.args[0]})", permanent=True)
        try:
            self._curl.perform()
        except pycurl.error as error:
            code = error.args[0]
        return self._check_response(code)

    def _prepare(self, headers: list[str], body: bytes, timeout: float) -> None:
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
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(min(timeout, CONNECT_TIMEOUT) * 1000)))
        curl.setopt(pycurl.TIMEOUT_MS, max(1, int(timeout * 1000)))
        curl.setopt(pycurl.WRITEFUNCTION, self._on_response_data)
        if endpoint.ca_bundle:
            curl.setopt(pycurl.CAINFO, os.fsencode(endpoint.ca_bundle))

    def _on_response_data(self, data: bytes) -> None:
        self._response += data[: MAX_RESPONSE_BYTES - len(self._response)]

    def _check_response(self, code: int) -> DeliveryFailure | None:
        if code:
            from tonnage.source.error_classification import classify  # only failures need it

            connected = bool(self._curl.getinfo(pycurl.PRETRANSFER_TIME))
            failure = classify(curl_code=code, status=None, headers={}, body=b"", label="", connected=connected)
            return DeliveryFailure(failure.message.removeprefix(": ").rstrip("."))
        status = self._curl.getinfo(pycurl.RESPONSE_CODE)
        if 200 <= status < 300:
            return None
        match = re.search(rb'"message"\s*:\s*"([^"\\]{1,300})"', self._response)
        message = match[1].decode("utf-8", "replace") if match else ""
        message = "".join(each for each in message if each.isprintable())
        return DeliveryFailure(
            f"it answers {status}" + (f": {message.rstrip('.')}" if message else ""), status in _PERMANENT_STATUSES
        )

    def close(self) -> None:
        """Closes the connection. It waits for a name that is still being looked up."""
        self._curl.close()
