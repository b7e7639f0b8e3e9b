"""Small requests against a server with faults."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from support.faulty_server import Fault, expired_token, slow_down
from support.ranges import get_range
from tonnage.errors import (
    EndpointUnreachable,
    FormatDamaged,
    Interrupted,
    Reason,
    RetriesExhausted,
    SourceChanged,
    StoreUnsupported,
    Timeout,
    TLSVerificationFailed,
)
from tonnage.source.client import Client, RangeRequest, Request, get_ranges
from tonnage.source.credentials import CredentialProvider
from tonnage.source.request_target import RequestTarget

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty_server import FaultyServer
    from support.tls import CertificateAuthority
    from tonnage.errors import TonnageError

DATA = bytes(range(256)) * 4096
ANONYMOUS = CredentialProvider(anonymous=True)


@pytest.fixture
def target(faulty_server: FaultyServer) -> RequestTarget:
    stored = faulty_server.put("b/k", DATA)
    return RequestTarget(
        url=f"{faulty_server.url}/b/k",
        size=len(DATA),
        etag=stored.etag.strip('"'),
        precondition_header=f"If-Match: {stored.etag}",
        label="s3://b/k",
    )


def test_a_range_is_exactly_what_was_asked(faulty_server: FaultyServer, target: RequestTarget) -> None:
    assert get_range(target, ANONYMOUS, 10, 300_000) == DATA[10:300_000]
    assert faulty_server.find_requests()[0].range == (10, 299_999)
    assert faulty_server.find_requests()[0].headers["if-match"] == f'"{target.etag}"'


def test_several_ranges_come_in_their_order_and_empty_ones_cost_nothing(
    faulty_server: FaultyServer, target: RequestTarget
) -> None:
    asked = [(5, 9), (7, 7), (0, len(DATA)), (len(DATA), len(DATA))]
    bodies = get_ranges([RangeRequest(target, ANONYMOUS, start, end) for start, end in asked])
    assert bodies == [DATA[start:end] for start, end in asked]
    assert faulty_server.count_requests() == 2


def test_ranges_outside_the_object_are_not_requested(faulty_server: FaultyServer, target: RequestTarget) -> None:
    with pytest.raises(FormatDamaged, match=r"s3://b/k: bytes 0 to 1048577"):
        get_range(target, ANONYMOUS, 0, len(DATA) + 1)
    assert faulty_server.count_requests() == 0


@pytest.mark.parametrize(
    "fault",
    [
        slow_down(),
        Fault(status=500),
        Fault(status=429),
        Fault(reset_after=1000),
        Fault(close_after=1000),
        Fault(drop_connection=True),
        Fault(shift=7),
        Fault(shorten=7),
        Fault(close_after=0),
    ],
)
def test_transient_failures_are_retried(faulty_server: FaultyServer, target: RequestTarget, fault: Fault) -> None:
    faulty_server.add_fault(fault, times=2)
    assert get_range(target, ANONYMOUS, 100, 200_000) == DATA[100:200_000]
    assert faulty_server.count_requests() == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(etag='"other"', headers={"If-Match": "*"}), SourceChanged),
        (Fault(total_offset=5), SourceChanged),
        (Fault(status=412), SourceChanged),
        (Fault(status=404), SourceChanged),
    ],
)
def test_permanent_failures_are_not_retried(
    faulty_server: FaultyServer, target: RequestTarget, fault: Fault, error: type[TonnageError]
) -> None:
    faulty_server.add_fault(fault)
    with pytest.raises(error, match="s3://b/k"):
        get_range(target, ANONYMOUS, 0, 100)
    assert faulty_server.count_requests() == 1


def test_bytes_beyond_the_range_are_dropped(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(Fault(extra=b"x" * 50_000))
    assert get_range(target, ANONYMOUS, 0, 100) == DATA[:100]


def test_a_body_that_is_longer_than_its_range_is_rejected(
    faulty_server: FaultyServer, target: RequestTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tonnage.source.client.UNREACHABLE_SECONDS", 0.5)
    faulty_server.add_fault(Fault(extra=b"x" * 50, announce_extra=True))
    with pytest.raises(StoreUnsupported, match="Content-Length of 150"):
        get_range(target, ANONYMOUS, 0, 100)


def test_chunked_responses_are_accepted(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(Fault(chunked=True))
    assert get_range(target, ANONYMOUS, 0, 100_000) == DATA[:100_000]


def test_a_server_that_ignores_ranges_is_refused_at_once_without_reading_its_body(
    faulty_server: FaultyServer, target: RequestTarget
) -> None:
    faulty_server.add_fault(Fault(ignore_range=True))
    with pytest.raises(StoreUnsupported, match="it ignores ranges") as caught:
        get_range(target, ANONYMOUS, 0, 100)
    assert "answers range requests with 206" in caught.value.remedy
    assert faulty_server.count_requests() == 1


def test_the_whole_object_is_accepted_with_status_200(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(Fault(ignore_range=True))
    assert get_range(target, ANONYMOUS, 0, len(DATA)) == DATA
    assert faulty_server.count_requests() == 1


def test_retry_after_is_obeyed(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(slow_down(retry_after="1"), times=1)
    get_range(target, ANONYMOUS, 0, 10)
    first, second = faulty_server.find_requests()
    assert second.time - first.time >= 1.0


def test_a_too_long_retry_after_ends_the_retries(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(slow_down(retry_after="86400"))
    with pytest.raises(RetriesExhausted, match="busy or unavailable"):
        get_range(target, ANONYMOUS, 0, 10)
    assert faulty_server.count_requests() == 1


def test_attempts_are_limited_and_counted(
    faulty_server: FaultyServer, target: RequestTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tonnage.source.backoff.INITIAL_BACKOFF_SECONDS", 0.001)
    faulty_server.add_fault(Fault(status=500))
    with pytest.raises(RetriesExhausted, match="7 attempts failed"):
        get_range(target, ANONYMOUS, 0, 10)
    assert faulty_server.count_requests() == 7


def test_the_deadline_ends_a_stalled_request(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(Fault(stall_before=True))
    started = time.monotonic()
    with pytest.raises(Timeout, match="s3://b/k"):
        get_range(target, ANONYMOUS, 0, 10, deadline=started + 0.4)
    assert time.monotonic() - started < 3


def test_a_stalled_response_is_aborted_and_retried(
    faulty_server: FaultyServer, target: RequestTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tonnage.source.client.STALL_SECONDS", 1)
    faulty_server.add_fault(Fault(stall_after=1000), times=1)
    assert get_range(target, ANONYMOUS, 0, 100_000) == DATA[:100_000]
    assert faulty_server.count_requests() == 2


def test_cancellation_is_noticed(faulty_server: FaultyServer, target: RequestTarget) -> None:
    faulty_server.add_fault(Fault(stall_before=True))
    with pytest.raises(Interrupted):
        get_ranges([RangeRequest(target, ANONYMOUS, 0, 10)], canceled=lambda: faulty_server.count_requests() > 0)


def test_connections_are_reused(faulty_server: FaultyServer, target: RequestTarget) -> None:
    with Client(connections=4) as client:
        for _ in range(3):
            responses = client.run([Request(target=target, provider=ANONYMOUS, head=True)] * 20)
            assert all(response.status == 200 for response in responses)
    assert faulty_server.count_requests() == 60
    assert faulty_server.connections <= 4


def test_a_body_is_truncated_at_its_limit(target: RequestTarget) -> None:
    with Client() as client:
        response = client.run([Request(target=target, provider=ANONYMOUS, limit=100_000)])[0]
    assert response.body == DATA[:100_000]


def test_too_many_headers_are_rejected(
    faulty_server: FaultyServer, target: RequestTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tonnage.source.backoff.INITIAL_BACKOFF_SECONDS", 0.001)
    faulty_server.add_fault(Fault(headers={f"x-{number}": "y" * 8000 for number in range(60)}))
    with Client() as client:
        response = client.run([Request(target=target, provider=ANONYMOUS)])[0]
    assert response.failure is not None


def test_expired_credentials_are_refreshed_once_and_the_request_is_retried(
    faulty_server: FaultyServer, target: RequestTarget, tmp_path: Path
) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("old")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("s")
    provider = CredentialProvider(environment={"TONNAGE_CREDENTIALS_DIR": str(tmp_path)})
    provider.current()
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("new")
    signed = RequestTarget(url=target.url, region="us-east-1", size=target.size, label=target.label)
    faulty_server.add_fault(expired_token(), when=lambda request: "Credential=old/" in request.headers["authorization"])
    assert get_range(signed, provider, 0, 10) == DATA[:10]
    assert faulty_server.count_requests() == 2


def test_credentials_that_stay_expired_are_reported(faulty_server: FaultyServer, target: RequestTarget) -> None:
    provider = CredentialProvider(environment={"AWS_ACCESS_KEY_ID": "old", "AWS_SECRET_ACCESS_KEY": "s"})
    signed = RequestTarget(url=target.url, region="us-east-1", size=target.size, label=target.label)
    faulty_server.add_fault(expired_token())
    with Client() as client:
        response = client.run([Request(target=signed, provider=provider)])[0]
    assert response.failure is not None
    assert response.failure.reason is Reason.CREDENTIALS_EXPIRED
    assert faulty_server.count_requests() == 1


def test_signed_requests_follow_no_redirect(faulty_server: FaultyServer, target: RequestTarget) -> None:
    provider = CredentialProvider(environment={"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s"})
    signed = RequestTarget(url=target.url, region="us-east-1", size=target.size, label=target.label)
    faulty_server.add_fault(Fault(status=302, headers={"Location": f"{faulty_server.url}/elsewhere"}))
    with pytest.raises(EndpointUnreachable, match="responds with a redirect"):
        get_range(signed, provider, 0, 10)
    assert faulty_server.count_requests(key="elsewhere") == 0


def test_unsigned_requests_follow_redirects_with_range_and_pin(
    faulty_server: FaultyServer, target: RequestTarget
) -> None:
    faulty_server.add_fault(Fault(status=302, headers={"Location": f"{faulty_server.url}/mirror/k"}), key="b/k")
    faulty_server.put("mirror/k", DATA)
    assert get_range(target, ANONYMOUS, 3, 9) == DATA[3:9]
    assert faulty_server.find_requests(key="mirror/k")[0].headers["if-match"] == f'"{target.etag}"'


def test_an_unreachable_server_fails_within_seconds() -> None:
    target = RequestTarget(url="http://127.0.0.1:1/b/k", size=10, label="s3://b/k")
    started = time.monotonic()
    with pytest.raises(EndpointUnreachable, match=r"can't connect .* attempts failed"):
        get_range(target, ANONYMOUS, 0, 10)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_answers_a_connection_is_unreachable_and_not_slow(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With http its queue of connections is full; with https the handshake has no answer."""
    monkeypatch.setattr("tonnage.source.client.CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("tonnage.source.client.UNREACHABLE_SECONDS", 0.5)
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0 if scheme == "http" else 8))
        for _ in range(3 if scheme == "http" else 0):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/b/k"
        with pytest.raises(EndpointUnreachable, match="connecting to its server timed out"):
            get_range(RequestTarget(url=url, size=10, label="s3://b/k"), ANONYMOUS, 0, 10)


def test_an_untrusted_certificate_is_rejected_at_once(faulty_tls_server: FaultyServer) -> None:
    faulty_tls_server.put("b/k", DATA)
    target = RequestTarget(url=f"{faulty_tls_server.url}/b/k", size=len(DATA), label="s3://b/k")
    started = time.monotonic()
    with pytest.raises(TLSVerificationFailed, match="s3://b/k"):
        get_range(target, ANONYMOUS, 0, 10)
    assert time.monotonic() - started < 2
    assert faulty_tls_server.count_requests() == 0


def test_a_certificate_of_a_trusted_authority_is_accepted(
    faulty_tls_server: FaultyServer, authority: CertificateAuthority
) -> None:
    faulty_tls_server.put("b/k", DATA)
    target = RequestTarget(
        url=f"{faulty_tls_server.url}/b/k", size=len(DATA), ca_bundle=str(authority.bundle), label="s3://b/k"
    )
    assert get_range(target, ANONYMOUS, 0, 10) == DATA[:10]
