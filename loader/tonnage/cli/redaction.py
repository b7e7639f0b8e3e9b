"""Removes known secrets and signatures from text before it is printed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
_MIN_SECRET_LENGTH = 6
"""Shorter values would match ordinary words."""
_QUERY = re.compile(r"(\bhttps?://[^\s?#'\"<>]*)\?[^\s'\"<>]*", re.IGNORECASE)
_USERINFO = re.compile(r"(\bhttps?://)[^\s/?#@'\"<>]+@", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?i)(x-amz-(?:signature|security-token|credential)|signature|authorization)(\s*[=:]\s*)[^\s&'\"]+"
)
REDACTED = "[hidden]"


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Returns ``text`` without values of secret variables, queries and user info of URLs, and signatures."""
    for name in _SECRET_VARIABLES:
        secret = environment.get(name, "")
        if len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, REDACTED)
    text = _QUERY.sub(r"\1?" + REDACTED, _USERINFO.sub(r"\1", text))
    return _SIGNATURE.sub(r"\1\2" + REDACTED, text)
