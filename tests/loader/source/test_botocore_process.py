"""botocore in a process of its own: all that it can raise, print, ask or wait for is a typed error in time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.ports import free_ports
from support.tonnage_cli import start_tonnage
from support.waiting import eventually
from tonnage.errors import (
    CredentialsExpired,
    CredentialsMissing,
    EndpointUnreachable,
    Interrupted,
    InvalidPlan,
    Timeout,
    TLSVerificationFailed,
    TonnageError,
)
from tonnage.source.credentials import Botocore, CredentialProvider
from tonnage.source.sigv4 import Credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faulty_server import FaultyServer

ROLE = "arn:aws:iam::123456789012:role/models"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine with nothing but AWS's two files, which don't exist yet."""
    return {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "HOME": str(tmp_path),
    }


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def failure(environment: dict[str, str]) -> TonnageError:
    with contextlib.closing(Botocore(environment)) as botocore, pytest.raises(TonnageError) as caught:
        CredentialProvider(botocore=botocore).current()
    assert caught.value.remedy
    return caught.value


def write_program(path: Path, text: str, *, executable: bool = True) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU if executable else stat.S_IRUSR | stat.S_IWUSR)
    return str(path)


@pytest.mark.parametrize(
    ("text", "executable", "words"),
    [
        (None, True, "does not exist"),
        ("echo hello", True, "JSONDecodeError"),
        ("echo '[]'", True, "custom-process|credential_process"),
        ("echo '{}'", True, "Version"),
        ("exit 3", True, "credential_process"),
        ("echo oh-no >&2; exit 1", True, "oh-no"),
        ("printf '\\377\\376'", True, "credential_process"),
        ("kill -9 $PPID", True, "ended without an answer"),
    ],
)
def test_a_credential_process_that_fails_is_named(
    bare: dict[str, str], tmp_path: Path, text: str | None, executable: bool, words: str
) -> None:
    program = tmp_path / "vault-helper"
    if text is not None:
        write_program(program, text, executable=executable)
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {program} --token SECRETARGUMENT\n")
    error = failure(bare)
    assert isinstance(error, CredentialsMissing)
    assert "SECRETARGUMENT" not in error.message
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(error.message)


def test_a_credential_process_gives_credentials(bare: dict[str, str], tmp_path: Path) -> None:
    program = write_program(
        tmp_path / "helper",
        """echo '{"Version": 1, "AccessKeyId": "k:1", "SecretAccessKey": "s", "SessionToken": "t"}'""",
    )
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {program}\n")
    with contextlib.closing(Botocore(bare)) as botocore:
        assert botocore.credentials() == Credentials(access_key="k:1", secret_key="s", session_token="t")


def test_threads_that_ask_at_once_get_the_same_credentials(bare: dict[str, str], tmp_path: Path) -> None:
    program = write_program(
        tmp_path / "helper", """sleep 0.2; echo '{"Version": 1, "AccessKeyId": "key", "SecretAccessKey": "s"}'"""
    )
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {program}\n")
    with contextlib.closing(Botocore(bare)) as botocore, ThreadPoolExecutor(4) as pool:
        providers = [CredentialProvider(botocore=botocore) for _ in range(2)] * 2
        found = list(pool.map(lambda provider: provider.current(), providers))
    assert found == [Credentials(access_key="key", secret_key="s")] * 4


@pytest.mark.parametrize("kind", ["missing", "a directory"])
def test_a_web_identity_token_that_can_not_be_read_is_named(bare: dict[str, str], tmp_path: Path, kind: str) -> None:
    token = tmp_path / "token"
    if kind == "a directory":
        token.mkdir()
    error = failure({**bare, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": ROLE})
    assert isinstance(error, CredentialsMissing)
    assert str(token) in error.message
    assert "AWS_WEB_IDENTITY_TOKEN_FILE" in error.remedy


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/gone/token",
            },
            "/gone/token does not exist",
        ),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/creds"}, "example.com"),
        (
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://localhost/creds",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN": "a\nb",
            },
            "token",
        ),
    ],
)
def test_container_credentials_that_can_not_be_asked_for_are_named(
    bare: dict[str, str], variables: dict[str, str], words: str
) -> None:
    error = failure({**bare, **variables})
    assert isinstance(error, CredentialsMissing)
    assert words in error.message
    assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in error.remedy


def test_a_role_that_needs_a_code_of_an_mfa_device_never_prompts(bare: dict[str, str]) -> None:
    Path(bare["AWS_CONFIG_FILE"]).write_text(
        f"[default]\nrole_arn = {ROLE}\nsource_profile = base\nmfa_serial = arn:aws:iam::1:mfa/me\n"
        "[profile base]\naws_access_key_id = k\naws_secret_access_key = s\n"
    )
    error = failure(bare)
    assert isinstance(error, CredentialsMissing)
    assert "MFA device (mfa_serial)" in error.message
    assert "export-credentials" in error.remedy


@pytest.mark.parametrize(
    ("profile", "kind", "remedy"),
    [
        (
            "sso_start_url = https://x\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = r\n",
            CredentialsExpired,
            "sso",
        ),
        (f"role_arn = {ROLE}\nsource_profile = gone\n", CredentialsMissing, "source_profile"),
        (f"role_arn = {ROLE}\nsource_profile = default\nrole_arn_x = 1\n", CredentialsMissing, "source_profile"),
        (f"role_arn = {ROLE}\n", CredentialsMissing, "source_profile"),
        ("aws_access_key_id = k\n", CredentialsMissing, "file"),
    ],
)
def test_a_profile_that_is_not_complete_has_its_remedy(
    bare: dict[str, str], profile: str, kind: type[TonnageError], remedy: str
) -> None:
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\n{profile}")
    error = failure(bare)
    assert isinstance(error, kind)
    assert remedy in error.remedy


@pytest.mark.parametrize("content", [b"[default\nregion = x\n", b"region = x\n", b"\xff\xfe[default]\n"])
def test_files_that_can_not_be_parsed_are_named(bare: dict[str, str], content: bytes) -> None:
    Path(bare["AWS_CONFIG_FILE"]).write_bytes(content)
    error = failure(bare)
    assert isinstance(error, InvalidPlan)
    assert "AWS's config file can't be used" in error.message


def test_a_proxy_that_is_down_is_an_unreachable_service(bare: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("header.payload.signature")
    port = free_ports(1)[0]
    environment = {**bare, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_ROLE_ARN": ROLE}
    error = failure({**environment, "HTTPS_PROXY": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"})
    assert isinstance(error, EndpointUnreachable)
    assert "HTTPS_PROXY" in error.remedy


def test_a_service_with_an_untrusted_certificate_names_the_variable(
    bare: dict[str, str], tmp_path: Path, faulty_tls_server: FaultyServer
) -> None:
    (tmp_path / "token").write_text("header.payload.signature")
    environment = {**bare, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_ROLE_ARN": ROLE}
    error = failure({**environment, "AWS_ENDPOINT_URL_STS": faulty_tls_server.url, "AWS_MAX_ATTEMPTS": "1"})
    assert isinstance(error, TLSVerificationFailed)
    assert "AWS_CA_BUNDLE" in error.remedy


def test_the_deadline_ends_a_service_that_never_answers(bare: dict[str, str], tmp_path: Path, silent: str) -> None:
    (tmp_path / "token").write_text("header.payload.signature")
    environment = {
        **bare,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ROLE_ARN": ROLE,
        "AWS_ENDPOINT_URL_STS": silent,
    }
    botocore = Botocore(environment, deadline=time.monotonic() + 1.0)
    with pytest.raises(Timeout, match="while credentials were loaded"):
        botocore.credentials()
    canceled = Botocore(environment, canceled=lambda: True)
    with pytest.raises(Interrupted, match="while credentials were loaded"):
        canceled.credentials()


def test_sigterm_ends_a_load_that_waits_for_credentials_and_what_it_started(
    bare: dict[str, str], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    program = write_program(tmp_path / "helper", f"echo $$ > {started}; exec sleep 600")
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {program}\n")
    with start_tonnage("load", "s3://bucket/m/", "--cache", tmp_path / "cache", environment=bare) as process:
        pid = int(started.read_text())
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 32
        assert "tonnage: Interrupted: " in stderr
        assert time.monotonic() - sent < 10  # botocore would wait for the program
    eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout=20)


def test_the_process_ends_with_the_one_that_started_it(bare: dict[str, str], tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    program = write_program(tmp_path / "helper", f"echo $$ > {started}; exec sleep 600")
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {program}\n")
    code = "import os, sys; from tonnage.source.credentials import Botocore; Botocore().credentials()"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**bare, "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    ) as process:
        pid = int(started.read_text())
        process.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout=20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "AK\nIA"),
        ("AWS_ACCESS_KEY_ID", "a/b"),
        ("AWS_ACCESS_KEY_ID", "a,b"),
        ("AWS_ACCESS_KEY_ID", "schlüssel"),
        ("AWS_SESSION_TOKEN", "to ken"),
        ("AWS_SESSION_TOKEN", "to\r\nX-Evil: 1"),
    ],
)
def test_keys_that_can_not_be_sent_are_named_but_not_repeated(name: str, value: str) -> None:
    environment = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", name: value}
    with pytest.raises(CredentialsMissing, match=f"{name} in the environment can't be sent") as caught:
        CredentialProvider(environment=environment).current()
    assert value not in caught.value.message
    assert name in caught.value.remedy


def test_valid_credentials_are_used_while_botocore_gets_new_ones(bare: dict[str, str], tmp_path: Path) -> None:
    import datetime as dt

    soon = dt.datetime.fromtimestamp(time.time() + 200, dt.UTC).isoformat()
    late = dt.datetime.fromtimestamp(time.time() + 7200, dt.UTC).isoformat()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    answer = '{"Version": 1, "AccessKeyId": "%s", "SecretAccessKey": "s", "Expiration": "%s"}'
    helper = tmp_path / "helper"
    write_program(helper, f"echo '{answer % ('old', soon)}'")
    Path(bare["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {helper}\n")
    with contextlib.closing(Botocore(bare)) as botocore:
        provider = CredentialProvider(botocore=botocore)
        first = provider.current()
        assert first is not None
        write_program(helper, f"read line < {gate}; echo '{answer % ('new', late)}'")
        assert provider.current() == first
        gate.write_text("go\n")
        eventually(lambda: provider.current() != first, timeout=20)
        newest = provider.current()
        assert newest is not None
        assert newest.access_key == "new"
