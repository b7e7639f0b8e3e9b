"""Endpoint, region and CA bundle."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from tonnage.contract import S3Source
from tonnage.errors import InvalidPlan, TLSVerificationFailed
from tonnage.source.aws_config import find_ca_bundle, s3_settings
from tonnage.source.credentials import Botocore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tonnage.source.aws_config import S3Settings

NO_FILES = {"AWS_CONFIG_FILE": os.devnull}


def settings_of(environment: Mapping[str, str] | None = None, *, endpoint: str = "", region: str = "") -> S3Settings:
    source = S3Source(bucket="b", prefix="", endpoint=endpoint, region=region)
    values = {**NO_FILES, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, **(environment or {})}
    with contextlib.closing(Botocore(values)) as botocore:
        return s3_settings(source, values, botocore.settings)


def test_the_default_is_aws_in_us_east_1() -> None:
    settings = settings_of()
    assert (settings.endpoint, settings.region, settings.aws) == (
        "https://s3.us-east-1.amazonaws.com",
        "us-east-1",
        True,
    )


def test_the_source_takes_precedence_over_the_environment() -> None:
    environment = {"AWS_ENDPOINT_URL_S3": "http://env", "AWS_REGION": "env-1"}
    settings = settings_of(environment, endpoint="http://own", region="own-1")
    assert (settings.endpoint, settings.region, settings.aws) == ("http://own", "own-1", False)


def test_the_variable_for_s3_takes_precedence_over_the_general_one() -> None:
    assert settings_of({"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_S3": "http://s3"}).endpoint == "http://s3"
    assert settings_of({"AWS_ENDPOINT_URL": "http://all"}).endpoint == "http://all"


def test_configured_endpoints_can_be_ignored() -> None:
    environment = {"AWS_ENDPOINT_URL": "http://all", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    assert settings_of(environment).aws


def test_aws_region_takes_precedence_over_aws_default_region() -> None:
    assert settings_of({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}).region == "eu-west-1"
    assert settings_of({"AWS_DEFAULT_REGION": "eu-west-2"}).endpoint == "https://s3.eu-west-2.amazonaws.com"


def test_an_endpoint_of_aws_names_its_region() -> None:
    settings = settings_of({"AWS_REGION": "us-east-1"}, endpoint="https://s3.eu-north-1.amazonaws.com")
    assert (settings.region, settings.aws) == ("eu-north-1", True)


def test_another_region_changes_the_endpoint_of_aws_only() -> None:
    assert settings_of().with_region("ap-south-1").endpoint == "https://s3.ap-south-1.amazonaws.com"
    other = settings_of(endpoint="http://own").with_region("ap-south-1")
    assert (other.endpoint, other.region) == ("http://own", "ap-south-1")


def test_a_mounted_directory_may_name_endpoint_and_region(tmp_path: Path) -> None:
    (tmp_path / "AWS_ENDPOINT_URL_S3").write_text("http://mounted\n")
    (tmp_path / "AWS_REGION").write_text("mounted-1")
    settings = settings_of({"TONNAGE_CREDENTIALS_DIR": str(tmp_path), "AWS_REGION": "env-1"})
    assert (settings.endpoint, settings.region) == ("http://mounted", "mounted-1")


def test_the_config_file_may_name_endpoint_and_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[default]\nregion = eu-west-3\nservices = x\n[services x]\ns3 =\n  endpoint_url = http://config\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    settings = settings_of({"AWS_CONFIG_FILE": str(config)})
    assert (settings.endpoint, settings.region) == ("http://config", "eu-west-3")


def test_an_invalid_config_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("region without a section\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    with pytest.raises(InvalidPlan, match="AWS's config file can't be used"):
        settings_of({"AWS_CONFIG_FILE": str(config)})


def test_the_requested_ca_bundle_takes_precedence(tmp_path: Path) -> None:
    own, env = tmp_path / "own.pem", tmp_path / "env.pem"
    own.touch()
    env.touch()
    assert find_ca_bundle(str(own), {"AWS_CA_BUNDLE": str(env)}) == str(own)
    assert find_ca_bundle("", {"AWS_CA_BUNDLE": str(env)}) == str(env)
    assert find_ca_bundle("", {"SSL_CERT_FILE": str(env)}) == str(env)


def test_there_is_a_default_ca_bundle() -> None:
    assert find_ca_bundle("", {}).endswith((".crt", ".pem"))


def test_a_missing_ca_bundle_is_named() -> None:
    with pytest.raises(TLSVerificationFailed, match=r"/nowhere\.pem, set by AWS_CA_BUNDLE"):
        find_ca_bundle("", {"AWS_CA_BUNDLE": "/nowhere.pem"})


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"])
@pytest.mark.parametrize("planted", ["hunter2-db-password!", "postgres://admin:hunter2-db-password@db", "{hunter2}"])
def test_a_secret_in_a_variable_where_it_does_not_belong_is_not_repeated(variable: str, planted: str) -> None:
    with pytest.raises(InvalidPlan, match="that a variable, a mounted file or AWS's configuration sets") as caught:
        settings_of({variable: planted})
    assert "hunter2" not in str(caught.value)
