"""Serves the access service over HTTP on a Unix socket, for nginx alone."""

from __future__ import annotations

import contextlib
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

import msgspec

from tonnage.contract.peers import AccessAnswer
from tonnage.peer_server.access import Verdict
from tonnage.peer_server.nginx_config import MAX_PROOF_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.peer_server.access import AccessService

IDLE_SECONDS = 120.0


class AccessServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The server; ``serve_forever`` runs in a thread of its own. nginx limits the number of its connections."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, path: Path, service: AccessService) -> None:
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Handler)
        path.chmod(0o600)
        self.service = service
        self.thread = threading.Thread(target=self.serve_forever, name="access", daemon=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that nginx has closed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: AccessServer

    def do_GET(self) -> None:
        """Answers nginx's question about a request."""
        status = self.server.service.authorize(self._token(), self.headers.get("X-Entry", ""))
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """Answers a caller that asks for a pass."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_PROOF_BYTES:
            verdict = Verdict(413, AccessAnswer(message="The request has no valid length."))
            self.close_connection = True
        else:
            verdict = self.server.service.give_pass(self._token(), self.rfile.read(int(length)))
        if verdict.status not in {200, 404}:
            sys.stderr.write(f"refused ({verdict.status}): {verdict.answer.message}\n")
        data = msgspec.json.encode(verdict.answer)
        self.send_response_only(verdict.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _token(self) -> str:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme == "Bearer" else ""

    def address_string(self) -> str:
        """A Unix socket's peers have no address."""
        return "nginx"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as in the base class
        """Requests contain secrets, so they are not logged."""
