"""Verifies certificates with a TLS handshake in memory."""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def secret_value(secret: dict[str, Any], key: str) -> str:
    """Returns the decoded value of a Secret's key."""
    return base64.b64decode(secret["data"][key]).decode()


def handshake(secret: dict[str, Any], *, ca_pem: str, server_name: str, folder: Path) -> dict[str, Any]:
    """Returns the server's certificate as verified by a client that trusts ``ca_pem`` and expects ``server_name``.

    Raises:
        ssl.SSLError: The client did not trust the server.
    """
    cert, key = folder / "tls.crt", folder / "tls.key"
    cert.write_text(secret_value(secret, "tls.crt"))
    key.write_text(secret_value(secret, "tls.key"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cadata=ca_pem)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server, server_hostname=server_name)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [client_side, server_side]
    for _ in range(10):
        for each in list(pending):
            try:
                each.do_handshake()
                pending.remove(each)
            except ssl.SSLWantReadError:
                continue
        if not pending:
            return dict(client_side.getpeercert() or {})
    raise AssertionError("the handshake did not complete")
