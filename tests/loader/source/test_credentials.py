"""Where credentials are loaded from, and how they are refreshed."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.faulty_server import Fault
from tonnage.errors import AccessDenied, CredentialsExpired, CredentialsMissing, InvalidPlan
from tonnage.source.credentials import CredentialProvider
from tonnage.source.request_target import Credentials, RequestTarget

if TYPE_CHECKING:
    from support.faulty_server import FaultyServer
    from tonnage.errors import TonnageError

STATIC = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "SECRET"}
LOADER = Path(__file__).parents[3] / "loader"


def iso(seconds_from_now: float) -> str:
    return dt.datetime.fromtimestamp(time.time() + seconds_from_now, dt.UTC).isoformat()


def current(provider: CredentialProvider) -> Credentials:
    found = provider.current()
    assert found is not None
    return found


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A process without any AWS setting, whose files are in ``tmp_path``."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "TONNAGE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def mount(directory: Path, values: dict[str, str], generation: str) -> None:
    """Writes values as the kubelet does: a new directory, and one rename that makes it current."""
    new = directory / generation
    new.mkdir(parents=True)
    for name, value in values.items():
        (new / name).write_text(value)
    link = directory / "..data_tmp"
    link.symlink_to(generation)
    link.rename(directory / "..data")
    for name in values:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")


def test_the_environment_is_used_with_its_session_token() -> None:
    environment = {**STATIC, "AWS_SESSION_TOKEN": "token"}
    found = current(CredentialProvider(environment=environment))
    assert (found.access_key, found.secret_key, found.session_token, found.expires_at) == (
        "key",
        "SECRET",
        "token",
        None,
    )


def test_the_environment_takes_precedence_over_a_profile_as_in_botocore() -> None:
    assert current(CredentialProvider(environment={**STATIC, "AWS_PROFILE": "other"})).access_key == "key"


def test_the_environment_may_set_an_expiration() -> None:
    environment = {**STATIC, "AWS_CREDENTIAL_EXPIRATION": "2025-06-15T15:06:40Z"}
    assert current(CredentialProvider(environment=environment)).expires_at == 1_750_000_000.0


def test_an_invalid_expiration_is_rejected() -> None:
    with pytest.raises(InvalidPlan, match="AWS_CREDENTIAL_EXPIRATION"):
        CredentialProvider(environment={**STATIC, "AWS_CREDENTIAL_EXPIRATION": "soon"}).current()


def test_a_key_without_its_secret_is_named() -> None:
    with pytest.raises(CredentialsMissing, match="no AWS_SECRET_ACCESS_KEY"):
        CredentialProvider(environment={"AWS_ACCESS_KEY_ID": "key"}).current()


def test_anonymous_access_has_no_credentials() -> None:
    provider = CredentialProvider(anonymous=True, environment={})
    assert provider.current() is None
    assert provider.refresh() is None


def test_a_mounted_secret_takes_precedence_and_is_read_again_after_a_rotation(tmp_path: Path) -> None:
    mount(tmp_path, {"AWS_ACCESS_KEY_ID": "one\n", "AWS_SECRET_ACCESS_KEY": "s1\n"}, "..1")
    provider = CredentialProvider(environment={**STATIC, "TONNAGE_CREDENTIALS_DIR": str(tmp_path)})
    first = provider.current()
    mount(tmp_path, {"AWS_ACCESS_KEY_ID": "two", "AWS_SECRET_ACCESS_KEY": "s2", "AWS_SESSION_TOKEN": "t"}, "..2")
    assert provider.current() == first == Credentials(access_key="one", secret_key="s1")
    assert provider.refresh(first) == Credentials(access_key="two", secret_key="s2", session_token="t")


def test_mounted_credentials_are_read_again_before_they_expire(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("one")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("s")
    (tmp_path / "AWS_CREDENTIAL_EXPIRATION").write_text(iso(60))
    provider = CredentialProvider(environment={"TONNAGE_CREDENTIALS_DIR": str(tmp_path)})
    assert current(provider).access_key == "one"
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("two")
    (tmp_path / "AWS_CREDENTIAL_EXPIRATION").write_text(iso(3600))
    assert current(provider).access_key == "two"


def test_a_directory_without_keys_falls_back_to_the_environment(tmp_path: Path) -> None:
    (tmp_path / "AWS_REGION").write_text("r")
    provider = CredentialProvider(environment={**STATIC, "TONNAGE_CREDENTIALS_DIR": str(tmp_path)})
    assert current(provider).access_key == "key"


def test_a_missing_mounted_directory_is_named() -> None:
    with pytest.raises(InvalidPlan, match="TONNAGE_CREDENTIALS_DIR is set to /nowhere"):
        CredentialProvider(environment={"TONNAGE_CREDENTIALS_DIR": "/nowhere"}).current()


def test_workers_that_fail_together_cause_one_refresh(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("one")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("s")
    provider = CredentialProvider(environment={"TONNAGE_CREDENTIALS_DIR": str(tmp_path)})
    old = provider.current()
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("two")
    new = provider.refresh(old)
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("three")
    assert provider.refresh(old) == new


@pytest.mark.usefixtures("bare")
def test_the_error_of_an_empty_chain_lists_all_places() -> None:
    with pytest.raises(CredentialsMissing) as caught:
        CredentialProvider().current()
    for place in ("AWS_ACCESS_KEY_ID", "'default'", "web identity", "container", "instance metadata"):
        assert place in str(caught.value)


def test_a_profile_of_the_shared_files_is_found(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[models]\naws_access_key_id = pk\naws_secret_access_key = ps\n")
    bare.setenv("AWS_PROFILE", "models")
    assert CredentialProvider().current() == Credentials(access_key="pk", secret_key="ps")


def test_a_missing_profile_is_named(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AWS_PROFILE", "nope")
    with pytest.raises(CredentialsMissing, match="nope"):
        CredentialProvider().current()


def test_container_credentials_are_fetched_and_refreshed_on_demand(
    bare: pytest.MonkeyPatch, faulty_server: FaultyServer
) -> None:
    def serve(key: str) -> None:
        response = {"AccessKeyId": key, "SecretAccessKey": "s", "Token": "t", "Expiration": iso(3600)}
        faulty_server.put("creds", json.dumps(response).encode())

    serve("one")
    bare.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{faulty_server.url}/creds")
    bare.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod-identity")
    provider = CredentialProvider()
    first = current(provider)
    assert (first.access_key, first.session_token) == ("one", "t")
    assert first.expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert provider.current() is first
    serve("two")
    refreshed = provider.refresh(first)
    assert refreshed is not None
    assert refreshed.access_key == "two"
    assert faulty_server.find_requests()[0].headers["authorization"] == "pod-identity"


def assume(bare: pytest.MonkeyPatch, faulty: FaultyServer, tmp_path: Path, fault: Fault) -> Credentials:
    token = tmp_path / "token"
    token.write_text("header.payload.signature")
    bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    bare.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
    bare.setenv("AWS_ENDPOINT_URL_STS", faulty.url)
    bare.setenv("AWS_DEFAULT_REGION", "us-east-1")
    faulty.add_fault(fault, method="POST")
    return current(CredentialProvider())


def test_web_identity_assumes_its_role(bare: pytest.MonkeyPatch, faulty_server: FaultyServer, tmp_path: Path) -> None:
    body = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>wk</AccessKeyId>"
        f"<SecretAccessKey>ws</SecretAccessKey><SessionToken>wt</SessionToken><Expiration>{iso(3600)}</Expiration>"
        "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    found = assume(bare, faulty_server, tmp_path, Fault(status=200, body=body.encode()))
    assert (found.access_key, found.session_token) == ("wk", "wt")
    assert b"header.payload.signature" in faulty_server.find_requests()[0].body


@pytest.mark.parametrize(
    ("code", "error"), [("AccessDenied", AccessDenied), ("ExpiredTokenException", CredentialsExpired)]
)
def test_a_role_that_can_not_be_assumed_is_reported(
    bare: pytest.MonkeyPatch, faulty_server: FaultyServer, tmp_path: Path, code: str, error: type[TonnageError]
) -> None:
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>Not authorized</Message></Error></ErrorResponse>"
    with pytest.raises(error, match=f"AssumeRoleWithWebIdentity failed with {code}: Not authorized"):
        assume(bare, faulty_server, tmp_path, Fault(status=403, body=body.encode()))


def test_representations_contain_no_secrets() -> None:
    shown = [
        repr(Credentials(access_key="KEYSECRET", secret_key="SECRET", session_token="SECRET")),
        repr(RequestTarget(url="https://h/x?X-Amz-Signature=SECRET", label="https://h/x")),
        str(Credentials(access_key="KEYSECRET", secret_key="SECRET").__rich_repr__()),
        repr(CredentialProvider(environment=STATIC)),
    ]
    assert not any("SECRET" in text for text in shown)


def test_simple_credentials_and_resolving_import_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from tonnage.source import resolve, source_uri\n"
        "from tonnage.source.credentials import CredentialProvider\n"
        "CredentialProvider(environment={'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b'}).current()\n"
        "heavy = {'botocore', 'boto3', 'asyncio', 'logging', 'http.client', 'urllib.request', 'ssl', 'torch', 'rich',"
        " 'email', 'xml', 'isal', 'socket'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = {"PYTHONPATH": str(LOADER), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"],
                          env=environment, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_valid_credentials_are_kept_when_a_refresh_fails(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("one")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("s")
    (tmp_path / "AWS_CREDENTIAL_EXPIRATION").write_text(iso(60))
    provider = CredentialProvider(environment={"TONNAGE_CREDENTIALS_DIR": str(tmp_path)})
    first = provider.current()
    (tmp_path / "AWS_SECRET_ACCESS_KEY").unlink()
    assert provider.current() is first
    with pytest.raises(CredentialsMissing):
        provider.refresh(first)


def test_white_space_is_stripped() -> None:
    environment = {name: f" {value}\n" for name, value in {**STATIC, "AWS_SESSION_TOKEN": "t"}.items()}
    assert CredentialProvider(environment=environment).current() == Credentials(
        access_key="key", secret_key="SECRET", session_token="t"
    )
