"""Resolving against a store with faults."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest
from msgspec import structs

from support.faulty_server import Fault, FaultyServer, expired_token, slow_down
from support.ranges import get_range
from support.tls import make_certificate_authority
from tonnage.contract import ObjectPin, Plan, S3Source
from tonnage.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsExpired,
    CredentialsMissing,
    InvalidPlan,
    NameCollision,
    NoTensorFiles,
    ObjectNotFound,
    RequestTimeTooSkewed,
    SourceChanged,
    StoreUnsupported,
    Timeout,
    TLSVerificationFailed,
)
from tonnage.source.aws_config import find_ca_bundle
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from support.tls import CertificateAuthority
    from tonnage.source.resolve import ResolvedRevision

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Options(TypedDict, total=False):
    """The fields of a source that a test sets."""

    prefix: str
    keys: tuple[str, ...]
    ca_bundle: str
    anonymous: bool
    objects: tuple[ObjectPin, ...]


def environment(server: FaultyServer, **more: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_CONFIG_FILE": "/dev/null",
        **more,
    }


def resolve_source(
    server: FaultyServer,
    *,
    deadline: float | None = None,
    env: Mapping[str, str] | None = None,
    **source: Unpack[Options],
) -> ResolvedRevision:
    source = source or {"prefix": ""}
    plan = Plan(sources=(S3Source(bucket="b", **source),))
    return resolve(plan, environment=environment(server, **(env or {})), deadline=deadline)


@pytest.fixture
def server(faulty_server: FaultyServer) -> FaultyServer:
    faulty_server.put("b/a.tensors", b"aaaa")
    faulty_server.put("b/config.json", b"{}")
    return faulty_server


def test_listings_are_read_page_by_page() -> None:
    with FaultyServer(page_size=7) as server:
        for number in range(30):
            server.put(f"b/{number:02d} +&.tensors", b"x" * number)
        resolved = resolve_source(server)
        assert [each.pin.size for each in resolved.objects] == list(range(30))
        assert sum(request.query.get("list-type") == "2" for request in server.find_requests()) == 5


def test_heads_share_few_connections(faulty_server: FaultyServer) -> None:
    for number in range(100):
        faulty_server.put(f"b/{number:03d}.tensors", b"x")
    resolve_source(faulty_server)
    assert faulty_server.count_requests() == 101
    assert faulty_server.connections <= 32


def test_requests_are_signed_with_the_session_token(server: FaultyServer) -> None:
    resolve_source(server, env={"AWS_SESSION_TOKEN": "token", "AWS_REGION": "eu-west-1"})
    for request in server.find_requests():
        assert "/eu-west-1/s3/aws4_request" in request.headers["authorization"]
        assert "x-amz-security-token" in request.headers["authorization"]
        assert request.headers["x-amz-security-token"] == "token"


def test_anonymous_requests_carry_nothing(server: FaultyServer) -> None:
    resolve_source(server, prefix="", anonymous=True)
    assert not any("authorization" in request.headers for request in server.find_requests())


def test_a_busy_store_is_asked_again(server: FaultyServer) -> None:
    server.add_fault(slow_down(), times=3)
    assert len(resolve_source(server).objects) == 2


def test_the_region_that_the_store_names_is_used_from_then_on(server: FaultyServer) -> None:
    wrong = Fault(
        status=400,
        body=b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-west-3</Region></Error>",
    )
    server.add_fault(wrong, when=lambda request: "/eu-west-3/" not in request.headers["authorization"])
    resolved = resolve_source(server)
    assert resolved.objects[0].target.region == "eu-west-3"


def test_the_region_comes_from_a_head_without_a_body_too(server: FaultyServer) -> None:
    wrong = Fault(status=301, headers={"x-amz-bucket-region": "eu-west-3"})
    server.add_fault(wrong, when=lambda request: "/eu-west-3/" not in request.headers["authorization"])
    assert resolve_source(server, keys=("a.tensors",)).objects[0].target.region == "eu-west-3"


def test_a_store_that_rejects_every_region_is_not_retried_forever(server: FaultyServer) -> None:
    server.add_fault(Fault(status=301, headers={"x-amz-bucket-region": "eu-west-3"}))
    with pytest.raises(AccessDenied, match="in the region eu-west-3"):
        resolve_source(server)
    assert server.count_requests() == 2


def test_a_head_that_is_denied_is_explained_by_a_get(server: FaultyServer) -> None:
    server.add_fault(Fault(status=403), method="HEAD")
    server.add_fault(Fault(status=403, body=DENIED), method="GET", key="b/a.tensors")
    with pytest.raises(AccessDenied, match=r"s3://b/a.tensors: access is denied.*403 AccessDenied"):
        resolve_source(server, keys=("a.tensors",))


def test_an_object_is_resolved_if_only_get_is_allowed(server: FaultyServer) -> None:
    server.add_fault(Fault(status=403), method="HEAD")
    resolved = resolve_source(server)
    assert [each.pin.size for each in resolved.objects] == [4, 2]


def test_an_expired_token_is_reported_although_heads_have_no_body(server: FaultyServer) -> None:
    server.add_fault(Fault(status=400), method="HEAD")
    server.add_fault(expired_token(), method="GET", key="b/a.tensors")
    with pytest.raises(CredentialsExpired, match="have expired"):
        resolve_source(server, keys=("a.tensors",))


def test_a_missing_bucket_is_reported_although_heads_have_no_body(faulty_server: FaultyServer) -> None:
    with pytest.raises(BucketNotFound):
        resolve_source(faulty_server, keys=("a.tensors",))


def test_clock_skew_states_the_difference(server: FaultyServer) -> None:
    body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>"
    server.add_fault(Fault(status=403, body=body, headers={"Date": "Sat, 01 Jan 2000 00:00:00 GMT"}))
    with pytest.raises(RequestTimeTooSkewed, match=r"\d+ s ahead of the store's"):
        resolve_source(server)


def test_a_server_that_is_not_an_s3_server_is_reported(server: FaultyServer) -> None:
    server.add_fault(Fault(status=200, body=b"<!DOCTYPE html><html><p>Welcome</html>"))
    with pytest.raises(StoreUnsupported, match="is this an S3 endpoint"):
        resolve_source(server)


def test_a_server_without_range_support_is_reported(server: FaultyServer) -> None:
    server.add_fault(Fault(headers={"Accept-Ranges": "none"}), method="HEAD")
    with pytest.raises(StoreUnsupported, match="does not support ranges"):
        resolve_source(server)


def test_the_deadline_is_kept(server: FaultyServer) -> None:
    server.add_fault(Fault(stall_before=True))
    started = time.monotonic()
    with pytest.raises(Timeout):
        resolve_source(server, deadline=started + 0.5)
    assert time.monotonic() - started < 3


def test_tls_needs_a_trusted_certificate(
    faulty_tls_server: FaultyServer, authority: CertificateAuthority, tmp_path: Path
) -> None:
    faulty_tls_server.put("b/a.tensors", b"aaaa")
    with pytest.raises(TLSVerificationFailed):
        resolve_source(faulty_tls_server)
    assert resolve_source(faulty_tls_server, env={"AWS_CA_BUNDLE": str(authority.bundle)}).objects
    assert resolve_source(faulty_tls_server, prefix="", ca_bundle=str(authority.bundle)).objects
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    with pytest.raises(TLSVerificationFailed):
        resolve_source(faulty_tls_server, prefix="", ca_bundle=str(garbage))


def test_the_administrators_cas_are_trusted_beside_those_of_the_machine(
    faulty_tls_server: FaultyServer, authority: CertificateAuthority, tmp_path: Path
) -> None:
    faulty_tls_server.put("b/a.tensors", b"aaaa")
    added = {"TONNAGE_CA_PEM": authority.bundle.read_text()}
    assert resolve_source(faulty_tls_server, env=added).objects
    other = make_certificate_authority(tmp_path, "other")
    assert resolve_source(faulty_tls_server, env={**added, "AWS_CA_BUNDLE": str(other.bundle)}).objects
    with pytest.raises(TLSVerificationFailed):  # the object's own CA replaces all others
        resolve_source(faulty_tls_server, prefix="", ca_bundle=str(other.bundle), env=added)
    machine = Path(find_ca_bundle("", {})).read_bytes()
    assert Path(find_ca_bundle("", added)).read_bytes().startswith(machine)


def test_missing_credentials_are_reported_before_any_request(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(CredentialsMissing):
        resolve_source(server, env={"AWS_ACCESS_KEY_ID": ""})
    assert server.count_requests() == 0


@pytest.mark.parametrize("key", ["x/../a.tensors", "x/./a.tensors", "../a.tensors"])
def test_keys_that_can_not_be_file_names_are_rejected(faulty_server: FaultyServer, key: str) -> None:
    faulty_server.put("b/b.tensors", b"x")
    faulty_server.put(f"b/{key}", b"x")
    with pytest.raises(NameCollision):
        resolve_source(faulty_server)


def test_dots_above_the_prefix_can_not_be_requested_either(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/x/../a.tensors", b"x")
    with pytest.raises(NameCollision, match="URLs can't have"):
        resolve_source(faulty_server, prefix="x/../")


def test_a_prefix_with_only_directories_has_no_model(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/m/", b"")
    with pytest.raises(NoTensorFiles, match="only empty directories"):
        resolve_source(faulty_server, prefix="m/")


def test_a_prefix_without_a_trailing_slash_is_a_directory(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/v7/a.tensors", b"x")
    faulty_server.put("b/v70/b.tensors", b"x")
    assert [each.path for each in resolve_source(faulty_server, prefix="v7").objects] == ["a.tensors"]


def test_versions_that_may_not_be_read_by_their_ids_are_pinned_by_etag(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/a.tensors", b"aaaa", version_id="v1")
    faulty_server.add_fault(Fault(status=403, body=DENIED), when=lambda request: "versionId" in request.query)
    resolved = resolve_source(faulty_server)
    target = resolved.objects[0].target
    assert resolved.objects[0].pin.version_id == "v1"
    assert "versionId" not in target.url
    assert target.precondition_header.startswith("If-Match: ")
    assert "ETag only" in resolved.notes[0]
    again = resolve_source(faulty_server, prefix="", objects=resolved.sources[0].objects)
    assert (again.objects, again.notes) == (resolved.objects, resolved.notes)


def test_the_version_null_is_not_a_version(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/a.tensors", b"aaaa", headers={"x-amz-version-id": "null"})
    assert resolve_source(faulty_server).objects[0].pin.version_id == ""


def test_a_pinned_plan_needs_one_head_per_object_and_no_listing(server: FaultyServer) -> None:
    first = resolve_source(server)
    before = server.count_requests()
    resolve_source(server, prefix="", objects=first.sources[0].objects)
    assert [request.method for request in server.find_requests()[before:]] == ["HEAD", "HEAD"]


@pytest.mark.parametrize("change", [{"size": 5}, {"etag": "other"}])
def test_a_pin_that_no_longer_matches_is_a_changed_source(server: FaultyServer, change: dict[str, object]) -> None:
    objects = tuple(structs.replace(pin, **change) for pin in resolve_source(server).sources[0].objects)
    with pytest.raises(SourceChanged, match=r"s3://b/a\.tensors"):
        resolve_source(server, prefix="", objects=objects)


def test_pins_outside_of_the_prefix_are_rejected(server: FaultyServer) -> None:
    with pytest.raises(InvalidPlan, match="not below this prefix"):
        resolve_source(server, prefix="m/", objects=(ObjectPin(key="other/a.tensors", size=1),))


@pytest.mark.parametrize("source", [{}, {"prefix": "", "keys": ("a",)}])
def test_a_source_needs_a_prefix_or_keys(server: FaultyServer, source: Options) -> None:
    plan = Plan(sources=(S3Source(bucket="b", **source),))
    with pytest.raises(InvalidPlan, match="either a prefix or keys"):
        resolve(plan, environment=environment(server))


def test_nothing_secret_is_in_an_error(server: FaultyServer) -> None:
    server.add_fault(Fault(status=403, body=DENIED.replace(b"Access Denied", b"no X-Amz-Signature=SECRET&b for key")))
    with pytest.raises(AccessDenied) as caught:
        resolve_source(server)
    assert "SECRET" not in str(caught.value)


def test_an_etag_of_any_characters_pins(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/a.tensors", b"aaaa", etag='"\xe9\xff"')
    resolved = resolve_source(faulty_server)
    assert get_range(resolved.objects[0].target, resolved.providers[0], 0, 4) == b"aaaa"


def test_a_bad_request_without_a_message_is_explained_even_if_it_names_a_region(server: FaultyServer) -> None:
    server.add_fault(Fault(status=400, headers={"x-amz-bucket-region": "us-east-1"}), method="HEAD")
    server.add_fault(expired_token(), method="GET", key="b/a.tensors")
    with pytest.raises(CredentialsExpired):
        resolve_source(server, keys=("a.tensors",))


def test_keys_can_not_forge_lines_of_a_message(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/x.tensors", b"x")
    with pytest.raises(ObjectNotFound) as caught:
        resolve_source(faulty_server, keys=("a\nb.tensors",))
    assert "\n" not in str(caught.value)


def test_without_a_content_length_the_size_is_read_by_get(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/a.tensors", b"aaaa")
    faulty_server.add_fault(Fault(headers={"Content-Length": None}), method="HEAD")
    assert resolve_source(faulty_server).objects[0].pin.size == 4
