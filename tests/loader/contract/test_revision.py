"""A revision is identified by the place and the list of its objects."""

from __future__ import annotations

import pytest

from tonnage.contract import (
    ENTRY_NAME_PATTERN,
    ComputedBuffers,
    Layout,
    ObjectPin,
    entry_name,
    revision_digest,
    revision_id,
    source_place,
)

PIN = ObjectPin(key="llama/model.tensors", size=10, etag="tag")


@pytest.mark.parametrize("endpoint", ["http://s3.storage:8333", "HTTP://S3.Storage:8333/", "http://s3.storage:8333//"])
def test_equivalent_endpoints_are_the_same_place(endpoint: str) -> None:
    assert source_place(endpoint, "models") == "http://s3.storage:8333/models"


def test_the_path_of_a_gateway_keeps_its_case() -> None:
    assert source_place("https://Gateway.test/S3/", "models") == "https://gateway.test/S3/models"


def test_a_bucket_of_aws_is_its_own_place() -> None:
    assert source_place("", "models") == "models"


def test_another_server_with_the_same_names_and_tags_has_another_revision() -> None:
    places = ["models", "http://a.test/models", "https://a.test/models", "http://b.test/models"]
    assert len({revision_digest([(place, PIN)]) for place in places}) == len(places)


def test_the_order_of_objects_does_not_matter() -> None:
    other = ObjectPin(key="llama/config.json", size=1, etag="other")
    assert revision_digest([("m", PIN), ("m", other)]) == revision_digest([("m", other), ("m", PIN)])


def test_what_differs_in_the_files_differs_in_the_name_of_the_entry() -> None:
    revision = revision_id(revision_digest([("m", PIN)]))
    names = {place: entry_name(revision, Layout.SAFETENSORS, place) for place in ComputedBuffers}
    assert names == {ComputedBuffers.SEPARATE: revision, ComputedBuffers.IN_SHARDS: f"{revision}-in-shards"}
    assert entry_name(revision, Layout.SAFETENSORS) == revision
    assert {entry_name(revision, Layout.TENSORIZER, place) for place in ComputedBuffers} == {f"{revision}-tensorizer"}
    assert all(ENTRY_NAME_PATTERN.fullmatch(name) for name in names.values())


def test_the_name_of_a_revision_has_128_bits_of_its_digest() -> None:
    digest = revision_digest([("m", PIN)])
    assert revision_id(digest) == "r-" + digest.removeprefix("sha256:")[:32]
