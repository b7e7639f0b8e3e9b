"""Resolving objects by URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import pytest
from msgspec import structs

from support.faulty_server import Fault
from tonnage.contract import HttpSource, Plan
from tonnage.errors import CredentialsExpired, EndpointUnreachable, InvalidPlan, NoTensorFiles, SourceChanged
from tonnage.source.client import RangeRequest, get_ranges
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Unpack

    from support.faulty_server import FaultyServer
    from tonnage.contract import ObjectPin
    from tonnage.source.resolve import ResolvedRevision

EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class Options(TypedDict, total=False):
    """What of a source a test sets."""

    urls: tuple[str, ...]
    urls_file: str
    urls_env: str
    objects: tuple[ObjectPin, ...]


def ask(*asked: str, environment: Mapping[str, str] | None = None, **source: Unpack[Options]) -> ResolvedRevision:
    source = source or {"urls": asked}
    return resolve(Plan(sources=(HttpSource(**source),)), environment=environment or {})


def read(resolved: ResolvedRevision) -> list[bytes]:
    asked = [RangeRequest(each.target, resolved.providers[each.source], 0, each.pin.size) for each in resolved.objects]
    return get_ranges(asked)


def test_a_url_is_a_file_named_by_the_last_part_of_its_path(faulty: FaultyServer) -> None:
    faulty.put("x/my model.tensors", b"abc")
    resolved = ask(f"{faulty.url}/x/my%20model.tensors")
    assert [(each.path, each.kind, each.place) for each in resolved.objects] == [("my model.tensors", "tensors", "")]
    assert read(resolved) == [b"abc"]


def test_a_strong_etag_pins(faulty: FaultyServer) -> None:
    faulty.put("a.tensors", b"abc", etag='"e1"')
    resolved = ask(f"{faulty.url}/a.tensors")
    assert resolved.objects[0].pin.etag == "e1"
    assert resolved.objects[0].target.precondition_header == 'If-Match: "e1"'
    faulty.put("a.tensors", b"abd", etag='"e2"')
    with pytest.raises(SourceChanged):
        read(resolved)


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_strong_etag_the_date_pins_and_tells_revisions_apart(faulty: FaultyServer, etag: str) -> None:
    faulty.put("a.tensors", b"abc", etag=etag, last_modified="Tue, 01 Jul 2025 12:00:00 GMT")
    resolved = ask(f"{faulty.url}/a.tensors")
    target = resolved.objects[0].target
    assert (target.etag, target.precondition_header) == ("", "If-Unmodified-Since: Tue, 01 Jul 2025 12:00:00 GMT")
    assert read(resolved) == [b"abc"]
    faulty.put("a.tensors", b"abd", etag=etag and 'W/"new"', last_modified="Wed, 02 Jul 2025 12:00:00 GMT")
    with pytest.raises(SourceChanged):
        read(resolved)
    assert ask(f"{faulty.url}/a.tensors").digest != resolved.digest


def test_without_any_validator_the_size_is_all_and_a_note_says_so(faulty: FaultyServer) -> None:
    faulty.put("a.tensors", b"abc", etag="", last_modified="")
    resolved = ask(f"{faulty.url}/a.tensors")
    assert resolved.objects[0].pin.etag == ""
    assert "only the size is pinned" in resolved.notes[0]
    assert read(resolved) == [b"abc"]


def test_presigned_urls_are_asked_by_get_and_never_shown(faulty: FaultyServer) -> None:
    faulty.put("b/a.tensors", b"abc")
    resolved = ask(f"{faulty.url}/b/a.tensors?X-Amz-Signature=SECRET&X-Amz-Expires=60")
    assert [(each.method, each.range) for each in faulty.seen()] == [("GET", (0, 0))]
    assert resolved.objects[0].pin.size == 3
    assert "SECRET" not in repr(resolved)
    assert read(resolved) == [b"abc"]
    assert faulty.seen()[-1].query["X-Amz-Signature"] == "SECRET"


def test_an_expired_presigned_url_is_told_without_its_signature(faulty: FaultyServer) -> None:
    faulty.fault(Fault(status=403, body=EXPIRED))
    with pytest.raises(CredentialsExpired) as caught:
        ask(f"{faulty.url}/b/a.tensors?X-Amz-Signature=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_without_head_is_asked_for_one_byte(faulty: FaultyServer, status: int) -> None:
    faulty.put("a.tensors", b"abc")
    faulty.fault(Fault(status=status), method="HEAD")
    assert ask(f"{faulty.url}/a.tensors").objects[0].pin.size == 3


def test_a_server_that_ignores_ranges_is_told_and_not_read(faulty: FaultyServer) -> None:
    faulty.put("a.tensors", bytes(50 << 20))
    faulty.fault(Fault(status=405), method="HEAD")
    faulty.fault(Fault(ignore_range=True), method="GET")
    with pytest.raises(EndpointUnreachable, match="ignores ranges"):
        ask(f"{faulty.url}/a.tensors")
    assert faulty.bytes_sent < 25 << 20


def test_an_empty_object_has_no_first_byte(faulty: FaultyServer) -> None:
    faulty.put("a.tensors", b"abc")
    faulty.put("config.json", b"")
    faulty.fault(Fault(status=405), method="HEAD")
    resolved = ask(f"{faulty.url}/a.tensors", f"{faulty.url}/config.json")
    assert [each.pin.size for each in resolved.objects] == [3, 0]


def test_urls_come_from_a_file_or_a_variable(faulty: FaultyServer, tmp_path: Path) -> None:
    faulty.put("a.tensors", b"abc")
    url = f"{faulty.url}/a.tensors"
    listed = tmp_path / "urls"
    listed.write_text(f"\n{url}\n")
    expected = ask(url).objects
    assert ask(urls_file=str(listed)).objects == expected
    assert ask(urls_env="URLS", environment={"URLS": f" {url}\n"}).objects == expected


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
def test_what_gives_no_urls_is_refused_without_showing_queries(source: Options) -> None:
    with pytest.raises(InvalidPlan) as caught:
        ask(**source)
    assert "SECRET" not in str(caught.value)


def test_a_file_that_is_no_tensor_file_is_no_model(faulty: FaultyServer) -> None:
    faulty.put("model.bin", b"abc")
    with pytest.raises(NoTensorFiles):
        ask(f"{faulty.url}/model.bin")


def test_pins_are_checked_and_need_their_url(faulty: FaultyServer) -> None:
    faulty.put("a.tensors", b"abc")
    url = f"{faulty.url}/a.tensors?token=1"
    pins = ask(url).sources[0].objects
    assert ask(urls=(url,), objects=pins).digest == ask(url).digest
    with pytest.raises(SourceChanged):
        ask(urls=(url,), objects=(structs.replace(pins[0], size=4),))
    with pytest.raises(InvalidPlan, match="no URL for the pinned object"):
        ask(urls=(url,), objects=(structs.replace(pins[0], key="http://h/other.tensors"),))


def test_urls_with_odd_characters_are_sent_encoded(faulty: FaultyServer) -> None:
    faulty.put("ü b.tensors", b"abc")
    assert read(ask(f"{faulty.url}/ü%20b.tensors#fragment")) == [b"abc"]


def test_nobodys_credentials_go_to_urls(faulty: FaultyServer) -> None:
    faulty.put("a.tensors", b"abc")
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "SECRET"}
    ask(f"{faulty.url}/a.tensors", environment=environment)
    assert not any("authorization" in each.headers for each in faulty.seen())
