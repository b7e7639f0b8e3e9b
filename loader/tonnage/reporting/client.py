"""Sends reports by POST. Imports little, because a terminating holder has only one second."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pycurl

from tonnage.source.request_target import SUPPRESS_CONNECT_HEADERS, USER_AGENT, was_connected

CONNECT_TIMEOUT = 2.0
MAX_RESPONSE_BYTES = 16384
"""Bytes of a response that are read. An error message is one sentence, the answer to a reservation a few."""
MAX_TOKEN_BYTES = 64 * 1024
MAX_CA_BYTES = 256 * 1024
_PERMANENT_STATUSES = frozenset({400, 404, 405, 413})
"""Statuses that retrying the same report would not change."""


class Endpoint(NamedTuple):
    """The report endpoint. ``ca_bundle`` and ``token_file`` are paths; empty for none."""

    url: str
    ca_bundle: str = ""
    token_file: str = ""


class DeliveryFailure(NamedTuple):
    """Why a report was not delivered, as part of a sentence. If ``permanent``, a retry would fail too."""

    message: str
    permanent: bool = False


def read_token(path: str) -> str | DeliveryFailure:
    """Returns the bearer token or a failure. Call it for each report, because Kubernetes rotates the token."""
    try:
        with Path(path).open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        return DeliveryFailure(f"the token file {path} can't be read ({type(error).__name__})")
    return token if re.fullmatch(r"[!-~]+", token) else DeliveryFailure(f"the token file {path} contains no token")


def _read_line_of_certificates(path: str) -> bytes:
    """Returns the PEM of a CA bundle that has the base64 of each certificate in one line; empty for all others.

    The operator writes it so into an annotation, from which the kubelet makes the file.
    """
    try:
        with Path(path).open("rb") as file:
            line = file.read(MAX_CA_BYTES)
    except OSError:  # libcurl reports it
        return b""
    if not re.fullmatch(rb"[A-Za-z0-9+/= ]+\s*", line):
        return b""
    lines = [b"\n".join(each[start : start + 64] for start in range(0, len(each), 64)) for each in line.split()]
    return b"".join(b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % each for each in lines)


class ReportClient:
    """Sends reports one at a time over a persistent connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._response = bytearray()
        self._curl = pycurl.Curl()

    def send(self, body: bytes, *, timeout: float) -> DeliveryFailure | None:
        """Sends a report and waits for the response.

        Args:
            body: The encoded report.
            timeout: Total seconds, connecting included.

        Returns:
            Why it was not delivered; None if it was accepted.
        """
        if timeout <= 0:
            return DeliveryFailure("timed out")
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
        except pycurl.error as error:  # an invalid URL or CA bundle must not fail the load
            return DeliveryFailure(f"libcurl rejected the request ({error.args[0]})", permanent=True)
        try:
            self._curl.perform()
        except pycurl.error as error:
            code = error.args[0]
        return self._check_response(code)

    @property
    def response(self) -> bytes:
        """The body of the latest response, at most ``MAX_RESPONSE_BYTES``."""
        return bytes(self._response)

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
        if certificates := _read_line_of_certificates(endpoint.ca_bundle):
            curl.setopt(pycurl.CAINFO_BLOB, certificates)
        elif endpoint.ca_bundle:
            curl.setopt(pycurl.CAINFO, os.fsencode(endpoint.ca_bundle))

    def _on_response_data(self, data: bytes) -> None:
        self._response += data[: MAX_RESPONSE_BYTES - len(self._response)]

    def _check_response(self, code: int) -> DeliveryFailure | None:
        if code:
            from tonnage.source.error_classification import classify  # only failures need it

            connected = was_connected(self._curl)
            failure = classify(curl_code=code, status=None, headers={}, body=b"", label="", connected=connected)
            return DeliveryFailure(failure.message.removeprefix(": ").rstrip("."))
        status = self._curl.getinfo(pycurl.RESPONSE_CODE)
        if 200 <= status < 300:
            return None
        match = re.search(rb'"message"\s*:\s*"([^"\\]{1,300})"', self._response)
        message = match[1].decode("utf-8", "replace") if match else ""
        message = "".join(each for each in message if each.isprintable())
        return DeliveryFailure(
            f"the endpoint responded with {status}" + (f": {message.rstrip('.')}" if message else ""),
            status in _PERMANENT_STATUSES,
        )

    def close(self) -> None:
        """Closes the connection. Blocks while a DNS lookup is in progress."""
        self._curl.close()
