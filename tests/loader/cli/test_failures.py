"""Failures of a load: reason, exit code, a message that names the object, and no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.faults import Fault
from support.models import make_tensors, to_tensors_file
from support.s3_server import NO_PERMISSIONS, SeaweedS3
from support.tensors_writer import RawTensor, build_tensors_file
from support.tonnage_cli import run_tonnage, start_tonnage
from support.waiting import eventually
from tonnage.errors import Reason, error_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loader.cli.conftest import Model
    from support.faulty_server import FaultyServer
    from support.tls import CertificateAuthority


class Case(NamedTuple):
    """Arguments of a load, and its expected failure."""

    arguments: str
    reason: Reason
    named: str
    environment: Mapping[str, str] = MappingProxyType({})
    remedy: str = ""


CASES = {
    "no such object": Case("s3://{bucket}/tiny/gone.tensors", Reason.OBJECT_NOT_FOUND, "gone.tensors"),
    "empty prefix": Case("s3://{bucket}/nothing/", Reason.OBJECT_NOT_FOUND, "nothing/"),
    "no such bucket": Case("s3://no-such-bucket/x/", Reason.BUCKET_NOT_FOUND, "no-such-bucket"),
    "nothing to load": Case("s3://{bucket}/tiny/ --include x.tensors", Reason.NO_TENSOR_FILES, "tiny/"),
    "not a tensorizer file": Case("s3://{bucket}/bad/zip.tensors", Reason.NOT_A_TENSORIZER_FILE, "zip.tensors"),
    "damaged": Case("s3://{bucket}/bad/cut.tensors", Reason.FORMAT_DAMAGED, "cut.tensors"),
    "a flipped bit": Case("s3://{bucket}/bad/flipped.tensors", Reason.CHECKSUM_MISMATCH, "'w'"),
    "a dtype": Case("s3://{bucket}/bad/dtype.tensors", Reason.DTYPE_UNSUPPORTED, "complex128"),
    "a rank": Case("s3://{bucket}/tiny/ --ranks 0-1", Reason.OBJECT_NOT_FOUND, "rank"),
    "a wrong key": Case(
        "s3://{bucket}/tiny/", Reason.ACCESS_DENIED, "tiny/", {"AWS_SECRET_ACCESS_KEY": "not/the+secret-at-all"},
        "Check AWS_SECRET_ACCESS_KEY: it must be the one that was issued with AWS_ACCESS_KEY_ID.",
    ),
    "no permission": Case(
        "s3://{bucket}/tiny/", Reason.ACCESS_DENIED, "tiny/",
        {"AWS_ACCESS_KEY_ID": NO_PERMISSIONS.access_key, "AWS_SECRET_ACCESS_KEY": NO_PERMISSIONS.secret_key},
    ),
    "no credentials": Case(
        "s3://{bucket}/tiny/", Reason.CREDENTIALS_MISSING, "", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    ),
    "no CA bundle": Case(
        "https://localhost/x.tensors --ca-bundle /gone.pem", Reason.TLS_VERIFICATION_FAILED, "/gone.pem", {},
        "Correct or remove --ca-bundle (caBundle): it must name a PEM file, or a directory of hashed certificates.",
    ),
    "a cache below a file": Case("s3://{bucket}/tiny/ --cache /dev/null/x", Reason.CACHE_NOT_WRITABLE, "/dev/null/x"),
}  # fmt: skip


@pytest.fixture(scope="module")
def damaged_model(s3: SeaweedS3, model: Model) -> Model:
    """The model's bucket, with damaged files."""
    good = build_tensors_file([RawTensor(b"w", b"<f4", (1000,), bytes(4000))])
    flipped = bytearray(good.data)
    flipped[good.fields["data[0]"].start + 5] ^= 1
    complex_file = build_tensors_file([RawTensor(b"w", b"<c16", (10,), bytes(160))])
    s3.put(
        model.bucket,
        {
            "bad/zip.tensors": b"PK\x03\x04" + bytes(1000),
            "bad/cut.tensors": bytes(good.data[:-100]),
            "bad/flipped.tensors": bytes(flipped),
            "bad/dtype.tensors": bytes(complex_file.data),
        },
    )
    return model


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_failure_has_its_reason_and_code_and_names_what_failed(
    name: str, damaged_model: Model, tmp_path: Path
) -> None:
    case = CASES[name]
    args = case.arguments.format(bucket=damaged_model.bucket).split()
    if "--cache" not in args:
        args += ["--cache", str(tmp_path / "cache")]
    environment = {**damaged_model.environment, **case.environment, "AWS_SESSION_TOKEN": ""}
    finished = run_tonnage("load", *args, environment=environment)
    report = finished.report
    assert (report["outcome"], report["reason"]) == ("failed", case.reason.value), report["message"]
    assert finished.returncode == error_classes()[case.reason].exit_code
    assert case.named in report["message"]
    assert report["message"].endswith((".", "?"))
    assert report["remedy"] == (case.remedy or error_classes()[case.reason].remedy)
    assert f"tonnage: {case.reason.value}: " in finished.stderr
    assert "Traceback" not in finished.stderr
    secret = environment["AWS_SECRET_ACCESS_KEY"]
    assert not secret or secret not in finished.output


def test_an_endpoint_that_is_down_is_unreachable(tmp_path: Path) -> None:
    environment = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    args = ["s3://b/m/", "--endpoint-url", "http://127.0.0.1:9", "--cache", str(tmp_path), "--timeout", "20s"]
    finished = run_tonnage("load", *args, environment=environment)
    assert (finished.returncode, finished.report["reason"]) == (13, "EndpointUnreachable")


def test_an_untrusted_certificate_is_reported(faulty_tls_server: FaultyServer, tmp_path: Path) -> None:
    faulty_tls_server.put("m/x.tensors", b"|TZR|")
    finished = run_tonnage("load", f"{faulty_tls_server.url}/m/x.tensors", "--cache", tmp_path)
    assert (finished.returncode, finished.report["reason"]) == (14, "TLSVerificationFailed")


def test_a_model_is_loaded_from_a_server_of_the_administrators_ca(
    faulty_tls_server: FaultyServer, authority: CertificateAuthority, tmp_path: Path
) -> None:
    faulty_tls_server.put("m/x.tensors", to_tensors_file(make_tensors(count=2)))
    (temporary := tmp_path / "tmp").mkdir()
    environment = {"TONNAGE_CA_PEM": authority.bundle.read_text(), "TMPDIR": str(temporary)}
    url = f"{faulty_tls_server.url}/m/x.tensors"
    arguments: list[str | Path] = ["load", url, "--cache", tmp_path / "cache"]
    finished = run_tonnage(*arguments, environment=environment)
    assert (finished.returncode, finished.report["outcome"]) == (0, "loaded")
    assert not list(temporary.iterdir())
    with start_tonnage(*arguments, "--hold", environment=environment) as holder:
        assert holder.stdout is not None
        assert '"hit"' in holder.stdout.readline()
        eventually(lambda: not list(temporary.iterdir()))
        assert holder.poll() is None


def test_a_deadline_is_kept(faulty_server: FaultyServer, tmp_path: Path) -> None:
    faulty_server.put("m/x.tensors", b"|TZR|")
    faulty_server.add_fault(Fault(stall_before=True))
    finished = run_tonnage("load", f"{faulty_server.url}/m/x.tensors", "--cache", tmp_path, "--timeout", "500ms")
    assert (finished.returncode, finished.report["reason"]) == (31, "Timeout")


def test_a_presigned_url_appears_nowhere(s3: SeaweedS3, model: Model, tmp_path: Path) -> None:
    url = s3.presign(model.bucket, "tiny/model.tensors")
    signature = url.partition("X-Amz-Signature=")[2].partition("&")[0]
    assert signature
    for args in (["load", url, "--cache", tmp_path], ["resolve", url, "--json"], ["inspect", url], ["resolve", url]):
        finished = run_tonnage(*args)
        assert finished.returncode == 0, finished.stderr
        assert signature not in finished.output
        assert "X-Amz" not in finished.output
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert signature.encode() not in path.read_bytes(), path
    spoiled = url.replace(signature, signature[::-1])
    failed = run_tonnage("load", spoiled, "--cache", tmp_path, "--exclude", "x")
    assert failed.returncode == 10, failed.report["message"]
    assert signature[::-1] not in failed.output


def test_no_secret_is_in_the_command_lines_of_what_is_running(s3: SeaweedS3, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    tensors = [RawTensor(f"t{number}".encode(), b"|u1", (4 << 20,), bytes(4 << 20)) for number in range(8)]
    s3.put(bucket, {"m/model.tensors": bytes(build_tensors_file(tensors).data)})
    url = s3.presign(bucket, "m/model.tensors")
    source = {"kind": "http", "urls_env": "MODEL_URL"}
    plan = {"schema_version": 1, "sources": [source], "limits": {"bandwidth": 16_000_000, "workers": 2}}
    environment = {**s3.environment(), "MODEL_URL": url}
    with start_tonnage("load", "--cache", tmp_path, "--plan", json.dumps(plan), environment=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["loaded_bytes"] > 0:
                break
        lines = [_command_line(process.pid), *map(_command_line, _descendants(process.pid))]
        process.terminate()
        process.communicate(timeout=30)
    assert len(lines) > 1, "there are worker processes"
    for line in lines:
        assert "Signature" not in line
        assert s3.secret_key not in line


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def _descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in _descendants(child))]
