"""A report endpoint on a real socket, with TLS if it has a CA: records reports, or fails as configured."""

from __future__ import annotations

import http.server
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tonnage.contract import (
    Report,
    Reporting,
    ReportKind,
    ReservationAnswer,
    decode_report,
    encode_reservation_answer,
)
from tonnage.contract.peers import encode_peers_answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tls import CertificateAuthority
    from tonnage.contract.peers import PeersAnswer


@dataclass(frozen=True)
class ReceivedReport:
    """A recorded report."""

    report: Report
    token: str
    path: str
    time: float


class ReportServer:
    """The endpoint.

    ``next_statuses``: statuses of the next responses, then 204. ``next_answers``: answers to the next reservations; the
    last one is repeated. ``answer_peers``: answers reports that ask for peers. ``unresponsive``: no response.
    """

    def __init__(self, folder: Path, authority: CertificateAuthority | None = None) -> None:
        self.received: list[ReceivedReport] = []
        self.connections = 0
        self.next_statuses: list[int] = []
        self.next_answers: list[ReservationAnswer] = []
        self.unresponsive = False
        self.answer_peers: Callable[[Report], PeersAnswer] | None = None
        self.token_file = folder / "token"
        self.token_file.write_text("first-token\n")
        self._authority = authority
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler_class())
        self._server.daemon_threads = False
        if authority is not None:
            context = authority.server_context()
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="report-server")

    @property
    def url(self) -> str:
        scheme, host = ("https", "localhost") if self._authority else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self._server.server_port}/v1/reports"

    def reporting_config(self, *, interval: float = 0.05) -> Reporting:
        """Returns the plan's configuration for this endpoint."""
        bundle = str(self._authority.bundle) if self._authority else ""
        return Reporting(url=self.url, ca_bundle=bundle, token_file=str(self.token_file), interval=interval)

    @property
    def report_kinds(self) -> list[str]:
        return [each.report.kind.value for each in list(self.received)]

    def wait_for(self, count: int, *, timeout: float = 10) -> None:
        """Waits until ``count`` reports have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, timeout), self.report_kinds

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _receive(self, handler: http.server.BaseHTTPRequestHandler) -> tuple[int, bytes]:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.unresponsive:
            self._released.wait(30)
        with self._changed:
            status = self.next_statuses.pop(0) if self.next_statuses else 204
            body = b'{"message": "Rejected by the test server."}'
            if status == 204:
                body, report = b"", decode_report(data)
                self.received.append(ReceivedReport(report, token, handler.path, time.monotonic()))
                if report.kind is ReportKind.RESERVATION and self.next_answers:
                    answer = self.next_answers.pop(0) if len(self.next_answers) > 1 else self.next_answers[0]
                    status, body = 200, encode_reservation_answer(answer)
                if report.kind is ReportKind.PEERS and self.answer_peers is not None:
                    status, body = 200, encode_peers_answer(self.answer_peers(report))
            self._changed.notify_all()
        return status, body

    def _handler_class(self) -> type[http.server.BaseHTTPRequestHandler]:
        report_server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5
            disable_nagle_algorithm = True  # as production servers do

            def setup(self) -> None:
                report_server.connections += 1
                super().setup()

            def do_POST(self) -> None:
                status, body = report_server._receive(self)
                self.send_response(status)
                if body:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the client closed the connection, or does not use TLS
                    self.close_connection = True

        return Handler
