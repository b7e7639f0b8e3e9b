"""Resolving objects by URL."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import quote

import pytest
from msgspec import structs

from support.faulty_server import Fault, FaultyServer
from tonnage.contract import HttpSource, Plan
from tonnage.errors import (
    CredentialsExpired,
    EndpointUnreachable,
    InvalidPlan,
    NoTensorFiles,
    SourceChanged,
    StoreUnsupported,
    TonnageError,
)
from tonnage.source.client import RangeRequest, get_ranges
from tonnage.source.request_target import is_inner_address, is_local_address
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Unpack

    from tonnage.contract import ObjectPin
    from tonnage.source.resolve import ResolvedRevision

EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class Options(TypedDict, total=False):
    """The fields of a source that a test sets."""

    urls: tuple[str, ...]
    urls_file: str
    urls_env: str
    objects: tuple[ObjectPin, ...]


def resolve_urls(
    *given: str, environment: Mapping[str, str] | None = None, **source: Unpack[Options]
) -> ResolvedRevision:
    source = source or {"urls": given}
    return resolve(Plan(sources=(HttpSource(**source),)), environment=environment or {})


def read(resolved: ResolvedRevision) -> list[bytes]:
    range_requests = [
        RangeRequest(each.target, resolved.providers[each.source], 0, each.pin.size) for each in resolved.objects
    ]
    return get_ranges(range_requests)


def test_a_url_is_a_file_named_by_the_last_part_of_its_path(faulty_server: FaultyServer) -> None:
    faulty_server.put("x/my model.tensors", b"abc")
    resolved = resolve_urls(f"{faulty_server.url}/x/my%20model.tensors")
    assert [(each.path, each.kind, each.place) for each in resolved.objects] == [("my model.tensors", "tensors", "")]
    assert read(resolved) == [b"abc"]


def test_a_strong_etag_pins(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", b"abc", etag='"e1"')
    resolved = resolve_urls(f"{faulty_server.url}/a.tensors")
    assert resolved.objects[0].pin.etag == "e1"
    assert resolved.objects[0].target.precondition_header == 'If-Match: "e1"'
    faulty_server.put("a.tensors", b"abd", etag='"e2"')
    with pytest.raises(SourceChanged):
        read(resolved)


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_strong_etag_the_date_pins_and_distinguishes_revisions(
    faulty_server: FaultyServer, etag: str
) -> None:
    faulty_server.put("a.tensors", b"abc", etag=etag, last_modified="Tue, 01 Jul 2025 12:00:00 GMT")
    resolved = resolve_urls(f"{faulty_server.url}/a.tensors")
    target = resolved.objects[0].target
    assert (target.etag, target.precondition_header) == (etag, "If-Unmodified-Since: Tue, 01 Jul 2025 12:00:00 GMT")
    assert read(resolved) == [b"abc"]
    faulty_server.put("a.tensors", b"abd", etag=etag and 'W/"new"', last_modified="Wed, 02 Jul 2025 12:00:00 GMT")
    with pytest.raises(SourceChanged):
        read(resolved)
    assert resolve_urls(f"{faulty_server.url}/a.tensors").digest != resolved.digest


def test_without_any_validator_only_the_size_is_pinned_with_a_note(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", b"abc", etag="", last_modified="")
    resolved = resolve_urls(f"{faulty_server.url}/a.tensors")
    assert resolved.objects[0].pin.etag == ""
    assert "only the size is pinned" in resolved.notes[0]
    assert read(resolved) == [b"abc"]


def test_presigned_urls_are_requested_by_get_and_never_shown(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/a.tensors", b"abc")
    resolved = resolve_urls(f"{faulty_server.url}/b/a.tensors?X-Amz-Signature=SECRET&X-Amz-Expires=60")
    assert [(each.method, each.range) for each in faulty_server.find_requests()] == [("GET", (0, 0))]
    assert resolved.objects[0].pin.size == 3
    assert "SECRET" not in repr(resolved)
    assert read(resolved) == [b"abc"]
    assert faulty_server.find_requests()[-1].query["X-Amz-Signature"] == "SECRET"


def test_an_expired_presigned_url_is_reported_without_its_signature(faulty_server: FaultyServer) -> None:
    faulty_server.add_fault(Fault(status=403, body=EXPIRED))
    with pytest.raises(CredentialsExpired) as caught:
        resolve_urls(f"{faulty_server.url}/b/a.tensors?X-Amz-Signature=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_without_head_one_byte_is_requested(faulty_server: FaultyServer, status: int) -> None:
    faulty_server.put("a.tensors", b"abc")
    faulty_server.add_fault(Fault(status=status), method="HEAD")
    assert resolve_urls(f"{faulty_server.url}/a.tensors").objects[0].pin.size == 3


def test_the_body_of_a_server_that_ignores_ranges_is_not_read(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", bytes(50 << 20))
    faulty_server.add_fault(Fault(status=405), method="HEAD")
    faulty_server.add_fault(Fault(ignore_range=True), method="GET")
    with pytest.raises(StoreUnsupported, match="ignores ranges"):
        resolve_urls(f"{faulty_server.url}/a.tensors")
    assert faulty_server.bytes_sent < 25 << 20


def test_an_empty_object_has_no_first_byte(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", b"abc")
    faulty_server.put("config.json", b"")
    faulty_server.add_fault(Fault(status=405), method="HEAD")
    resolved = resolve_urls(f"{faulty_server.url}/a.tensors", f"{faulty_server.url}/config.json")
    assert [each.pin.size for each in resolved.objects] == [3, 0]


def test_urls_come_from_a_file_or_a_variable(faulty_server: FaultyServer, tmp_path: Path) -> None:
    faulty_server.put("a.tensors", b"abc")
    url = f"{faulty_server.url}/a.tensors"
    listed = tmp_path / "urls"
    listed.write_text(f"\n{url}\n")
    (from_file,) = resolve_urls(urls_file=str(listed)).objects
    (from_variable,) = resolve_urls(urls_env="URLS", environment={"URLS": f" {url}\n"}).objects
    assert from_file == from_variable
    assert (from_file.path, from_file.pin.size, from_file.target.url) == ("a.tensors", 3, url)


@pytest.mark.parametrize("way", ["plan", "file"])
def test_lists_among_the_urls_have_the_sha256_of_what_the_server_states_no_checksum_of(
    faulty_server: FaultyServer, tmp_path: Path, way: str
) -> None:
    """They name files relative to their folder, as the URLs' paths do, whatever their queries are."""
    files = {"m/one.safetensors": b"1", "m/a b/two.safetensors": b"2", "m/three.safetensors": b"3"}
    digests = {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
    one, two, three = digests.values()
    files["m/SHA256SUMS"] = f"{one}  one.safetensors\n{two} *a b/two.safetensors\n".encode()
    files["m/three.safetensors.sha256"] = three.encode()
    for key, content in files.items():
        faulty_server.put(key, content, etag='"opaque"')
    urls = [f"{faulty_server.url}/{quote(key)}?token={number}" for number, key in enumerate(files)]
    (tmp_path / "urls").write_text("\n".join(urls))
    resolved = resolve_urls(*urls) if way == "plan" else resolve_urls(urls_file=str(tmp_path / "urls"))
    found = {each.path: each.pin.checksum for each in resolved.objects if each.kind == "tensors"}
    assert found == {key.rpartition("/")[2]: f"sha256:{digest}" for key, digest in digests.items()}
    assert any(each.path == "SHA256SUMS" for each in resolved.objects) is (way == "plan")


@pytest.mark.parametrize("stated", [{}, {"Repr-Digest": "sha-256=:" + base64.b64encode(bytes(32)).decode() + ":"}])
def test_no_list_is_asked_for_that_is_not_named_or_not_needed(
    faulty_server: FaultyServer, stated: dict[str, str]
) -> None:
    faulty_server.put("m/a.safetensors", b"abc", headers=stated)
    faulty_server.put("m/SHA256SUMS", f"{'0' * 64}  a.safetensors".encode())
    named = ("m/a.safetensors", "m/SHA256SUMS") if stated else ("m/a.safetensors",)
    resolve_urls(*(f"{faulty_server.url}/{key}" for key in named))
    assert {(each.method, each.key) for each in faulty_server.find_requests()} == {("HEAD", key) for key in named}


def test_an_object_from_a_file_of_urls_is_named_without_its_path_and_the_same_after_a_new_signature(
    faulty_server: FaultyServer, tmp_path: Path
) -> None:
    faulty_server.put("services/T00-SECRET/a.tensors", b"abc")
    listed = tmp_path / "urls"
    keys = []
    for signature in ("old", "new"):
        listed.write_text(f"{faulty_server.url}/services/T00-SECRET/a.tensors?token={signature}\n")
        (found,) = resolve_urls(urls_file=str(listed)).objects
        keys.append(found.pin.key)
        assert "SECRET" not in repr(found)
    assert keys[0] == keys[1]
    assert keys[0].startswith(f"{faulty_server.url}/")
    assert keys[0].endswith("/a.tensors")


PLANTED = {
    "a password": "hunter2-db-password",
    "a JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJTRUNSRVQifQ.c2lnbmF0dXJl",
    "a docker config": '{"auths":{"registry.example":{"auth":"dXNlcjpodW50ZXIy"}}}',
    "a private key": "-----BEGIN PRIVATE KEY-----\nMIIEvgIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----",
    "a URL whose path is a secret": "http://127.0.0.1:9/services/T00/B00/PATH-IS-THE-SECRET",
    "a URL with a user": "ftp://admin:hunter2@127.0.0.1:9/model.tensors",
    "a connection string": "postgres://admin:hunter2@db/model",
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("place", ["file", "variable"])
def test_what_is_no_list_of_urls_is_never_repeated(tmp_path: Path, planted: str, place: str) -> None:
    listed = tmp_path / "urls"
    listed.write_text(f"http://127.0.0.1:9/a.tensors\n{planted}\n")
    source: Options = {"urls_file": str(listed)} if place == "file" else {"urls_env": "URLS"}
    with pytest.raises(TonnageError) as caught:
        resolve_urls(environment={"URLS": planted}, **source)
    words = [word for word in re.split(r"[\s/:@]+", planted) if len(word) > 5 and not word.startswith("127.")]
    assert [word for word in words if word in str(caught.value)] == []
    if isinstance(caught.value, InvalidPlan):
        assert ("line 2" if place == "file" else "word 1") in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        {"urls": ()},
        {"urls_env": "MISSING"},
        {"urls_file": "/nowhere"},
        {"urls": ("ftp://h/a.tensors?SECRET",)},
        {"urls": ("http://h/a.tensors?SECRET=1", "http://h/a.tensors?SECRET=2")},
        {"urls": ("http://h/a",), "urls_env": "X"},
    ],
)
def test_sources_without_valid_urls_are_rejected_without_showing_queries(source: Options) -> None:
    with pytest.raises(InvalidPlan) as caught:
        resolve_urls(**source)
    assert "SECRET" not in str(caught.value)


def test_a_source_without_a_tensor_file_is_rejected(faulty_server: FaultyServer) -> None:
    faulty_server.put("model.bin", b"abc")
    with pytest.raises(NoTensorFiles):
        resolve_urls(f"{faulty_server.url}/model.bin")


def test_pins_are_checked_and_need_their_url(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", b"abc")
    url = f"{faulty_server.url}/a.tensors?token=1"
    pins = resolve_urls(url).sources[0].objects
    assert resolve_urls(urls=(url,), objects=pins).digest == resolve_urls(url).digest
    with pytest.raises(SourceChanged):
        resolve_urls(urls=(url,), objects=(structs.replace(pins[0], size=4),))
    with pytest.raises(InvalidPlan, match="no URL for the pinned object"):
        resolve_urls(urls=(url,), objects=(structs.replace(pins[0], key="http://h/other.tensors"),))


def test_urls_with_odd_characters_are_sent_encoded(faulty_server: FaultyServer) -> None:
    faulty_server.put("ü b.tensors", b"abc")
    assert read(resolve_urls(f"{faulty_server.url}/ü%20b.tensors")) == [b"abc"]


def test_no_credentials_are_sent_to_urls(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", b"abc")
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "SECRET"}
    resolve_urls(f"{faulty_server.url}/a.tensors", environment=environment)
    assert not any("authorization" in each.headers for each in faulty_server.find_requests())


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch, faulty_server: FaultyServer) -> Iterator[FaultyServer]:
    """A server whose address counts as an inner one; that of the other server counts as public."""
    monkeypatch.setattr("tonnage.source.request_target.is_inner_address", lambda address: address == "127.0.0.2")
    with FaultyServer(host="127.0.0.2") as server:
        server.put("a.tensors", b"abc")
        redirect = Fault(status=302, headers={"Location": f"{server.url}/a.tensors"})
        faulty_server.add_fault(redirect, key="a.tensors")
        yield server


def test_a_redirect_from_a_public_to_an_inner_address_is_refused(
    faulty_server: FaultyServer, inner: FaultyServer
) -> None:
    with pytest.raises(EndpointUnreachable, match="redirects from a public to an inner address"):
        resolve_urls(f"{faulty_server.url}/a.tensors")
    assert inner.count_requests() == 0


def test_a_redirect_to_an_inner_address_is_followed_if_the_environment_allows_it(
    faulty_server: FaultyServer, inner: FaultyServer
) -> None:
    resolved = resolve_urls(urls=(f"{faulty_server.url}/a.tensors",), environment={"TONNAGE_INNER_REDIRECTS": "allow"})
    assert read(resolved) == [b"abc"]
    assert inner.count_requests() > 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "local"),
        ("0.0.0.0", "local"),
        ("10.1.2.3", "inner"),
        ("169.254.169.254", "local"),
        ("168.63.129.16", "local"),
        ("100.64.0.1", "inner"),
        ("::1", "local"),
        ("::", "local"),
        ("fe80::1%eth0", "local"),
        ("fd00:ec2::254", "local"),
        ("fd00::1", "inner"),
        ("::ffff:169.254.169.254", "local"),
        ("", "local"),
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("::ffff:8.8.8.8", "public"),
    ],
)
def test_inner_and_local_addresses_are_known(address: str, expected: str) -> None:
    assert is_local_address(address) is (expected == "local")
    assert is_inner_address(address) is (expected != "public") or address == "168.63.129.16"
