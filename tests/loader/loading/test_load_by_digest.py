"""Loads of plans that have a revision's digest and not the list of its objects, as the plans of injected pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from support.models import CONFIG, make_tensors, to_tensors_file
from tonnage.contract import Identity, Outcome, Plan, Report, S3Source
from tonnage.errors import AccessDenied, DigestMismatch, SourceChanged
from tonnage.loading import resolve_plan, run_plan

if TYPE_CHECKING:
    from pathlib import Path

    from support.s3_server import SeaweedS3


class Model:
    """A model in a bucket, and a plan with its digest."""

    def __init__(self, s3: SeaweedS3, cache: Path, *, versioned: bool) -> None:
        self.s3, self.cache = s3, cache
        self.bucket = s3.make_bucket(versioned=versioned)
        s3.put(self.bucket, {"m/a.tensors": to_tensors_file(make_tensors(count=2)), "m/config.json": CONFIG})
        source = S3Source(bucket=self.bucket, prefix="m/")
        resolved = resolve_plan(Plan(sources=(source,)), environment=s3.environment())
        self.plan = Plan(sources=(source,), entry=resolved.entry, expected_digest=resolved.digest)

    def load(self, environment: dict[str, str] | None = None) -> Report:
        return run_plan(self.plan, cache=self.cache, environment=environment or self.s3.environment()).report

    def manifest(self) -> Path:
        return self.cache / self.plan.entry / ".tonnage" / "manifest.json"


@pytest.fixture
def model(s3: SeaweedS3, tmp_path: Path) -> Model:
    return Model(s3, tmp_path / "cache", versioned=False)


@pytest.fixture
def versioned_model(s3: SeaweedS3, tmp_path: Path) -> Model:
    return Model(s3, tmp_path / "cache", versioned=True)


def test_the_listed_source_is_loaded_and_found_again(model: Model) -> None:
    assert model.load().outcome is Outcome.LOADED
    assert model.load().outcome is Outcome.HIT


def test_what_lies_on_the_node_is_verified_with_the_store_of_the_digest(model: Model) -> None:
    model.load()
    model.plan = msgspec.structs.replace(model.plan, verify_on_hit=True)
    assert model.load().outcome is Outcome.HIT
    weights = model.cache / model.plan.entry / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    assert model.load().outcome is Outcome.LOADED


def test_another_revision_than_the_digests_is_refused(model: Model) -> None:
    model.s3.put(model.bucket, {"m/config.json": b"{}"})
    with pytest.raises(DigestMismatch, match="was expected"):
        model.load()
    assert not model.manifest().exists()


def test_a_pod_on_a_cold_node_names_what_helps_when_the_bucket_has_changed(model: Model) -> None:
    model.s3.put(model.bucket, {"m/generation_config.json": b"{}"})
    identity = Identity(namespace="serving", name="llama", uid="u", generation=1)
    model.plan = msgspec.structs.replace(model.plan, identity=identity)
    with pytest.raises(DigestMismatch, match="has changed since it was listed for serving/llama") as caught:
        model.load()
    assert "create this pod again" in caught.value.remedy


def test_an_overwritten_object_is_refused_on_a_hit(model: Model) -> None:
    model.load()
    model.s3.put(model.bucket, {"m/config.json": b"{}"})
    with pytest.raises(SourceChanged):
        model.load()


def test_a_hit_stays_one_when_the_source_gets_another_object(model: Model) -> None:
    model.load()
    model.s3.put(model.bucket, {"m/generation_config.json": b"{}"})
    assert model.load().outcome is Outcome.HIT


def test_a_hit_stays_one_when_a_versioned_object_is_overwritten(versioned_model: Model) -> None:
    versioned_model.load()
    versioned_model.s3.put(versioned_model.bucket, {"m/config.json": b"{}"})
    assert versioned_model.load().outcome is Outcome.HIT


def test_a_hit_still_needs_access_to_each_object(model: Model) -> None:
    model.load()
    strangers = {**model.s3.environment(), "AWS_ACCESS_KEY_ID": "stranger", "AWS_SECRET_ACCESS_KEY": "wrong"}
    with pytest.raises(AccessDenied):
        model.load(strangers)


def test_a_list_in_the_entry_that_the_digest_does_not_prove_is_not_used(model: Model) -> None:
    model.load()
    manifest = msgspec.json.decode(model.manifest().read_bytes())
    next(record for record in manifest["sources"] if record["kind"] == "companion")["etag"] = "another"
    manifest_file = model.manifest()
    manifest_file.chmod(0o644)
    manifest_file.write_bytes(msgspec.json.encode(manifest))
    report = model.load()
    assert report.digest == model.plan.expected_digest
    assert report.outcome is Outcome.LOADED
