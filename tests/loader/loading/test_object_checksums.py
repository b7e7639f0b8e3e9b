"""Objects without hashes of their own are verified by the checksums of their store."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from awscrt import checksums as reference
from safetensors.torch import save

import tonnage
from support.faults import Fault
from support.load_harness import KEY, KIB
from support.models import assert_tensors_equal, load_safetensors_dir
from support.s3_uploads import PART, multipart, put, upload_file
from support.tensors_writer import build_tensors_file, raw_tensors
from tonnage.cache.cache import Cache
from tonnage.cache.verify import verify_entry
from tonnage.contract import Limits, Plan, S3Source, Verify
from tonnage.errors import AccessDenied, CacheDamaged, ChecksumMismatch, NoChecksum, SourceChanged
from tonnage.loading.load import run_plan
from tonnage.loading.resolve_only import resolve_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from support.load_harness import LoadHarness
    from support.s3_server import SeaweedS3
    from tonnage.cache.manifest import SourceRecord
    from tonnage.contract import Report

UPLOADS: dict[str, tuple[Callable[..., None], str]] = {
    "put_object": (put, "CRC32"),
    "put_object CRC64NVME": (partial(put, algorithm="CRC64NVME"), "CRC64NVME"),
    "put_object CRC32C": (partial(put, algorithm="CRC32C"), "CRC32C"),
    "put_object SHA1": (partial(put, algorithm="SHA1"), "SHA1"),
    "put_object SHA256": (partial(put, algorithm="SHA256"), "SHA256"),
    "put_object without checksum": (partial(put, plain=True), "MD5"),
    "upload_file": (upload_file, "CRC32 of 3 parts"),
    "upload_file without checksum": (partial(upload_file, plain=True), "MD5 of 3 parts"),
    "multipart CRC64NVME": (partial(multipart, algorithm="CRC64NVME", kind="FULL_OBJECT"), "CRC64NVME"),
    "multipart CRC32": (partial(multipart, algorithm="CRC32", kind="FULL_OBJECT"), "CRC32"),
    "multipart CRC32C": (partial(multipart, algorithm="CRC32C", kind="FULL_OBJECT"), "CRC32C"),
    "multipart CRC32 of parts": (partial(multipart, algorithm="CRC32", kind="COMPOSITE"), "CRC32 of 3 parts"),
    "multipart CRC32C of parts": (partial(multipart, algorithm="CRC32C", kind="COMPOSITE"), "CRC32C of 3 parts"),
    "multipart SHA1 of parts": (partial(multipart, algorithm="SHA1", kind="COMPOSITE"), "SHA1 of 3 parts"),
    "multipart SHA256 of parts": (partial(multipart, algorithm="SHA256", kind="COMPOSITE"), "SHA256 of 3 parts"),
    "multipart of uneven parts": (partial(multipart, first=PART + 4321), "MD5 of 3 parts"),
}
"""Ways to upload an object of a little more than two parts, and the checksum that the store then has."""

COMPANION = "bucket/model/tokenizer.json"
KEYS = "bucket/model/{}.json"


def records(cache: Path, report: Report) -> Mapping[str, SourceRecord]:
    """Returns the entry's record of each object, by the last part of its key."""
    manifest = Cache(cache).entry(report.entry).read_manifest()
    assert manifest is not None
    return {source.key.rpartition("/")[2]: source for source in manifest.sources}


def test_every_kind_of_upload_to_a_real_store_is_verified_by_its_checksum(
    s3: SeaweedS3, tmp_path: Path, weights: bytes
) -> None:
    bucket, data = s3.make_bucket(), os.urandom(2 * PART + 12_345)
    (tmp_path / "data").write_bytes(data)
    s3.put(bucket, {"m/weights.tensors": weights, "m/empty.json": b""})
    names = {f"{number}.json": kind for number, kind in enumerate(UPLOADS)}
    for name, kind in names.items():
        UPLOADS[kind][0](s3, bucket, f"m/{name}", tmp_path / "data")
    report = tonnage.load(f"s3://{bucket}/m/", cache=tmp_path / "cache", environment=s3.environment())
    found = records(tmp_path / "cache", report)
    used = {kind: found[name].checksum_words for name, kind in names.items()}
    assert used == {kind: expected for kind, (_, expected) in UPLOADS.items()}
    assert found["empty.json"].checksum_words == "CRC32"
    assert found["weights.tensors"].checksum == ""
    assert {path.read_bytes() for path in (tmp_path / "cache" / report.entry / "model").glob("[0-9]*.json")} == {data}


CONTENT = bytes(range(256)) * 8192  # 2 MiB


def encoded(value: int | bytes, size: int = 4) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else value.to_bytes(size, "big")).decode()


def composite(algorithm: str, parts: list[bytes]) -> str:
    """Returns the value of a checksum of parts."""
    if algorithm == "crc32c":
        digest = encoded(reference.crc32c(b"".join(reference.crc32c(part).to_bytes(4, "big") for part in parts)))
    elif algorithm == "crc32":
        digest = encoded(zlib.crc32(b"".join(zlib.crc32(part).to_bytes(4, "big") for part in parts)))
    else:
        digest = encoded(
            hashlib.new(algorithm, b"".join(hashlib.new(algorithm, part).digest() for part in parts)).digest()
        )
    return f"{digest}-{len(parts)}"


MIB = 1 << 20
HALVES = [CONTENT[:MIB], CONTENT[MIB:]]
STATED: dict[str, tuple[dict[str, str], str]] = {
    "CRC64NVME": ({"x-amz-checksum-crc64nvme": encoded(reference.crc64nvme(CONTENT), 8)}, ""),
    "CRC32C": ({"x-amz-checksum-crc32c": encoded(reference.crc32c(CONTENT))}, ""),
    "CRC32": ({"x-amz-checksum-crc32": encoded(zlib.crc32(CONTENT))}, ""),
    "SHA256": ({"x-amz-checksum-sha256": encoded(hashlib.sha256(CONTENT).digest())}, ""),
    "CRC32 of 2 parts": ({"x-amz-checksum-crc32": composite("crc32", HALVES)}, ""),
    "CRC32C of 2 parts": ({"x-amz-checksum-crc32c": composite("crc32c", HALVES)}, ""),
    "SHA256 of 2 parts": ({"x-amz-checksum-sha256": composite("sha256", HALVES)}, ""),
    "MD5": ({}, hashlib.md5(CONTENT).hexdigest()),
    "MD5 of 2 parts": (
        {},
        hashlib.md5(b"".join(hashlib.md5(half).digest() for half in HALVES)).hexdigest() + "-2",
    ),
}
"""Headers and ETag by which a server states a checksum of ``CONTENT``."""


def state(harness: LoadHarness, kind: str, content: bytes = CONTENT, key: str = COMPANION) -> None:
    """Stores content whose checksum is stated in one of the ways."""
    headers, etag = STATED[kind]
    harness.server.put(key, content, headers=headers, etag=f'"{etag or "0123-opaque"}"')
    if "parts" in kind:
        first = {"Content-Length": str(MIB), "x-amz-mp-parts-count": "2"}
        harness.server.add_fault(
            Fault(status=206, headers=first), when=lambda request: request.key == key and "partNumber" in request.query
        )


def state_all(harness: LoadHarness) -> dict[str, str]:
    """Stores the content once for each way; returns these by key."""
    kinds = {KEYS.format(number): kind for number, kind in enumerate(STATED)}
    for key, kind in kinds.items():
        state(harness, kind, key=key)
    return kinds


def assert_all_loaded(harness: LoadHarness, report: Report, kinds: dict[str, str]) -> None:
    found = records(harness.cache, report)
    for key, kind in kinds.items():
        name = key.rpartition("/")[2]
        assert found[name].checksum_words == kind
        assert (harness.cache / report.entry / "model" / name).read_bytes() == CONTENT
    harness.assert_loaded(report)


def is_part(request: Any, key: str = COMPANION) -> bool:
    return request.method == "GET" and request.key == key and request.range is not None and not request.query


def covering(offset: int, key: str = COMPANION) -> Callable[[Any], bool]:
    def covers(request: Any) -> bool:
        return is_part(request, key) and request.range[0] <= offset <= (request.range[1] or 0)

    return covers


def test_a_bit_flipped_in_transit_is_fetched_again_by_any_checksum(harness: LoadHarness) -> None:
    kinds = state_all(harness)
    rules = [harness.server.add_fault(Fault(flip=700_000), when=covering(700_000, key), times=1) for key in kinds]
    report = harness.load()
    assert all(rule.applied == 1 for rule in rules)
    assert_all_loaded(harness, report, kinds)
    assert report.retries >= len(kinds)


@pytest.mark.parametrize("kind", ["CRC64NVME", "CRC32 of 2 parts", "MD5", "MD5 of 2 parts"])
def test_an_object_that_does_not_match_its_checksum_is_never_published(harness: LoadHarness, kind: str) -> None:
    state(harness, kind, CONTENT[:-1] + b"x")
    with pytest.raises(ChecksumMismatch, match=kind.split(maxsplit=1)[0]) as caught:
        harness.load()
    harness.assert_nothing_visible()
    assert ("a copy in parts" in caught.value.remedy) == (kind == "MD5 of 2 parts")  # whose ETag some stores make up


def test_parts_with_checksums_of_their_own_are_fetched_again_alone(harness: LoadHarness) -> None:
    state(harness, "CRC32C of 2 parts")
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><Size>{MIB}</Size>"
        f"<ChecksumCRC32C>{encoded(reference.crc32c(half))}</ChecksumCRC32C></Part>"
        for number, half in enumerate(HALVES, 1)
    )
    body = f"<GetObjectAttributesResponse><ObjectParts>{parts}</ObjectParts></GetObjectAttributesResponse>".encode()
    answer = Fault(status=200, body=body, headers={"Content-Type": "application/xml"})
    harness.server.add_fault(answer, when=lambda request: "attributes" in request.query)
    harness.server.add_fault(Fault(flip=MIB + 5), when=covering(MIB + 5), times=1)
    report = harness.load()
    harness.assert_loaded(report)
    assert records(harness.cache, report)["tokenizer.json"].checksum_words == "CRC32C of 2 parts"
    ranges = [request.range for request in harness.server.requests if is_part(request)]
    received = sum((last or 0) + 1 - first for first, last in filter(None, ranges))
    assert len(CONTENT) + MIB <= received < 2 * len(CONTENT) + 1


def test_guessed_parts_that_do_not_match_are_no_damage_and_are_reported(harness: LoadHarness) -> None:
    thirds = [CONTENT[:700_000], CONTENT[700_000:]]
    etag = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in thirds)).hexdigest() + "-2"
    harness.server.put(COMPANION, CONTENT, etag=f'"{etag}"')
    report = harness.load()
    record = records(harness.cache, report)["tokenizer.json"]
    assert (record.verified, record.checksum) == ("size", "")
    assert any("MD5 of 2 parts" in note and "tokenizer.json" in note for note in report.notes)
    assert report.retries == 0


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({}, "MD5"),  # a store that ignores the header
        ({"x-amz-server-side-encryption": "aws:kms"}, ""),
        ({"x-amz-checksum-crc32": "lie", "x-amz-checksum-sha256": "AAAA-2"}, "MD5"),
        ({"x-amz-server-side-encryption": "AES256"}, "MD5"),
    ],
)
def test_what_a_store_does_not_state_is_not_claimed(harness: LoadHarness, answers: dict[str, str], kind: str) -> None:
    harness.server.put(COMPANION, CONTENT, headers=answers)
    report = harness.load()
    harness.assert_loaded(report)
    record = records(harness.cache, report)["tokenizer.json"]
    assert (record.checksum_words, record.verified) == (kind, "crc32" if kind else "size")


def test_a_store_that_rejects_the_request_for_checksums_is_read_without_them(harness: LoadHarness) -> None:
    rejects = Fault(status=400, body=b"<Error><Code>InvalidArgument</Code></Error>")
    rule = harness.server.add_fault(rejects, when=lambda request: "x-amz-checksum-mode" in request.headers)
    state(harness, "MD5")
    report = harness.load()
    assert rule.applied
    harness.assert_loaded(report)
    assert records(harness.cache, report)["tokenizer.json"].checksum_words == "MD5"


def test_at_level_size_no_checksum_is_computed(harness: LoadHarness) -> None:
    state(harness, "CRC64NVME", CONTENT[:-1] + b"x")
    report = harness.load(verify="size")
    assert records(harness.cache, report)["tokenizer.json"].checksum == ""


def test_an_object_whose_checksum_is_not_the_pinned_one_has_changed(harness: LoadHarness) -> None:
    state(harness, "CRC32")
    source = S3Source(
        bucket="bucket", prefix="model/", endpoint=harness.server.endpoint, region="us-east-1", anonymous=True
    )
    resolved = resolve_plan(Plan(sources=(source,)), environment={}).resolved
    assert resolved is not None
    pinned = Plan(sources=(msgspec.structs.replace(source, objects=resolved[0].objects),))
    checksums = {pin.key: pin.checksum for pin in resolved[0].objects}
    assert checksums["model/tokenizer.json"] == f"crc32:{zlib.crc32(CONTENT):08x}"
    harness.server.put(COMPANION, CONTENT, headers={"x-amz-checksum-crc32": encoded(1)}, etag='"0123-opaque"')
    with pytest.raises(SourceChanged, match="checksum"):
        run_plan(pinned, cache=harness.cache, environment={})


@pytest.mark.parametrize("kind", ["CRC64NVME", "CRC32 of 2 parts", "SHA256 of 2 parts", "MD5"])
def test_a_load_that_resumes_checks_what_an_earlier_one_received(harness: LoadHarness, kind: str) -> None:
    """The earlier load got a flipped bit, and ended before it had all of the object."""
    state(harness, kind)
    harness.server.add_fault(Fault(flip=10), when=covering(10), times=1)
    ends = harness.server.add_fault(Fault(status=403), when=covering(len(CONTENT) - 1))
    with pytest.raises(AccessDenied):
        harness.load(limits=Limits(workers=1, connections=1, part_size=256 * KIB))
    assert ends.applied
    harness.server.clear_faults()
    state(harness, kind)
    report = harness.load()
    assert report.resumed_bytes > 0
    assert report.retries >= 1
    assert_all_loaded(harness, report, {COMPANION: kind})


def test_a_report_states_by_what_the_objects_were_verified(harness: LoadHarness) -> None:
    state(harness, "CRC64NVME")
    harness.server.put("bucket/model/plain.txt", b"no checksum", etag='"0123-opaque"')
    report = harness.load()
    assert report.verified_by == ("CRC32 of tensors: 1 object, CRC64NVME: 1 object, MD5: 1 object, size only: 1 object")
    assert any(note.startswith("NoChecksum: model/plain.txt") for note in report.notes)
    again = harness.load()
    assert (again.outcome, again.verified_by, again.notes) == ("hit", report.verified_by, report.notes)


SHARD = "bucket/plain/model.safetensors"


@pytest.mark.parametrize(
    ("level", "headers", "outcome"),
    [
        ("best", {}, "size"),
        ("size", {}, "size"),
        ("crc32", {}, ""),
        ("sha256", {"x-amz-checksum-crc32": "CRC"}, ""),
        ("crc32", {"x-amz-checksum-crc32": "CRC"}, "crc32"),
        ("sha256", {"x-amz-checksum-sha256": "SHA"}, "sha256"),
    ],
)
def test_safetensors_without_a_checksum_are_refused_at_a_level_that_needs_one(
    harness: LoadHarness, level: str, headers: dict[str, str], outcome: str
) -> None:
    data = save(harness.tensors)
    values = {"CRC": encoded(zlib.crc32(data)), "SHA": encoded(hashlib.sha256(data).digest())}
    headers = {name: values[value] for name, value in headers.items()}
    harness.server.put(SHARD, data, headers=headers, etag='"0123-opaque"')
    source = S3Source(bucket="bucket", prefix="plain/", endpoint=harness.server.endpoint, anonymous=True, region="eu")
    plan = Plan(sources=(source,), verify=Verify(level))
    if not outcome:
        with pytest.raises(NoChecksum, match="safetensors"):
            resolve_plan(plan, environment={})
        return
    report = run_plan(plan, cache=harness.cache, environment={}).report
    assert report.verified == outcome
    assert any(note.startswith("NoChecksum: plain/model.safetensors") for note in report.notes) is (
        level == "best" and outcome == "size"
    )
    assert run_plan(plan, cache=harness.cache, environment={}).report.outcome == "hit"


def stated_by_store(kind: str, data: bytes, halves: list[bytes]) -> tuple[dict[str, str], str]:
    """Returns the headers and the ETag with which a store states a checksum of an object of two parts."""
    opaque = "0123-opaque"
    return {
        "CRC64NVME": ({"x-amz-checksum-crc64nvme": encoded(reference.crc64nvme(data), 8)}, opaque),
        "CRC32 of 2 parts": ({"x-amz-checksum-crc32": composite("crc32", halves)}, opaque),
        "SHA256": ({"x-amz-checksum-sha256": encoded(hashlib.sha256(data).digest())}, opaque),
        "SHA256 of 2 parts": ({"x-amz-checksum-sha256": composite("sha256", halves)}, opaque),
        "MD5": ({}, hashlib.md5(data).hexdigest()),
        "MD5 of 2 parts": ({}, hashlib.md5(b"".join(hashlib.md5(half).digest() for half in halves)).hexdigest() + "-2"),
    }[kind]


@pytest.mark.parametrize("kind", ["CRC64NVME", "CRC32 of 2 parts", "MD5 of 2 parts"])
@pytest.mark.parametrize("segment_size", [0, 300 * KIB], ids=["one file", "shards"])
def test_a_bit_flipped_in_safetensors_is_fetched_again_and_each_tensor_is_right(
    harness: LoadHarness, kind: str, segment_size: int
) -> None:
    data = save(harness.tensors)
    cut = len(data) // 2 + 11
    halves = [data[:cut], data[cut:]]
    headers, etag = stated_by_store(kind, data, halves)
    harness.server.put(SHARD, data, headers=headers, etag=f'"{etag}"')
    first = {"Content-Length": str(cut), "x-amz-mp-parts-count": "2"}
    harness.server.add_fault(Fault(status=206, headers=first), when=lambda request: "partNumber" in request.query)
    at = len(data) - 100_000
    rule = harness.server.add_fault(Fault(flip=at), when=covering(at, SHARD), times=1)
    source = S3Source(bucket="bucket", prefix="plain/", endpoint=harness.server.endpoint, anonymous=True, region="eu")
    limits = Limits(workers=2, connections=4, part_size=256 * KIB, segment_size=segment_size)
    report = run_plan(Plan(sources=(source,), limits=limits), cache=harness.cache, environment={}).report
    assert rule.applied == 1
    assert_tensors_equal(load_safetensors_dir(harness.cache / report.entry / "model"), harness.tensors)
    expected = "MD5 of parts" if kind.startswith("MD5") else kind.replace("2 parts", "parts")
    assert report.verified_by == f"{expected}: 1 object"
    verify_entry(Cache(harness.cache).entry(report.entry))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def header_offsets(file: bytes) -> dict[str, int]:
    """Returns where one flipped bit does what, in the header of a safetensors file."""
    return {
        "length": 1,
        "syntax": file.index(b'"data_offsets"') + len('"data_offsets"'),
        "offset": file.index(b'"data_offsets":[') + len('"data_offsets":['),
        "name": file.index(b'"', file.index(b"}") + 1) + 1,
    }


@pytest.mark.parametrize("place", ["length", "syntax", "offset", "name"])
@pytest.mark.parametrize("segment_size", [0, 300 * KIB], ids=["one file", "shards"])
def test_a_bit_flipped_in_a_safetensors_header_is_fetched_again(
    harness: LoadHarness, place: str, segment_size: int
) -> None:
    """A flip in a name leaves a header that can be parsed; the object's checksum finds it."""
    data = save(harness.tensors, {"format": "pt"})
    at = header_offsets(data)[place]
    harness.server.put(SHARD, data, headers={"x-amz-checksum-crc64nvme": encoded(reference.crc64nvme(data), 8)})
    rule = harness.server.add_fault(Fault(flip=at), when=covering(at, SHARD), times=1)
    source = S3Source(bucket="bucket", prefix="plain/", endpoint=harness.server.endpoint, anonymous=True, region="eu")
    limits = Limits(workers=2, connections=4, part_size=256 * KIB, segment_size=segment_size)
    report = run_plan(Plan(sources=(source,), limits=limits), cache=harness.cache, environment={}).report
    assert rule.applied == 1
    assert report.retries >= 1
    assert_tensors_equal(load_safetensors_dir(harness.cache / report.entry / "model"), harness.tensors)
    assert report.verified_by == "CRC64NVME: 1 object"
    assert report.downloaded_bytes + report.resumed_bytes < 1.5 * len(data)
    verify_entry(Cache(harness.cache).entry(report.entry))


@pytest.mark.parametrize("place", ["magic", "name"])
def test_a_bit_flipped_in_the_index_of_a_tensors_file_is_fetched_again(harness: LoadHarness, place: str) -> None:
    at = 0 if place == "magic" else harness.tensors_file.index(next(iter(harness.tensors)).encode())
    rule = harness.server.add_fault(Fault(flip=at), when=covering(at, harness.key), times=1)
    report = harness.load()
    assert rule.applied == 1
    assert report.retries >= 1
    harness.assert_loaded(report)


@pytest.mark.parametrize("index_length", [None, 400_000], ids=["typical index", "longer index"])
@pytest.mark.parametrize("layout", ["safetensors", "tensorizer"])
def test_tensors_without_hashes_are_verified_by_the_checksum_of_their_store(
    harness: LoadHarness, layout: str, index_length: int | None
) -> None:
    data = bytes(build_tensors_file(raw_tensors(harness.tensors), hashes=(), index_length=index_length).data)
    harness.server.put(KEY, data, headers={"x-amz-checksum-crc64nvme": encoded(reference.crc64nvme(data), 8)})
    rule = harness.server.add_fault(Fault(flip=len(data) - 100), when=covering(len(data) - 100, KEY), times=1)
    report = harness.load(layout=layout)
    assert rule.applied == 1
    assert report.retries >= 1
    assert (report.verified, report.verified_by) == ("crc32", "CRC64NVME: 1 object, MD5: 1 object")
    if layout == "safetensors":
        harness.assert_loaded(report)
    assert harness.load(layout=layout).outcome == "hit"
    assert harness.load(layout=layout, verify_on_hit=True).outcome == "hit"
    entry = Cache(harness.cache).entry(report.entry)
    assert verify_entry(entry).verified is Verify.CRC32
    largest = max(entry.model_dir.iterdir(), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    content = bytearray(largest.read_bytes())
    content[-50_000] ^= 1
    largest.write_bytes(content)
    with pytest.raises(CacheDamaged, match="CRC-32"):
        verify_entry(entry)


@pytest.mark.parametrize("kind", ["SHA256", "MD5", "SHA256 of 2 parts", "MD5 of 2 parts"])
def test_tensors_without_hashes_become_shards_that_any_checksum_of_their_object_verifies(
    harness: LoadHarness, kind: str
) -> None:
    """No file of the entry has the tensors' headers, in one of which the upload's first part ends."""
    data = bytes(build_tensors_file(raw_tensors(harness.tensors), hashes=()).data)
    cut = data.rindex(max(harness.tensors).encode())
    halves = [data[:cut], data[cut:]]
    headers, etag = stated_by_store(kind, data, halves)
    harness.server.put(KEY, data, headers=headers, etag=f'"{etag}"')
    first = {"Content-Length": str(cut), "x-amz-mp-parts-count": "2"}
    harness.server.add_fault(Fault(status=206, headers=first), when=lambda request: "partNumber" in request.query)
    ends = harness.server.add_fault(Fault(status=403), when=covering(len(data) - 100, KEY), times=1)
    with pytest.raises(AccessDenied):
        harness.load(limits=Limits(workers=1, connections=1, part_size=256 * KIB))
    flipped = harness.server.add_fault(Fault(flip=len(data) - 100), when=covering(len(data) - 100, KEY), times=1)
    report = harness.load()
    assert ends.applied
    assert flipped.applied == 1
    assert report.resumed_bytes
    assert report.retries >= 1
    assert kind.replace("2 parts", "parts") in {each.partition(":")[0] for each in report.verified_by.split(", ")}
    harness.assert_loaded(report)


@pytest.mark.parametrize("kind", ["crc64nvme", "sha256"])
def test_what_follows_the_tensors_of_a_file_is_not_loaded_so_its_checksum_proves_nothing(
    harness: LoadHarness, kind: str
) -> None:
    data = bytes(build_tensors_file(raw_tensors(harness.tensors), hashes=()).data) + bytes(1000)
    values = {"crc64nvme": encoded(reference.crc64nvme(data), 8), "sha256": encoded(hashlib.sha256(data).digest())}
    harness.server.put(KEY, data, headers={f"x-amz-checksum-{kind}": values[kind]}, etag='"0123-opaque"')
    report = harness.load()
    harness.assert_loaded(report)
    assert report.verified == "size"
    assert any("longer than its tensors" in note for note in report.notes)


def test_tensors_without_hashes_and_without_a_checksum_are_refused_at_a_level_that_needs_one(
    harness: LoadHarness,
) -> None:
    data = bytes(build_tensors_file(raw_tensors(harness.tensors), hashes=()).data)
    harness.server.put(KEY, data, etag='"0123-opaque"')
    with pytest.raises(NoChecksum, match="weights"):
        harness.load(verify="crc32")
    assert harness.load().verified == "size"
    with pytest.raises(NoChecksum, match="weights"):
        harness.load(verify="crc32")
    assert harness.load().outcome == "hit"


@pytest.mark.parametrize("level", ["best", "crc32"])
def test_an_entry_that_was_verified_by_size_is_compared_with_a_checksum_that_is_stated_later(
    harness: LoadHarness, level: str
) -> None:
    data = save(harness.tensors)
    source = S3Source(bucket="bucket", prefix="plain/", endpoint=harness.server.endpoint, anonymous=True, region="eu")
    harness.server.put(SHARD, data, etag='"0123-opaque"')
    first = run_plan(Plan(sources=(source,)), cache=harness.cache, environment={}).report
    assert (first.verified, first.verified_by) == ("size", "size only: 1 object")
    assert any(note.startswith("NoChecksum") for note in first.notes)
    harness.server.put(SHARD, data, etag='"0123-opaque"', headers={"x-amz-checksum-crc32": encoded(zlib.crc32(data))})
    plan = Plan(sources=(source,), verify=Verify(level))
    sent = harness.server.bytes_sent
    for _ in range(2):
        report = run_plan(plan, cache=harness.cache, environment={}).report
        assert (report.outcome, report.verified, report.verified_by) == ("hit", "crc32", "CRC32: 1 object")
        assert not any(note.startswith("NoChecksum") for note in report.notes)
    assert harness.server.bytes_sent - sent < len(data) // 10


@pytest.mark.parametrize("segment_size", [0, 300 * KIB], ids=["one file", "shards"])
def test_an_entry_that_was_damaged_before_its_checksum_was_known_is_loaded_again(
    harness: LoadHarness, segment_size: int
) -> None:
    data = save(harness.tensors)
    source = S3Source(bucket="bucket", prefix="plain/", endpoint=harness.server.endpoint, anonymous=True, region="eu")
    plan = Plan(sources=(source,), limits=Limits(segment_size=segment_size), verify=Verify.SIZE)
    headers = {"x-amz-checksum-crc32": encoded(zlib.crc32(data))}
    harness.server.put(SHARD, data, etag='"0123-opaque"', headers=headers)
    rule = harness.server.add_fault(Fault(flip=len(data) - 9), when=covering(len(data) - 9, SHARD), times=1)
    damaged = run_plan(plan, cache=harness.cache, environment={}).report
    assert rule.applied == 1
    assert damaged.verified == "size"
    wanted = msgspec.structs.replace(plan, verify=Verify.CRC32)
    report = run_plan(wanted, cache=harness.cache, environment={}).report
    assert (report.outcome, report.verified, report.verified_by) == ("loaded", "crc32", "CRC32: 1 object")
    assert any("reloaded" in note for note in report.notes)
    assert_tensors_equal(load_safetensors_dir(harness.cache / report.entry / "model"), harness.tensors)


def test_a_list_of_sha256_in_the_prefix_verifies_what_the_store_has_no_checksum_of(
    s3: SeaweedS3, tmp_path: Path, harness: LoadHarness
) -> None:
    bucket, data = s3.make_bucket(), save(harness.tensors)
    digest = hashlib.sha256(data).hexdigest()
    s3.put(bucket, {"m/model.safetensors": data, "m/SHA256SUMS": f"{digest}  model.safetensors\n".encode()})
    source = S3Source(bucket=bucket, prefix="m/")
    plan = Plan(sources=(source,), verify=Verify.SHA256)
    report = run_plan(plan, cache=tmp_path / "cache", environment=s3.environment()).report
    assert (report.verified, report.verified_by) == ("sha256", "SHA256: 1 object")
    pinned = msgspec.structs.replace(plan, entry=report.entry, expected_digest=report.digest)
    assert run_plan(pinned, cache=tmp_path / "cache", environment=s3.environment()).report.outcome == "hit"
    s3.put(bucket, {"m/SHA256SUMS": f"{'0' * 64}  model.safetensors\n".encode()})
    with pytest.raises(ChecksumMismatch, match="SHA256"):
        run_plan(plan, cache=tmp_path / "other", environment=s3.environment())
