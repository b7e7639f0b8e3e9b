"""``tonnage serialize`` to and from a real S3 server; faults come from a proxy in front of it."""

from __future__ import annotations

import base64
import signal
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from tensorizer import TensorDeserializer

import tonnage
from support.hub_server import HubServer
from support.s3_server import NO_PERMISSIONS, READER
from support.tensors_corpus import random_bits
from support.tonnage_cli import run_tonnage, start_tonnage
from tonnage.contract import FileSelection, S3Source
from tonnage.contract.selection import UNFINISHED
from tonnage.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsMissing,
    EndpointUnreachable,
    Interrupted,
    InvalidPlan,
    ObjectNotFound,
    TargetExists,
    TonnageError,
)
from tonnage.serialize import s3_target
from tonnage.serialize.run import Request, Result, serialize
from tonnage.serialize.writer import is_same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.s3_server import SeaweedS3


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {f"layers.{at}.weight": random_bits(torch.bfloat16, 256, 1024, seed=at) for at in range(24)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return folder, tensors


@pytest.fixture
def bucket(s3: SeaweedS3) -> str:
    return s3.make_bucket()


def keys(s3: SeaweedS3, bucket: str) -> list[str]:
    return [each["Key"] for each in s3.client().list_objects_v2(Bucket=bucket).get("Contents", ())]


def run(source: Path, s3: SeaweedS3, bucket: str, tmp_path: Path, **options: Any) -> Result:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    request = Request(
        paths=(source,),
        target=S3Source(bucket=bucket, prefix="out/", endpoint=options.pop("endpoint", s3.endpoint)),
        files=FileSelection(),
        scratch=scratch,
        overwrite=options.pop("overwrite", False),
        file_size=options.pop("file_size", 0),
        key=options.pop("key", None),
    )
    environment = options.pop("environment", s3.environment())
    try:
        return serialize(request, environment=environment, **options)
    finally:
        assert list(scratch.iterdir()) == [], "nothing is left in the scratch folder"


@pytest.fixture(autouse=True)
def aws_environment(s3: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's own chain reads the process's environment, as in the command."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)


def test_a_folder_is_uploaded_in_parts_with_a_checksum_of_each_whole_object_and_loads_with_its_digest(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, tensors = source
    monkeypatch.setattr(s3_target, "PART_BYTES", 5 << 20)
    phases: list[str] = []
    result = run(folder, s3, bucket, tmp_path, on_progress=lambda progress: phases.append(progress.phase))
    assert keys(s3, bucket) == ["out/config.json", "out/model.tensors"]
    for key in keys(s3, bucket):
        head = s3.client().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        data = s3.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        assert head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        assert head["ChecksumCRC32"] == base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        assert ("-" in head["ETag"]) == key.endswith(".tensors")
    report = tonnage.load(
        f"s3://{bucket}/out/",
        cache=tmp_path / "cache",
        endpoint_url=s3.endpoint,
        environment=s3.environment(),
        expected_digest=result.digest,
        verify="sha256",
    )
    with tonnage.open(report.path) as weights:
        assert weights.keys() == tensors.keys()
        assert all(is_same(weights[name], tensor) for name, tensor in tensors.items())
    assert {"serializing", "uploading", "verifying", "loading"} <= set(phases)
    assert phases.index("serializing") < phases.index("uploading") < phases.index("loading")


def test_until_all_is_verified_a_load_of_the_prefix_is_refused(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    refused: list[str] = []

    def load_meanwhile(progress: Any) -> None:
        if progress.phase in {"uploading", "loading"} and len(refused) < 6:
            with pytest.raises(ObjectNotFound, match="has not finished") as caught:
                tonnage.resolve(f"s3://{bucket}/out/", endpoint_url=s3.endpoint, environment=s3.environment())
            refused.append(caught.value.remedy)

    run(source[0], s3, bucket, tmp_path, on_progress=load_meanwhile, file_size=5 << 20)
    assert len(refused) == 6
    assert "--overwrite" in refused[0]
    tonnage.resolve(f"s3://{bucket}/out/", endpoint_url=s3.endpoint, environment=s3.environment())


def test_an_interrupted_upload_leaves_no_parts_and_a_mark_and_is_done_again_with_overwrite(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(s3_target, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3_target, "POLL_SECONDS", 0.0)
    uploading: list[str] = []
    with pytest.raises(Interrupted) as caught:
        run(
            source[0], s3, bucket, tmp_path,
            on_progress=lambda progress: uploading.append(progress.phase) if progress.phase == "uploading" else None,
            canceled=lambda: bool(uploading),
        )  # fmt: skip
    assert "--overwrite" in caught.value.remedy
    assert s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert keys(s3, bucket) == [f"out/{UNFINISHED}", "out/config.json"]
    with pytest.raises(TargetExists):
        run(source[0], s3, bucket, tmp_path)
    run(source[0], s3, bucket, tmp_path, overwrite=True)
    assert keys(s3, bucket) == ["out/config.json", "out/model.tensors"]


def test_a_killed_run_leaves_a_target_that_loads_refuse(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    arguments = [
        "serialize", str(source[0]), f"s3://{bucket}/out/", "--file-size", "2M", "--scratch", str(tmp_path),
        "--progress", "json", "--endpoint-url", s3.endpoint,
    ]  # fmt: skip
    with start_tonnage(*arguments, environment=s3.environment()) as process:
        assert process.stderr is not None
        while '"uploading"' not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert f"out/{UNFINISHED}" in keys(s3, bucket)
    refused = run_tonnage("resolve", f"s3://{bucket}/out/", "--endpoint-url", s3.endpoint, environment=s3.environment())
    assert "has not finished" in refused.stderr
    result = run(source[0], s3, bucket, tmp_path, overwrite=True, file_size=2_000_000)
    assert keys(s3, bucket) == sorted(f"out/{name}" for name in (*result.files, "config.json"))


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("reader", AccessDenied, "s3:PutObject"),
        ("no rights", AccessDenied, "s3:PutObject"),
        ("wrong secret", AccessDenied, "AWS_SECRET_ACCESS_KEY"),
        ("no keys", CredentialsMissing, "AWS_ACCESS_KEY_ID"),
        ("no bucket", BucketNotFound, "bucket"),
        ("no server", EndpointUnreachable, "endpoint"),
    ],
)
def test_a_bucket_that_denies_is_named_before_anything_is_serialized(
    case: str, error: type[TonnageError], words: str, s3: SeaweedS3, bucket: str,
    source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    changes: dict[str, Callable[[], dict[str, str]]] = {
        "reader": lambda: s3.environment(READER),
        "no rights": lambda: s3.environment(NO_PERMISSIONS),
        "wrong secret": lambda: s3.environment() | {"AWS_SECRET_ACCESS_KEY": "wrong-secret"},
    }
    environment = changes.get(case, s3.environment)()
    if case == "no keys":
        environment = {k: v for k, v in environment.items() if "KEY" not in k}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    phases: list[str] = []
    with pytest.raises(error) as caught:
        run(
            source[0], s3, "no-such-bucket" if case == "no bucket" else bucket, tmp_path, environment=environment,
            endpoint="http://127.0.0.1:1" if case == "no server" else s3.endpoint,
            on_progress=lambda progress: phases.append(progress.phase),
        )  # fmt: skip
    assert words in caught.value.message + caught.value.remedy
    assert environment.get("AWS_SECRET_ACCESS_KEY", "?") not in caught.value.message
    assert phases == []
    assert keys(s3, bucket) == []


def test_a_target_with_other_objects_is_refused_and_they_stay(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    s3.put(bucket, {"out/model-00001-of-00002.tensors": b"old", "out/": b"", "outside/x": b"1"})
    with pytest.raises(TargetExists, match="has files already: model-00001"):
        run(source[0], s3, bucket, tmp_path)
    with pytest.raises(TargetExists, match="mixed"):
        run(source[0], s3, bucket, tmp_path, overwrite=True)
    assert keys(s3, bucket) == ["out/", "out/model-00001-of-00002.tensors", "outside/x"]


def test_an_object_that_differs_from_what_was_written_is_found_by_the_load(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upload = s3_target.S3Target._upload

    def upload_and_damage(self: s3_target.S3Target, name: str, *rest: Any) -> None:
        upload(self, name, *rest)
        if name.endswith(".tensors"):
            data = bytearray(s3.client().get_object(Bucket=bucket, Key=f"out/{name}")["Body"].read())
            data[-1000] ^= 4
            s3.put(bucket, {f"out/{name}": bytes(data)})

    monkeypatch.setattr(s3_target.S3Target, "_upload", upload_and_damage)
    with pytest.raises(TonnageError) as caught:
        run(source[0], s3, bucket, tmp_path)
    assert caught.value.reason == "ChecksumMismatch"
    assert f"out/{UNFINISHED}" in keys(s3, bucket)


def test_mounted_keys_and_an_encrypted_file(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mounted = tmp_path / "secret"
    mounted.mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (mounted / name).write_text(s3.environment()[name] + "\n")
        monkeypatch.delenv(name)
    environment = {k: v for k, v in s3.environment().items() if "KEY" not in k}
    result = run(
        source[0], s3, bucket, tmp_path, key=bytes(32),
        environment=environment | {"TONNAGE_CREDENTIALS_DIR": str(mounted)},
    )  # fmt: skip
    assert result.encrypted
    data = s3.client().get_object(Bucket=bucket, Key="out/model.tensors")["Body"].read()
    (tmp_path / "model.tensors").write_bytes(data)
    from tensorizer import DecryptionParams

    found = TensorDeserializer(
        str(tmp_path / "model.tensors"), device="cpu", verify_hash=True, encryption=DecryptionParams.from_key(bytes(32))
    )
    assert all(is_same(found[name], tensor) for name, tensor in source[1].items())


@pytest.mark.parametrize(("one", "other"), [("a/", "a/"), ("a/", "a/b/"), ("a/b/", "a/"), ("", "a/")])
def test_a_prefix_in_the_source_or_around_it_is_refused(one: str, other: str, s3: SeaweedS3, tmp_path: Path) -> None:
    request = Request(
        sources=(S3Source(bucket="b", prefix=one, endpoint=s3.endpoint),),
        target=S3Source(bucket="b", prefix=other, endpoint=s3.endpoint),
        files=FileSelection(),
        scratch=tmp_path,
    )
    with pytest.raises(InvalidPlan, match="in each other"):
        serialize(request, environment=s3.environment())


def test_a_model_of_a_bucket_is_serialized_to_another_prefix(
    s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, tensors = source
    s3.put(bucket, {f"in/{path.name}": path for path in folder.iterdir()} | {"in/model.tensors.md": b"no weights"})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    locations = {name: S3Source(bucket=bucket, prefix=name, endpoint=s3.endpoint) for name in ("in/", "out/")}
    request = Request(sources=(locations["in/"],), target=locations["out/"], files=FileSelection(), scratch=scratch)
    result = serialize(request, environment=s3.environment())
    assert list(scratch.iterdir()) == []
    report = tonnage.load(
        f"s3://{bucket}/out/", cache=tmp_path / "cache", endpoint_url=s3.endpoint, environment=s3.environment(),
        expected_digest=result.digest,
    )  # fmt: skip
    with tonnage.open(report.path) as weights:
        assert all(is_same(weights[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", ["presigned URLs", "hub"])
def test_a_model_at_urls_or_on_a_hub_is_serialized(
    kind: str, s3: SeaweedS3, bucket: str, source: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, tensors = source
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HubServer() as hub:
        if kind == "hub":
            hub.push("org/tiny", files, private=True)
            sources, environment = ["hf://org/tiny@main"], {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}
        else:
            s3.put(bucket, {f"in/{name}": data for name, data in files.items()})
            sources, environment = [s3.presign(bucket, f"in/{name}") for name in files], {}
        done = run_tonnage("serialize", *sources, tmp_path / "target", "--json", environment=environment)
        assert done.returncode == 0, done.stderr
    assert done.report["tensors"] == len(tensors)
    assert (tmp_path / "target/config.json").read_bytes() == files["config.json"]
    with TensorDeserializer(str(tmp_path / "target/model.tensors"), device="cpu", verify_hash=True) as read:
        assert all(is_same(read[name], tensor) for name, tensor in tensors.items())
    assert not any(secret in done.output for secret in ("X-Amz-Signature", hub.token))
