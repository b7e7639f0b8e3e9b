"""Resolving against a real S3 server."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from support.s3_server import ADMIN, NO_PERMISSIONS, ODD_USERS, READER
from tonnage.contract import AddressingStyle, FileSelection, Plan, RankSelection, S3Source
from tonnage.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsExpired,
    NameCollision,
    NoTensorFiles,
    ObjectNotFound,
    SourceChanged,
)
from tonnage.source.client import RangeRequest, get_ranges
from tonnage.source.listing import list_query
from tonnage.source.resolve import resolve
from tonnage.source.source_uri import parse_sources

if TYPE_CHECKING:
    from support.s3_server import S3Identity, SeaweedS3
    from tonnage.errors import TonnageError
    from tonnage.source.resolve import ResolvedRevision

ODD_KEYS = (
    "a b.tensors",
    "plus+equals=.tensors",
    "100%.tensors",
    "per%2Fcent.tensors",
    "brackets[0]{1}.tensors",
    "question?.tensors",
    "hash#.tensors",
    "and&;,@:$!*'().tensors",
    "ünïcode€/日本.tensors",
    " leading.tensors",
    "tilde~-_..tensors",
    "new\nline.tensors",
)


def plan_of(*texts: str, files: FileSelection | None = None) -> Plan:
    return Plan(sources=parse_sources(texts), files=files or FileSelection())


def pinned(plan: Plan, resolved: ResolvedRevision) -> Plan:
    """The same plan with what was resolved, as the operator passes it on."""
    pairs = zip(plan.sources, resolved.sources, strict=True)
    return structs.replace(plan, sources=tuple(structs.replace(each, objects=found.objects) for each, found in pairs))


def read(resolved: ResolvedRevision) -> dict[str, bytes]:
    range_requests = [
        RangeRequest(each.target, resolved.providers[each.source], 0, each.pin.size) for each in resolved.objects
    ]
    return {each.path: body for each, body in zip(resolved.objects, get_ranges(range_requests), strict=True)}


@pytest.fixture
def model(s3: SeaweedS3) -> str:
    """A bucket with a small model below ``m/``."""
    bucket = s3.make_bucket()
    s3.put(bucket, {"m/a.tensors": b"aaaa", "m/config.json": b"{}", "m/README.md": b"-", "other/b.tensors": b"bb"})
    return bucket


def test_a_prefix_gives_its_tensor_files_and_companions(s3: SeaweedS3, model: str) -> None:
    resolved = resolve(plan_of(f"s3://{model}/m/"), environment=s3.environment())
    assert [(each.path, each.kind, each.pin.size, each.place) for each in resolved.objects] == [
        ("a.tensors", "tensors", 4, f"{s3.endpoint}/{model}"),
        ("config.json", "companion", 2, f"{s3.endpoint}/{model}"),
    ]
    assert read(resolved) == {"a.tensors": b"aaaa", "config.json": b"{}"}
    assert resolved.revision == "r-" + resolved.digest.removeprefix("sha256:")[:32]


def test_the_same_names_at_another_endpoint_are_another_revision(s3: SeaweedS3, model: str) -> None:
    elsewhere = {**s3.environment(), "AWS_ENDPOINT_URL_S3": s3.endpoint.replace("127.0.0.1", "localhost")}
    here = resolve(plan_of(f"s3://{model}/m/"), environment=s3.environment())
    there = resolve(plan_of(f"s3://{model}/m/"), environment=elsewhere)
    assert [each.pin for each in there.objects] == [each.pin for each in here.objects]
    assert there.revision != here.revision


def test_a_bucket_without_a_prefix_is_read_completely(s3: SeaweedS3, model: str) -> None:
    resolved = resolve(plan_of(f"s3://{model}"), environment=s3.environment())
    assert [each.path for each in resolved.objects] == ["m/a.tensors", "m/config.json", "other/b.tensors"]


def test_keys_select_only_those_objects(s3: SeaweedS3, model: str) -> None:
    resolved = resolve(plan_of(f"s3://{model}/m/a.tensors", f"s3://{model}/m/README.md"), environment=s3.environment())
    assert sorted((each.path, each.kind) for each in resolved.objects) == [
        ("README.md", "companion"),
        ("a.tensors", "tensors"),
    ]


@pytest.mark.parametrize("versioned", [False, True])
def test_keys_with_special_characters_are_signed_and_read(s3: SeaweedS3, versioned: bool) -> None:
    bucket = s3.make_bucket(versioned=versioned)
    wanted = {f"m [x]?#%+/{key}": key.encode() for key in ODD_KEYS}
    s3.put(bucket, wanted)
    source = S3Source(bucket=bucket, prefix="m [x]?#%+/")
    resolved = resolve(Plan(sources=(source,)), environment=s3.environment())
    assert read(resolved) == {key: key.encode() for key in ODD_KEYS}
    keys = S3Source(bucket=bucket, keys=tuple(wanted))
    assert read(resolve(Plan(sources=(keys,)), environment=s3.environment())) == read(resolved)


def test_virtual_hosted_addressing_is_signed_for_its_host(s3: SeaweedS3, model: str) -> None:
    source = S3Source(bucket=model, prefix="m/", endpoint=s3.virtual_endpoint, addressing_style=AddressingStyle.VIRTUAL)
    resolved = resolve(Plan(sources=(source,)), environment=s3.environment())
    assert resolved.objects[0].target.url.startswith(f"http://{model}.s3.localhost:")
    assert read(resolved)["a.tensors"] == b"aaaa"


def test_versions_are_pinned_and_stay_readable(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket(versioned=True)
    s3.put(bucket, {"a.tensors": b"first"})
    resolved = resolve(plan_of(f"s3://{bucket}/"), environment=s3.environment())
    s3.put(bucket, {"a.tensors": b"other"})
    assert resolved.objects[0].pin.version_id
    assert read(resolved) == {"a.tensors": b"first"}
    again = resolve(pinned(plan_of(f"s3://{bucket}/"), resolved), environment=s3.environment())
    assert again.digest == resolved.digest
    assert read(again) == {"a.tensors": b"first"}


def test_a_replaced_object_is_noticed_by_its_pin(s3: SeaweedS3, model: str) -> None:
    plan = plan_of(f"s3://{model}/m/")
    resolved = resolve(plan, environment=s3.environment())
    s3.put(model, {"m/a.tensors": b"bbbb"})
    with pytest.raises(SourceChanged, match=r"m/a\.tensors"):
        read(resolved)
    with pytest.raises(SourceChanged, match=r"m/a\.tensors"):
        resolve(pinned(plan, resolved), environment=s3.environment())
    assert resolve(plan, environment=s3.environment()).digest != resolved.digest


def test_a_deleted_object_is_a_change_once_pinned(s3: SeaweedS3, model: str) -> None:
    plan = plan_of(f"s3://{model}/m/")
    resolved = resolve(plan, environment=s3.environment())
    s3.client().delete_object(Bucket=model, Key="m/a.tensors")
    with pytest.raises(SourceChanged, match=r"m/a\.tensors: the pinned revision no longer exists"):
        resolve(pinned(plan, resolved), environment=s3.environment())


def test_the_same_objects_are_the_same_revision_however_they_are_reached(s3: SeaweedS3, model: str) -> None:
    environment = s3.environment()
    one = resolve(plan_of(f"s3://{model}/m/"), environment=environment)
    two = resolve(plan_of(f"s3://{model}/m/config.json", f"s3://{model}/m/a.tensors"), environment=environment)
    assert one.digest == two.digest


def test_a_pinned_plan_gives_what_was_resolved(s3: SeaweedS3, model: str) -> None:
    plan = plan_of(f"s3://{model}/m/")
    resolved = resolve(plan, environment=s3.environment())
    again = resolve(pinned(plan, resolved), environment=s3.environment())
    assert (again.objects, again.digest) == (resolved.objects, resolved.digest)


def test_only_requested_ranks_are_loaded_but_the_revision_has_all_ranks(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket()
    s3.put(bucket, {f"model-rank-{rank:03d}.tensors": b"x" * rank for rank in range(3)})
    everything = resolve(plan_of(f"s3://{bucket}"), environment=s3.environment())
    files = FileSelection(ranks=RankSelection(count=3, wanted=(1,)))
    resolved = resolve(plan_of(f"s3://{bucket}", files=files), environment=s3.environment())
    assert [each.rank for each in everything.objects] == [0, 1, 2]
    assert [each.rank for each in resolved.objects] == [1]
    assert resolved.digest == everything.digest
    again = resolve(pinned(plan_of(f"s3://{bucket}", files=files), resolved), environment=s3.environment())
    assert (again.objects, again.digest) == (resolved.objects, resolved.digest)


def test_empty_objects_and_directory_markers(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket()
    s3.put(bucket, {"m/": b"", "m/a.tensors": b"a", "m/empty.json": b""})
    resolved = resolve(plan_of(f"s3://{bucket}/m/"), environment=s3.environment())
    assert [(each.path, each.pin.size) for each in resolved.objects] == [("a.tensors", 1), ("empty.json", 0)]


def test_listings_are_continued_with_signed_tokens(s3: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tonnage.source.s3_source.list_query", functools.partial(list_query, max_keys=7))
    bucket = s3.make_bucket()
    s3.put(bucket, {f"m/{number:02d} +&=.tensors": b"x" for number in range(30)})
    assert len(resolve(plan_of(f"s3://{bucket}/m/"), environment=s3.environment()).objects) == 30


def test_many_objects_are_resolved_quickly(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket()
    s3.put(bucket, {f"{number:04d}.tensors": b"x" for number in range(120)})
    started = time.monotonic()
    resolved = resolve(plan_of(f"s3://{bucket}"), environment=s3.environment())
    assert len(resolved.objects) == 120
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("s3://{model}/m/nope.tensors", ObjectNotFound, "m/nope.tensors"),
        ("s3://{model}/nope/", ObjectNotFound, "no objects below this prefix"),
        ("s3://no-such-bucket/x.tensors", BucketNotFound, "bucket does not exist"),
        ("s3://no-such-bucket/x/", BucketNotFound, "bucket does not exist"),
        ("s3://{model}/m/config.json", NoTensorFiles, "none of the 1 objects"),
    ],
)
def test_missing_objects_and_buckets_are_named(
    s3: SeaweedS3, model: str, text: str, error: type[TonnageError], words: str
) -> None:
    with pytest.raises(error, match=words):
        resolve(plan_of(text.format(model=model)), environment=s3.environment())


def test_an_empty_bucket_is_reported_as_empty(s3: SeaweedS3) -> None:
    with pytest.raises(NoTensorFiles, match="the bucket is empty"):
        resolve(plan_of(f"s3://{s3.make_bucket()}"), environment=s3.environment())


@pytest.mark.parametrize("text", ["s3://{model}/m/", "s3://{model}/m/a.tensors"])
def test_an_identity_without_permission_is_denied(s3: SeaweedS3, model: str, text: str) -> None:
    with pytest.raises(AccessDenied, match="access is denied"):
        resolve(plan_of(text.format(model=model)), environment=s3.environment(NO_PERMISSIONS))


def test_an_identity_that_may_not_list_can_still_read_keys(s3: SeaweedS3, model: str) -> None:
    with pytest.raises(AccessDenied):
        resolve(plan_of(f"s3://{model}/m/"), environment=s3.environment(READER))
    resolved = resolve(plan_of(f"s3://{model}/m/a.tensors"), environment=s3.environment(READER))
    assert read(resolved) == {"a.tensors": b"aaaa"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "unknown"}, "access key does not exist"),
        ({"AWS_SECRET_ACCESS_KEY": "WRONGSECRET"}, "signature does not match"),
    ],
)
def test_wrong_keys_are_distinguished_and_not_repeated(
    s3: SeaweedS3, model: str, change: dict[str, str], words: str
) -> None:
    with pytest.raises(AccessDenied, match=words) as caught:
        resolve(plan_of(f"s3://{model}/m/"), environment={**s3.environment(), **change})
    assert "s3:GetObject" not in caught.value.remedy
    assert not any(value in str(caught.value) for value in (*change.values(), ADMIN.access_key, ADMIN.secret_key))


@pytest.mark.parametrize("user", ODD_USERS, ids=lambda user: user.access_key)
def test_access_keys_of_any_characters_are_signed_for(s3: SeaweedS3, model: str, user: S3Identity) -> None:
    resolved = resolve(plan_of(f"s3://{model}/m/a.tensors"), environment=s3.environment(user))
    assert read(resolved) == {"a.tensors": b"aaaa"}


def test_anonymous_requests_are_not_signed(s3: SeaweedS3, model: str) -> None:
    with pytest.raises(AccessDenied):
        resolve(Plan(sources=parse_sources([f"s3://{model}/m/"], anonymous=True)), environment=s3.environment())


def test_presigned_urls_need_no_credentials(s3: SeaweedS3, model: str) -> None:
    url = s3.presign(model, "m/a.tensors")
    resolved = resolve(plan_of(url), environment={})
    assert resolved.objects[0].pin.key == url.partition("?")[0]
    assert read(resolved) == {"a.tensors": b"aaaa"}
    assert "Signature" not in repr(resolved)


def test_an_expired_presigned_url_is_reported(s3: SeaweedS3, model: str) -> None:
    url = s3.presign(model, "m/a.tensors", expires=1)
    time.sleep(2.1)  # a signature expires only with time
    with pytest.raises(CredentialsExpired) as caught:
        resolve(plan_of(url), environment={})
    assert "Signature" not in str(caught.value)


def test_sources_together_may_be_one_model(s3: SeaweedS3, model: str) -> None:
    other = s3.make_bucket()
    s3.put(other, {"config.json": b"[]"})
    resolved = resolve(plan_of(f"s3://{model}/m/a.tensors", f"s3://{other}/config.json"), environment=s3.environment())
    assert [(each.source, each.path) for each in resolved.objects] == [(0, "a.tensors"), (1, "config.json")]
    assert len(resolved.sources) == len(resolved.providers) == 2


def test_two_sources_with_one_path_collide(s3: SeaweedS3, model: str) -> None:
    other = s3.make_bucket()
    s3.put(other, {"a.tensors": b"x"})
    with pytest.raises(NameCollision, match=r"a\.tensors"):
        resolve(plan_of(f"s3://{model}/m/a.tensors", f"s3://{other}/a.tensors"), environment=s3.environment())
