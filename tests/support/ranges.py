"""Reads one range of an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.source.client import RangeRequest, get_ranges

if TYPE_CHECKING:
    from tonnage.source.credentials import CredentialProvider
    from tonnage.source.request_target import RequestTarget


def get_range(
    target: RequestTarget, provider: CredentialProvider, start: int, end: int, *, deadline: float | None = None
) -> bytes:
    return get_ranges([RangeRequest(target, provider, start, end)], deadline=deadline)[0]
