"""Indexes and lists that decide what is loaded, damaged on the way or replaced meanwhile."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from support.faults import NO_FAULT, Fault
from tonnage.contract import HttpSource, Plan, S3Source, Verify
from tonnage.errors import ChecksumMismatch, FormatDamaged, ObjectNotFound, SourceChanged
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from support.faulty_server import FaultyServer
    from tonnage.source.resolve import ResolvedRevision

INDEX = "model.safetensors.index.json"
FILES = ("a.safetensors", "b.safetensors", "c.safetensors")
OPAQUE = '"0123-opaque"'


def index_of(*files: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"tensor-{at}": file for at, file in enumerate(files)}}).encode()


@dataclass
class Model:
    """Three files and their index, in a bucket and at URLs of the same server."""

    server: FaultyServer
    kind: str

    def put_index(self, content: bytes, *, stated: bytes | None = None) -> None:
        """Stores the index. Its CRC-32 is stated, in the way of S3 or of HTTP, but not by its ETag."""
        crc = base64.b64encode(zlib.crc32(content if stated is None else stated).to_bytes(4, "big")).decode()
        sha = base64.b64encode(hashlib.sha256(content if stated is None else stated).digest()).decode()
        headers = {"x-amz-checksum-crc32": crc} if self.kind == "s3" else {"Repr-Digest": f"sha-256=:{sha}:"}
        self.server.put(f"bucket/m/{INDEX}", content, etag=OPAQUE, headers=headers)

    def resolve(self, level: Verify = Verify.BEST) -> ResolvedRevision:
        source: S3Source | HttpSource
        if self.kind == "s3":
            source = S3Source(
                bucket="bucket", prefix="m/", endpoint=self.server.endpoint, anonymous=True, region="us-east-1"
            )
        else:
            source = HttpSource(urls=tuple(f"{self.server.endpoint}/bucket/m/{name}" for name in (*FILES, INDEX)))
        return resolve(Plan(sources=(source,), verify=level), environment={})

    def flip(self, content: bytes, found: bytes, *, times: int | None = 1) -> None:
        """Flips a bit where ``found`` is, in answers to GET of the index."""
        self.server.add_fault(Fault(flip=content.index(found)), method="GET", key=f"bucket/m/{INDEX}", times=times)


@pytest.fixture(params=["s3", "http"])
def model(request: pytest.FixtureRequest, faulty_server: FaultyServer) -> Model:
    found = Model(faulty_server, request.param)
    for name in FILES:
        faulty_server.put(f"bucket/m/{name}", name.encode())
    found.put_index(index_of(*FILES))
    return found


def paths(resolved: ResolvedRevision) -> set[str]:
    return {each.path for each in resolved.objects}


@pytest.mark.parametrize(
    "where", [b"{", b"weight_map", b"a.safetensors", b"b.safetensors"], ids=["syntax", "field", "no file", "other file"]
)
def test_an_index_that_is_damaged_on_the_way_is_read_again(model: Model, where: bytes) -> None:
    """A flipped bit makes b.safetensors c.safetensors, which is there: the model would lack a file."""
    model.flip(index_of(*FILES), where)
    assert paths(model.resolve()) == {*FILES, INDEX}


def test_an_index_that_never_matches_its_checksum_is_an_error(model: Model) -> None:
    model.flip(index_of(*FILES), b"b.safetensors", times=None)
    with pytest.raises(ChecksumMismatch, match=r"index\.json does not match the (CRC32|SHA256)"):
        model.resolve()


def test_an_index_that_lists_a_missing_file_is_read_twice_and_refused(model: Model) -> None:
    content = index_of(*FILES, "missing.safetensors")
    model.put_index(content)
    with pytest.raises(ObjectNotFound, match="missing"):
        model.resolve()
    model.put_index(content[:-1])
    with pytest.raises(FormatDamaged, match="not an index"):
        model.resolve()


def replace_at_head(model: Model, contents: list[bytes]) -> None:
    """Replaces the index before each HEAD of it."""

    def replace(request: object) -> bool:
        if getattr(request, "method", "") == "HEAD" and getattr(request, "key", "") == f"bucket/m/{INDEX}" and contents:
            content = contents.pop(0)
            model.server.put(f"bucket/m/{INDEX}", content, etag=f'"{hashlib.sha1(content).hexdigest()}"')
        return False

    model.server.add_fault(NO_FAULT, when=replace)


def test_an_index_that_is_replaced_while_its_files_are_pinned_is_read_again(model: Model) -> None:
    replace_at_head(model, [index_of("a.safetensors", "c.safetensors")])
    assert paths(model.resolve()) == {"a.safetensors", "c.safetensors", INDEX}


def test_an_index_that_is_replaced_again_and_again_is_a_changed_source(model: Model) -> None:
    replace_at_head(model, [index_of("a.safetensors", "b.safetensors"), index_of("a.safetensors", "c.safetensors")])
    with pytest.raises(SourceChanged, match=r"index\.json was replaced"):
        model.resolve()


def test_at_level_size_an_index_is_not_compared_with_checksums(model: Model) -> None:
    model.put_index(index_of(*FILES), stated=b"something else")
    assert paths(model.resolve(Verify.SIZE)) == {*FILES, INDEX}


@pytest.mark.parametrize("model", ["s3"], indirect=True)
def test_a_list_of_checksums_that_is_damaged_on_the_way_is_read_again(model: Model) -> None:
    lines = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in FILES)
    model.server.put("bucket/m/SHA256SUMS", lines.encode())
    model.server.add_fault(Fault(flip=3), method="GET", key="bucket/m/SHA256SUMS", times=1)
    found = {each.path: each.pin.checksum for each in model.resolve(Verify.SHA256).objects if each.path in FILES}
    assert found == {name: f"sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in FILES}
