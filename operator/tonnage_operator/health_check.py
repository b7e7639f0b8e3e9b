"""Checks over the network that webhook and controller respond, with the CAs that their clients use."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp

from tonnage_operator.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_REQUEST_TIMEOUT: Final = 5.0
_POLL_INTERVAL: Final = 1.0


@dataclass(frozen=True)
class Probe:
    """A request to one endpoint, and the HTTP status that it should return."""

    target: str
    method: str
    url: str
    ca_file: Path | None
    expected: int


async def check(probes: Sequence[Probe], *, timeout_seconds: float) -> dict[str, str]:
    """Repeats the probes until all succeed or the time is up; returns the last error of each that failed, by target.

    Args:
        probes: The probes, with distinct targets.
        timeout_seconds: Seconds.

    Raises:
        ConfigError: A CA file can't be used.
    """
    deadline = time.monotonic() + timeout_seconds
    pending = {each.target: each for each in probes}
    contexts = {each.target: _ssl_context(each) for each in probes}
    failures: dict[str, str] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT)) as session:
        while pending:
            for target, probe in list(pending.items()):
                failures[target] = await _send_probe(session, probe, contexts[target])
                if not failures[target]:
                    del pending[target], failures[target]
            if not pending or time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_INTERVAL)
    return failures


def _ssl_context(probe: Probe) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=probe.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{probe.ca_file}, the CA of the {probe.target}, can't be used: {error}") from error


async def _send_probe(session: aiohttp.ClientSession, probe: Probe, context: ssl.SSLContext) -> str:
    """Returns the error; empty on success."""
    try:
        async with session.request(probe.method, probe.url, ssl=context) as response:
            if response.status == probe.expected:
                return ""
            return f"{probe.url} returned {response.status}, expected {probe.expected}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"{probe.url} did not respond: {error!r}"
