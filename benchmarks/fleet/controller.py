"""The controller's part in the measurement: names other nodes to loaders, and signs tickets. Run by ``fan_out.py``."""

from __future__ import annotations

import http.server
import json
import sys
import time
from pathlib import Path

from tonnage.contract import ReportKind, decode_report
from tonnage.contract.peers import (
    MAX_PEERS,
    Peer,
    PeersAnswer,
    Purpose,
    encode_peers_answer,
    new_grant,
    sign_grant,
)
from tonnage_operator.domain.peers.headers import HeaderReaders


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    key = Path(settings["key"])
    nodes: dict[str, str] = settings["nodes"]
    places: dict[str, int] = {}
    readers = HeaderReaders()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            report = decode_report(self.rfile.read(int(self.headers["Content-Length"])))
            body = b""
            if report.kind is ReportKind.PEERS:
                grant = new_grant(medium="memory", key=report.entry, caller="model", now=time.time())
                names = [name for name in nodes if name != report.node][:MAX_PEERS]
                place = places.setdefault(report.node, len(places))
                readers.note(report.node, report.headers_digest)
                task = readers.task(report.node, time.monotonic(), may_read=True, loading=places)
                other = key.with_name("signing-key")  # a fault: not the peers' own
                signing = (other if other.exists() else key).read_bytes()
                body = encode_peers_answer(
                    PeersAnswer(
                        peers=tuple(Peer(node=name, address=f"{nodes[name]}:9443") for name in names),
                        ticket=sign_grant(grant, Purpose.TICKET, signing),
                        certificates=Path(settings["certificate"]).read_text(),
                        interval=2.0,
                        loading=len(places),
                        place=place,
                        headers_digest=readers.digest,
                        headers=task if settings["shares_headers"] else "",
                    )
                )
            self.send_response(200 if body else 204)
            if body:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    http.server.ThreadingHTTPServer((settings["address"], 8080), Handler).serve_forever()


if __name__ == "__main__":
    main()
